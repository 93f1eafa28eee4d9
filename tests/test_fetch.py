"""Archives come whole and right or not at all, from servers that break, lie, stall and change, and nothing is lost."""

import fcntl
import hashlib
import os
import pty
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from urllib3 import Retry

from finetune import datasets
from finetune.cli import cli
from finetune.datasets import Contents, Dataset, Edition
from finetune.errors import InputError
from finetune.fetch import Patience, bring_from, fetch, part, transfer, wanted
from loopback import Loopback, Reply, loopback

SOURCE = Path(datasets.__file__).parents[2]
WHOLE = os.urandom(300_000)
OTHER = os.urandom(300_000)
HASTY = Patience(connect=2, read=2, retry=Retry(2, backoff_factor=0.01))
HASTIER = Patience(connect=2, read=0.2, retry=Retry(2, backoff_factor=0.01))  # a busy machine may be as slow
CARS = ("car_devkit.tgz", "cars_train.tgz", "cars_test.tgz", "cars_test_annos_withlabels.mat")


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def toy(sources: Sequence[str] = (), second: Sequence[str] = (), archives: tuple[str, ...] = ("a.tgz",)) -> Dataset:
    """Its archives a.tgz and b.tgz are WHOLE and OTHER in the official edition, the other way round in `sample`."""
    return Dataset(
        name="toy",
        title="Toy",
        classes=3,
        archives=archives,
        editions={
            "official": Edition({"a.tgz": md5(WHOLE), "b.tgz": md5(OTHER)}, train=1, test=1),
            "sample": Edition({"a.tgz": md5(OTHER), "b.tgz": md5(WHOLE)}, train=1, test=1),
        },
        read=lambda folder: Contents((), iter(())),
        sources={"a.tgz": tuple(sources), "b.tgz": tuple(second)},
    )


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[Loopback]:
    with loopback() as told:
        yield told


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "toy"


def bring(dataset: Dataset, folder: Path, edition: str = "official", patience: Patience = HASTY) -> list[str]:
    said: list[str] = []
    fetch(wanted(dataset, edition, folder), patience, said.append)
    return said


def refused(dataset: Dataset, folder: Path, edition: str = "official", patience: Patience = HASTY) -> str:
    with pytest.raises(InputError) as caught:
        bring(dataset, folder, edition, patience)
    message = str(caught.value)
    assert "\n" not in message
    return message


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_whole(folder: Path) -> None:
    assert (folder / "a.tgz").read_bytes() == WHOLE
    assert names(folder) == ["a.tgz"]


# What servers do


def test_an_archive_is_put_in_place_and_nothing_beside_it(server: Loopback, folder: Path) -> None:
    url = server.put("a.tgz", Reply(WHOLE))
    (said,) = bring(toy([url]), folder)
    assert_whole(folder)
    assert said.startswith(f"{folder / 'a.tgz'}: 300.0 kB from {url}, ") and said.endswith(", md5 right")


@pytest.mark.parametrize("resets", [False, True])
def test_a_broken_connection_is_resumed_where_it_broke(server: Loopback, folder: Path, resets: bool) -> None:
    broken = Reply(WHOLE, breaks_after=100_000, slowly=0.01, resets=resets)
    bring(toy([server.put("a.tgz", broken, broken, Reply(WHOLE))]), folder)
    assert_whole(folder)
    assert [r.range for r in server.requests] == [None, "bytes=100000-", "bytes=200000-"]
    assert sum(r.sent for r in server.requests) == len(WHOLE)


def test_breaks_that_bring_something_new_are_endured_without_end(server: Loopback, folder: Path) -> None:
    bring(toy([server.put("a.tgz", Reply(WHOLE, breaks_after=30_000))]), folder)
    assert_whole(folder)
    assert len(server.requests) == 10 and sum(r.sent for r in server.requests) == len(WHOLE)


def test_a_server_that_ignores_ranges_sends_the_whole_again(server: Loopback, folder: Path) -> None:
    replies = Reply(WHOLE, breaks_after=100_000), Reply(WHOLE, ranges=False)
    bring(toy([server.put("a.tgz", *replies)]), folder)
    assert_whole(folder)
    assert [r.sent for r in server.requests] == [100_000, 300_000]


def test_a_server_that_always_breaks_at_one_place_is_given_up_and_the_part_kept(server: Loopback, folder: Path) -> None:
    url = server.put("a.tgz", Reply(WHOLE, breaks_after=100_000, ranges=False))
    message = refused(toy([url]), folder)
    assert f"{folder / 'a.tgz'}: could not be had: {url} broke off, 3 times, at 100.0 kB; bring it with" in message
    assert [r.range for r in server.requests] == [None, "bytes=100000-", "bytes=100000-"]
    assert (folder / ".a.tgz.part").read_bytes() == WHOLE[:100_000]
    assert "a.tgz" not in names(folder)


def test_a_later_fetch_goes_on_with_what_an_earlier_one_left(server: Loopback, folder: Path) -> None:
    headers = {"ETag": '"one"'}
    url = server.put("a.tgz", Reply(WHOLE, headers=headers, breaks_after=120_000), Reply(status=404))
    refused(toy([url]), folder)
    server.put("a.tgz", Reply(WHOLE, headers=headers))
    bring(toy([url]), folder)
    assert_whole(folder)
    last = server.requests[-1]
    assert (last.range, last.headers["If-Range"], last.sent) == ("bytes=120000-", '"one"', 180_000)


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("name", ["ETag", "Last-Modified"])
def test_a_file_that_changed_between_two_tries_is_fetched_anew(
    server: Loopback, folder: Path, name: str, if_range: bool
) -> None:
    old = Reply(OTHER, headers={name: '"old"'}, breaks_after=100_000)
    new = Reply(WHOLE, headers={name: '"new"'}, if_range=if_range)
    bring(toy([server.put("a.tgz", old, new)]), folder)
    assert_whole(folder)
    assert server.requests[1].headers["If-Range"] == '"old"'


def test_a_weak_etag_is_no_ground_for_a_range(server: Loopback, folder: Path) -> None:
    weak = {"ETag": 'W/"x"'}
    bring(toy([server.put("a.tgz", Reply(WHOLE, headers=weak, breaks_after=9), Reply(WHOLE, headers=weak))]), folder)
    assert_whole(folder)
    assert "If-Range" not in server.requests[1].headers


def test_a_file_of_another_length_is_no_continuation(server: Loopback, folder: Path) -> None:
    replies = Reply(OTHER[:-1], breaks_after=100_000), Reply(WHOLE)
    bring(toy([server.put("a.tgz", *replies)]), folder)
    assert_whole(folder)
    assert [r.range for r in server.requests] == [None, "bytes=100000-", None]


def test_a_part_of_another_file_costs_one_more_try_from_the_first_byte(server: Loopback, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / ".a.tgz.part").write_bytes(OTHER[:50_000])
    bring(toy([server.put("a.tgz", Reply(WHOLE))]), folder)
    assert_whole(folder)
    assert [r.range for r in server.requests] == ["bytes=50000-", None]


def test_a_whole_part_is_put_in_place_without_a_request(server: Loopback, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / ".a.tgz.part").write_bytes(WHOLE)
    (said,) = bring(toy([server.put("a.tgz", Reply(WHOLE))]), folder)
    assert "from what an earlier fetch left" in said
    assert_whole(folder)
    assert server.requests == []


@pytest.mark.parametrize("length", [300_000, 400_000])
def test_a_part_that_is_too_long_for_a_range_is_thrown_away(server: Loopback, folder: Path, length: int) -> None:
    folder.mkdir(parents=True)
    (folder / ".a.tgz.part").write_bytes(os.urandom(length))
    bring(toy([server.put("a.tgz", Reply(WHOLE))]), folder)
    assert_whole(folder)
    assert [r.range for r in server.requests] == [f"bytes={length}-", None]


def test_wrong_bytes_are_thrown_away_and_said_with_both_md5s_and_the_source(server: Loopback, folder: Path) -> None:
    url = server.put("a.tgz", Reply(b"<html>log in</html>"))
    message = refused(toy([url]), folder)
    found = md5(b"<html>log in</html>")
    assert f"{url} gave a file of md5 {found}, expected {md5(WHOLE)} of the official edition;" in message
    assert str(folder / "a.tgz") in message
    assert names(folder) == []


def test_the_next_source_makes_good_for_wrong_bytes_and_a_missing_file(server: Loopback, folder: Path) -> None:
    urls = [server.url + "gone.tgz", server.put("bad.tgz", Reply(OTHER)), server.put("a.tgz", Reply(WHOLE))]
    (said,) = bring(toy(urls), folder)
    assert_whole(folder)
    assert [r.path for r in server.requests] == ["gone.tgz", "bad.tgz", "a.tgz"]
    assert urls[2] in said


def test_the_next_source_goes_on_where_the_first_broke(server: Loopback, folder: Path) -> None:
    broken = server.put("one.tgz", Reply(WHOLE, headers={"ETag": '"one"'}, breaks_after=100_000), Reply(status=403))
    bring(toy([broken, server.put("two.tgz", Reply(WHOLE, headers={"ETag": '"two"'}))]), folder)
    assert_whole(folder)
    last = server.requests[-1]
    assert (last.path, last.range, "If-Range" in last.headers) == ("two.tgz", "bytes=100000-", False)


def test_every_source_that_failed_is_listed_with_its_reason(server: Loopback, folder: Path) -> None:
    refusing = "http://127.0.0.1:1/a.tgz"
    message = refused(toy([server.url + "gone.tgz", refusing]), folder)
    assert f"could not be had: {server.url}gone.tgz answered 404 Not Found, {refusing} failed (Connection" in message
    assert "refused), 3 times" in message
    assert "`finetune fetch toy --from FILE`" in message and "datasets.toy.sources" in message


def test_redirects_are_followed_with_the_range(server: Loopback, folder: Path) -> None:
    server.put("real.tgz", Reply(WHOLE, breaks_after=100_000), Reply(WHOLE))
    bring(toy([server.put("a.tgz", Reply(status=302, headers={"Location": "/real.tgz"}))]), folder)
    assert_whole(folder)
    assert [(r.path, r.range) for r in server.requests][2:] == [
        ("a.tgz", "bytes=100000-"),
        ("real.tgz", "bytes=100000-"),
    ]


def test_a_circle_of_redirects_is_an_error(server: Loopback, folder: Path) -> None:
    url = server.put("a.tgz", Reply(status=302, headers={"Location": "/a.tgz"}))
    assert f"{url} cannot be asked (Exceeded 30 redirects.)" in refused(toy([url]), folder)


def test_a_stalled_connection_is_left_and_resumed(server: Loopback, folder: Path) -> None:
    bring(toy([server.put("a.tgz", Reply(WHOLE, stalls_after=100_000), Reply(WHOLE))]), folder, patience=HASTIER)
    assert_whole(folder)
    assert {r.range for r in server.requests} == {None, "bytes=100000-"}


def test_a_server_that_never_sends_is_given_up(server: Loopback, folder: Path) -> None:
    url = server.put("a.tgz", Reply(WHOLE, stalls_after=0))
    assert f"{url} sent nothing for 0.2 s, 3 times; bring" in refused(toy([url]), folder, patience=HASTIER)


def test_a_busy_server_is_asked_again(server: Loopback, folder: Path) -> None:
    busy = Reply(status=503, headers={"Retry-After": "0"})
    bring(toy([server.put("a.tgz", busy, Reply(status=429), Reply(WHOLE))]), folder)
    assert_whole(folder)


def test_the_wait_that_a_busy_server_asks_for_is_kept(server: Loopback, folder: Path) -> None:
    began = time.monotonic()
    bring(toy([server.put("a.tgz", Reply(status=503, headers={"Retry-After": "1"}), Reply(WHOLE))]), folder)
    assert time.monotonic() - began > 0.9
    assert_whole(folder)


def test_bytes_stay_as_the_server_stores_them(server: Loopback, folder: Path) -> None:
    bring(toy([server.put("a.tgz", Reply(WHOLE, headers={"Content-Encoding": "gzip"}))]), folder)
    assert_whole(folder)


def test_a_file_of_unknown_length_comes_whole(server: Loopback, folder: Path) -> None:
    bring(toy([server.put("a.tgz", Reply(WHOLE, chunked=True, breaks_after=100_000), Reply(WHOLE))]), folder)
    assert_whole(folder)
    assert [r.range for r in server.requests] == [None, "bytes=100000-"]


# What lies there already


def test_a_second_fetch_makes_no_request(server: Loopback, folder: Path) -> None:
    dataset = toy([server.put("a.tgz", Reply(WHOLE))])
    bring(dataset, folder)
    before = (folder / "a.tgz").stat()
    assert bring(dataset, folder) == [f"{folder / 'a.tgz'}: already there, md5 right"]
    assert len(server.requests) == 1
    assert (folder / "a.tgz").stat() == before


def test_a_file_of_another_edition_is_left_as_it_is(server: Loopback, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "a.tgz").write_bytes(OTHER)
    message = refused(toy([server.put("a.tgz", Reply(WHOLE))]), folder)
    assert f"is there with md5 {md5(OTHER)} (the sample edition's), expected {md5(WHOLE)} of the official" in message
    assert (folder / "a.tgz").read_bytes() == OTHER
    assert server.requests == []


def test_a_folder_in_the_archives_place_is_left_as_it_is(folder: Path) -> None:
    (folder / "a.tgz").mkdir(parents=True)
    assert "a.tgz: is no file" in refused(toy(["http://127.0.0.1:1/a.tgz"]), folder)


def test_a_file_that_comes_meanwhile_is_not_overwritten(
    server: Loopback, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = part.Part.append

    def meddling(self: part.Part, chunk: bytes) -> None:
        append(self, chunk)
        (folder / "a.tgz").write_bytes(b"mine")

    monkeypatch.setattr(part.Part, "append", meddling)
    assert "was left as it is" in refused(toy([server.put("a.tgz", Reply(WHOLE))]), folder)
    assert (folder / "a.tgz").read_bytes() == b"mine"


def test_links_of_the_official_edition_are_not_asked_for_another(server: Loopback, folder: Path) -> None:
    message = refused(toy([server.put("a.tgz", Reply(WHOLE))]), folder, "sample")
    assert "Toy has no live link to its sample edition; bring a.tgz with" in message
    assert server.requests == []


@pytest.mark.parametrize("name", datasets.names())
def test_the_links_of_every_data_set_end_in_the_archives_name(name: str) -> None:
    dataset = datasets.load(name)
    for archive in wanted(dataset, "official", Path("data", name)):
        for link in archive.sources:
            assert re.fullmatch(rf"https?://\S+/{re.escape(archive.place.name)}", link)
    assert bool(dataset.sources) == (name != "cars196")


def test_an_unknown_edition_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"toy: found edition 'oficial'; did you mean 'official'\?"):
        wanted(toy(), "oficial", Path("data/toy"))


# The disk


def test_a_disk_without_room_is_found_before_the_download(
    server: Loopback, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type(shutil.disk_usage("."))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 200_000, 200_000))
    message = refused(toy([server.put("a.tgz", Reply(WHOLE))]), folder)
    assert ".a.tgz.part: 300.0 kB are still to come, but the disk has 200.0 kB free; make room" in message
    assert not (folder / "a.tgz").exists()


def test_a_disk_that_fills_up_keeps_what_came(server: Loopback, folder: Path) -> None:
    dataset = toy([server.put("a.tgz", Reply(WHOLE, slowly=0.001))])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
    try:
        message = refused(dataset, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert re.search(r"\.a\.tgz\.part: could not be written after 150\.0 kB \(File too large\); make room", message)
    kept = (folder / ".a.tgz.part").read_bytes()
    assert WHOLE.startswith(kept) and len(kept) == 150_000
    bring(dataset, folder)
    assert_whole(folder)
    assert server.requests[-1].range == "bytes=150000-"


# Several


def test_archives_come_at_the_same_time(server: Loopback, folder: Path) -> None:
    gate = threading.Barrier(2, timeout=2)  # neither is answered before both have asked
    one, two = server.put("a.tgz", Reply(WHOLE, gate=gate)), server.put("b.tgz", Reply(OTHER, gate=gate))
    both = wanted(toy([one], [two], ("a.tgz", "b.tgz")), "official", folder)
    fetch(both, Patience(read=5, retry=Retry(0)))
    assert names(folder) == ["a.tgz", "b.tgz"]


def test_the_fault_of_one_archive_does_not_keep_the_other(server: Loopback, folder: Path) -> None:
    two = server.put("b.tgz", Reply(OTHER, slowly=0.002))
    assert "a.tgz: could not be had" in refused(toy([server.url + "gone"], [two], ("a.tgz", "b.tgz")), folder)
    assert names(folder) == ["b.tgz"]


def test_the_faults_of_several_are_one_sentence(server: Loopback, folder: Path) -> None:
    message = refused(toy([server.url + "gone"], [], ("a.tgz", "b.tgz")), folder)
    assert message.startswith("2 faults: ") and "bring b.tgz with" in message and "a.tgz: could not be had" in message


def test_two_fetches_of_one_archive_bring_it_once(server: Loopback, folder: Path) -> None:
    dataset = toy([server.put("a.tgz", Reply(WHOLE, slowly=0.01))])
    said: list[list[str]] = []
    threads = [threading.Thread(target=lambda: said.append(bring(dataset, folder))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1
    assert sum("already there" in line for (line,) in said) == 2
    assert_whole(folder)


# Brought from elsewhere


def test_a_file_is_copied_by_its_name_and_stays(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "a.tgz"
    mine.write_bytes(WHOLE)
    fetch(bring_from(wanted(toy(), "official", folder), str(mine)), HASTY)
    assert_whole(folder)
    assert mine.read_bytes() == WHOLE


def test_a_file_of_another_name_is_known_by_its_md5(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "download (1)"
    mine.write_bytes(WHOLE)
    said: list[str] = []
    fetch(bring_from(wanted(toy(archives=("b.tgz", "a.tgz")), "official", folder), str(mine), said.append), HASTY)
    assert_whole(folder)
    assert said == [f"{mine}: has no archive's name; looks for its md5 among theirs"]


def test_a_strange_file_is_refused(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "letter.txt"
    mine.write_bytes(b"dear")
    with pytest.raises(InputError, match=r"letter.txt: neither its name nor its md5 \w{32} is of a.tgz; name"):
        bring_from(wanted(toy(), "official", folder), str(mine))


def test_a_wrong_file_is_refused_before_a_half_done_download_is_touched(folder: Path, tmp_path: Path) -> None:
    folder.mkdir(parents=True)
    (folder / ".a.tgz.part").write_bytes(WHOLE[:1000])
    mine = tmp_path / "a.tgz"
    mine.write_bytes(OTHER)
    with pytest.raises(InputError, match=rf"gave a file of md5 {md5(OTHER)} \(the sample edition's\), expected"):
        fetch(bring_from(wanted(toy(), "official", folder), str(mine)), HASTY)
    assert (folder / ".a.tgz.part").read_bytes() == WHOLE[:1000]


@pytest.mark.parametrize("below", ["", "toy"])
def test_a_folder_gives_what_lies_there_and_the_rest_is_named(folder: Path, tmp_path: Path, below: str) -> None:
    mine = tmp_path / "mine"
    (mine / below).mkdir(parents=True)
    (mine / below / "a.tgz").write_bytes(WHOLE)
    said: list[str] = []
    fetch(bring_from(wanted(toy(archives=("a.tgz", "b.tgz")), "official", folder), str(mine), said.append), HASTY)
    assert_whole(folder)
    assert said == [f"{mine}: has no b.tgz; bring the rest, too"]


def test_a_folder_without_any_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r": has none of a.tgz, b.tgz; name the folder"):
        bring_from(wanted(toy(archives=("a.tgz", "b.tgz")), "official", folder), str(tmp_path))


def test_a_place_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"--from nowhere: no such file or folder"):
        bring_from(wanted(toy(), "official", folder), "nowhere")


@pytest.mark.parametrize("path", ["a.tgz", "sub/toy/a.tgz", "sub/a.tgz"])
def test_a_url_is_of_one_archive_or_of_a_folder(server: Loopback, folder: Path, path: str) -> None:
    url = server.put(path, Reply(WHOLE))
    origin = url if path == "a.tgz" else server.url + "sub/"
    fetch(bring_from(wanted(toy(["http://127.0.0.1:1/a.tgz"]), "official", folder), origin), HASTY)
    assert_whole(folder)


def test_a_single_archive_may_have_any_url(server: Loopback, folder: Path) -> None:
    origin = server.put("get?id=7", Reply(WHOLE))
    fetch(bring_from(wanted(toy(), "official", folder), origin), HASTY)
    assert_whole(folder)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://host/a.tgz", "expected http://…, https://…, or a path"),
        ("http://host/get?id=7", "its last part is none of a.tgz, b.tgz"),
        ("http://host/sub/?token=1", "expected nothing after the last /"),
    ],
)
def test_a_url_that_leads_nowhere_is_refused(folder: Path, url: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        bring_from(wanted(toy(archives=("a.tgz", "b.tgz")), "official", folder), url)
    assert words in str(caught.value)


# The command


@pytest.fixture
def study(tmp_path: Path, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The current folder is empty; `run` writes this study there as params.yaml."""
    tiny["study"]["datasets"] = ["cifar10"]
    tiny["datasets"] = {"cifar10": {}, "mine": {"reader": "class_folders", "sources": {"photos.zip": []}}}
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)
    yield tiny
    signal.signal(signal.SIGTERM, before)


def run(study: dict[str, Any], *args: str) -> Result:
    Path("params.yaml").write_text(yaml.safe_dump(study))
    return CliRunner().invoke(cli, ["fetch", *args])


def sentence(result: Result) -> str:
    """What a refusal says: one line on stderr, exit code 2."""
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("finetune: ") and result.stderr.count("\n") == 1
    return result.stderr


def test_cars_says_that_its_links_are_dead_and_what_it_needs(study: dict[str, Any]) -> None:
    said = sentence(run(study, "cars196"))
    assert "data/cars196: Stanford Cars has no live link to its official edition; bring " in said
    assert all(name in said for name in CARS) and "`finetune fetch cars196 --from FOLDER`" in said


def test_params_override_the_sources(study: dict[str, Any], server: Loopback) -> None:
    name = "cifar-10-python.tar.gz"
    url = server.put(name, Reply(WHOLE))
    study["datasets"]["cifar10"]["sources"] = {name: [server.url + "gone", url]}
    said = sentence(run(study, "cifar10"))
    assert f"{server.url}gone answered 404 Not Found, {url} gave a file of md5 {md5(WHOLE)}, expected c58f30" in said
    assert not Path("data/cifar10", name).exists()


def test_all_names_every_data_set_once(study: dict[str, Any], server: Loopback) -> None:
    said = sentence(run(study, "all", "cifar10", "--from", server.url))
    assert said.count("could not be had: ") == 8
    assert len(server.requests) == 16


def test_data_of_ones_own_comes_from_its_sources_as_it_is(study: dict[str, Any], server: Loopback) -> None:
    study["datasets"]["mine"]["sources"] = {"photos.zip": [server.put("photos.zip", Reply(WHOLE))]}
    result = run(study, "mine")
    assert result.exit_code == 0, result.output
    assert Path("data/mine/photos.zip").read_bytes() == WHOLE
    assert f"md5 {md5(WHOLE)}" in result.stdout
    assert "already there" in run(study, "mine").stdout


def test_without_an_md5_the_next_source_begins_anew_where_the_first_broke(
    study: dict[str, Any], server: Loopback
) -> None:
    broken = server.put("one.zip", Reply(OTHER, breaks_after=100_000), Reply(status=403))
    study["datasets"]["mine"]["sources"] = {"photos.zip": [broken, server.put("two.zip", Reply(WHOLE))]}
    result = run(study, "mine")
    assert result.exit_code == 0, result.output
    assert Path("data/mine/photos.zip").read_bytes() == WHOLE


def test_without_an_md5_a_source_that_sends_nothing_costs_nothing_of_what_came(
    study: dict[str, Any], server: Loopback
) -> None:
    gone = server.put("gone.zip", Reply(status=404), Reply(status=404))
    good = server.put("good.zip", Reply(WHOLE, breaks_after=100_000), Reply(status=403), Reply(WHOLE))
    study["datasets"]["mine"]["sources"] = {"photos.zip": [gone, good]}
    assert run(study, "mine").exit_code == 2
    result = run(study, "mine")
    assert result.exit_code == 0, result.output
    assert Path("data/mine/photos.zip").read_bytes() == WHOLE
    assert server.requests[-1].range == "bytes=100000-"


@pytest.fixture
def brought(study: dict[str, Any], tmp_path: Path) -> Path:
    """A folder with an archive of one's own, for which params.yaml lists no source."""
    del study["datasets"]["mine"]["sources"]
    place = tmp_path / "elsewhere"
    place.mkdir()
    (place / "flowers.zip").write_bytes(WHOLE)
    (place / "flowers.txt").write_bytes(OTHER)
    return place


@pytest.mark.parametrize("origin", ["flowers.zip", ""])
def test_an_archive_of_ones_own_is_brought_without_a_source(study: dict[str, Any], brought: Path, origin: str) -> None:
    result = run(study, "mine", "--from", str(brought / origin))
    assert result.exit_code == 0, result.output
    assert names(Path("data/mine")) == ["flowers.zip"]
    assert Path("data/mine/flowers.zip").read_bytes() == WHOLE


def test_an_archive_of_ones_own_is_brought_from_a_url(study: dict[str, Any], brought: Path, server: Loopback) -> None:
    result = run(study, "mine", "--from", server.put("my%20flowers.tar.gz?id=7", Reply(WHOLE)))
    assert result.exit_code == 0, result.output
    assert Path("data/mine/my flowers.tar.gz").read_bytes() == WHOLE
    result = run(study, "mine", "--from", server.put("..%2Fout.zip", Reply(WHOLE)))
    assert result.exit_code == 0 and names(Path("data")) == ["mine"], result.output


def test_an_archive_of_ones_own_takes_the_name_that_params_give_it(study: dict[str, Any], brought: Path) -> None:
    study["datasets"]["mine"]["archive"] = "photos.tar"
    assert "neither its name nor its md5" in sentence(run(study, "mine", "--from", str(brought / "flowers.zip")))
    study["datasets"]["mine"]["archive"] = "photos.zip"
    result = run(study, "mine", "--from", str(brought / "flowers.zip"))
    assert result.exit_code == 0, result.output
    assert names(Path("data/mine")) == ["photos.zip"]


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        (
            "flowers.txt",
            "flowers.txt: found no archive by its name, expected one .tar or .tar.gz or .tgz or .zip of mine",
        ),
        ("two", "two: found a.zip, b.zip, expected one"),
        ("nowhere.zip", "nowhere.zip: no such file or folder; name an archive"),
    ],
)
def test_what_is_no_archive_of_ones_own_is_refused(
    study: dict[str, Any], brought: Path, origin: str, words: str
) -> None:
    (brought / "two").mkdir()
    for name in ("a.zip", "b.zip", ".c.zip"):
        (brought / "two" / name).write_bytes(WHOLE)
    assert words in sentence(run(study, "mine", "--from", str(brought / origin)))
    assert not Path("data").exists()


@pytest.mark.parametrize(
    ("dataset", "sources", "words"),
    [
        ("cifar10", {"cifar.tgz": []}, "sources: 'cifar.tgz' is no archive of cifar10; known: cifar-10-python.tar.gz"),
        ("cifar10", {"cifar-10-python.tar.gz": "http://x/"}, "expected: a list"),
        (
            "mine",
            {},
            "is data of one's own, and params.yaml names no source; bring it with `finetune fetch mine --from ",
        ),
        ("mine", {"../photos.zip": []}, "found '../photos.zip', expected the name of a file in data/mine"),
        ("mine", {"photos.zip": []}, "mine has no live link to its any edition"),
    ],
)
def test_sources_that_make_no_sense_are_refused(
    study: dict[str, Any], dataset: str, sources: dict[str, Any], words: str
) -> None:
    study["datasets"][dataset]["sources"] = sources
    assert words in sentence(run(study, dataset))


def test_an_unknown_data_set_is_refused(study: dict[str, Any]) -> None:
    assert "'cifar11'" in sentence(run(study, "cifar11"))
    known = "known: cars196, cifar10, cifar100, cub200, food101, mine"
    assert f"did you mean 'mine'? {known}" in sentence(run(study, "min"))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_fetch_goes_on_later(
    study: dict[str, Any], server: Loopback, tmp_path: Path, how: signal.Signals
) -> None:
    url = server.put("photos.zip", Reply(WHOLE, headers={"ETag": '"x"'}, stalls_after=100_000))
    study["datasets"]["mine"]["sources"] = {"photos.zip": [url]}
    Path("params.yaml").write_text(yaml.safe_dump(study))
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune", "fetch", "mine"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    half = Path("data/mine/.photos.zip.part")
    while not (half.exists() and half.stat().st_size == 100_000):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    asked = time.monotonic()
    process.send_signal(how)
    out, err = process.communicate(timeout=10)
    assert time.monotonic() - asked < 5  # it does not wait for the silent server
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 1, signal.SIGKILL: -9}[how]
    assert "Traceback" not in err
    assert how is signal.SIGKILL or "the same command goes on from there" in out
    server.put("photos.zip", Reply(WHOLE, headers={"ETag": '"x"'}))
    assert run(study, "mine").exit_code == 0
    assert Path("data/mine/photos.zip").read_bytes() == WHOLE
    assert (server.requests[-1].range, server.requests[-1].headers["If-Range"]) == ("bytes=100000-", '"x"')
    assert names(Path("data/mine")) == ["photos.zip"]


# What is shown


def test_a_log_has_lines_with_rate_and_time_left(
    server: Loopback, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_EVERY", 0.05)
    *lines, last = bring(toy([server.put("a.tgz", Reply(WHOLE, slowly=0.02))]), folder)
    expected = r"toy/a.tgz: downloads, \d+\.0 kB of 300\.0 kB, \d+\.\d [kM]B/s, 00:0\d left"
    assert any(re.fullmatch(expected, line) for line in lines)
    assert last.endswith("md5 right")


def test_a_terminal_has_bars_and_is_left_clean(study: dict[str, Any], server: Loopback) -> None:
    slow = Reply(WHOLE, slowly=0.02)
    study["datasets"]["mine"]["sources"] = {name: [server.put(name, slow)] for name in ("one.zip", "two.zip")}
    Path("params.yaml").write_text(yaml.safe_dump(study))
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune", "fetch", "mine"],
        stdout=inner,
        stderr=inner,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    os.close(inner)
    shown = b""
    try:
        while piece := os.read(outer, 65536):
            shown += piece
    except OSError:  # the other end is closed
        pass
    os.close(outer)
    assert process.wait() == 0
    text = shown.decode()
    assert re.search(r"mine/one.zip: +\d+%\|", text) and re.search(r"mine/two.zip: +\d+%\|", text)
    for name in ("one.zip", "two.zip"):  # a line of its own, begun at the left (or a row above, still at the left)
        assert re.search(rf"(?:[\r\n]|\r\x1b\[A)data/mine/{name}: 300\.0 kB from [^\r\n]*\r\n", text)
