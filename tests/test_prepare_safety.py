"""Prepare beside others, on small disks, and after a kill: nothing is lost, nothing is half-written."""

import errno
import io
import shutil
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

import tiny_archives
from finetune import datasets, decoding
from finetune.counting import size
from finetune.datasets import Contents, Dataset, Edition, Example
from finetune.errors import InputError
from finetune.params import PrepareParams
from finetune.prepare import prepare
from finetune.store import open_store
from finetune.store_check import check
from finetune.store_writer import Writer

SETTINGS = PrepareParams(short_side=32, val_fraction=0.2)
Usage = namedtuple("Usage", "total used free")


def noise(images: int = 200) -> Iterator[Example]:
    for i in range(images):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3)).astype(np.uint8)
        yield Example("test" if i % 5 == 0 else "train", i % 2, pixels, f"a.bin: {i}")


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    folder = tmp_path / "archives"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"a")
    return folder


def dataset(stream: Callable[[], Iterator[Example]] = noise, images: int | None = 200, **editions: Edition) -> Dataset:
    return Dataset("toy", "Toy", 2, ("a.bin",), editions, lambda _: Contents(("a", "b"), stream(), images))


# Two at once


def waits(thread: threading.Thread, capsys: pytest.CaptureFixture[str]) -> None:
    """Start a prepare, until it says that another one has the lock."""
    thread.start()
    while "another process is preparing it" not in capsys.readouterr().out:
        thread.join(0.05)
        assert thread.is_alive()


def test_a_second_prepare_waits_and_takes_what_the_first_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_archives.write("cifar10", tmp_path / "data")
    place, began, go_on, made = tmp_path / "cifar10", threading.Event(), threading.Event(), []
    start, digests = Writer.__init__, list[str]()

    def slow(self: Writer, *args: object, **named: object) -> None:
        made.append(1)
        began.set()
        assert go_on.wait(30)
        start(self, *args, **named)  # type: ignore[arg-type]

    def work() -> None:
        digests.append(prepare(datasets.load("cifar10"), "any", SETTINGS, tmp_path / "data", place).digest)

    monkeypatch.setattr(Writer, "__init__", slow)
    threads = [threading.Thread(target=work) for _ in range(2)]
    threads[0].start()
    assert began.wait(30)
    waits(threads[1], capsys)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert len(digests) == 2
    assert digests[0] == digests[1]
    assert len(made) == 1
    assert check(open_store(place)) == 18


def test_a_prepare_that_waited_takes_no_damaged_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_archives.write("cifar10", tmp_path / "data")
    place, cifar = tmp_path / "cifar10", datasets.load("cifar10")
    prepare(cifar, "any", SETTINGS, tmp_path / "data", place)
    content = bytearray((place / "trainval.u8").read_bytes())
    content[-3] ^= 1
    (place / "trainval.u8").write_bytes(content)
    lock = held(place)  # by one that gives up
    waiting = threading.Thread(target=lambda: prepare(cifar, "any", SETTINGS, tmp_path / "data", place))
    waits(waiting, capsys)
    lock.release()
    waiting.join(30)
    assert check(open_store(place)) == 18


def test_a_waiting_prepare_of_other_settings_makes_its_own(tmp_path: Path, archives: Path) -> None:
    place, began, go_on = tmp_path / "toy", threading.Event(), threading.Event()

    def slow() -> Iterator[Example]:
        began.set()
        assert go_on.wait(30)
        yield from noise()

    first = threading.Thread(target=lambda: prepare(dataset(slow), "any", SETTINGS, archives, place))
    first.start()
    assert began.wait(30)
    other = SETTINGS.model_copy(update={"split_seed": 1})
    second = threading.Thread(target=lambda: prepare(dataset(), "any", other, archives, place))
    second.start()
    go_on.set()
    first.join(30)
    second.join(30)
    assert open_store(place).meta["prepare"]["split_seed"] == 1


def test_what_a_killed_prepare_left_is_cleared_away(tmp_path: Path, archives: Path) -> None:
    (tmp_path / ".toy.aside").mkdir()
    (tmp_path / ".toy.aside" / "trainval.u8").write_bytes(b"half")
    prepare(dataset(), "any", SETTINGS, archives, tmp_path / "toy")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".toy.lock", "archives", "toy"]


def held(place: Path) -> FileLock:
    """The lock of a store that somebody is making."""
    lock = FileLock(place.with_name(f".{place.name}.lock"))
    lock.acquire(timeout=0)
    return lock


def test_preparing_any_set_clears_what_killed_prepares_of_others_left(tmp_path: Path, archives: Path) -> None:
    for left in (".gone.aside", ".gone.new.123", ".gone.old.7", ".at_work.aside", ".other", ".a.aside.txt"):
        (tmp_path / left).mkdir()
    lock = held(tmp_path / "at_work")
    prepare(dataset(), "any", SETTINGS, archives, tmp_path / "toy")
    lock.release()
    found = {file.name for file in tmp_path.iterdir() if file.is_dir()}
    assert found == {"archives", "toy", ".at_work.aside", ".other", ".a.aside.txt"}


def test_what_the_one_left_that_was_waited_for_and_killed_is_cleared_away(
    tmp_path: Path, archives: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = held(tmp_path / "toy")
    waiting = threading.Thread(target=lambda: prepare(dataset(), "any", SETTINGS, archives, tmp_path / "toy"))
    waits(waiting, capsys)
    (tmp_path / ".toy.aside").mkdir()
    lock.release()
    waiting.join(30)
    assert check(open_store(tmp_path / "toy")) == 200
    assert not (tmp_path / ".toy.aside").exists()


# Room


def test_a_disk_that_cannot_hold_the_store_is_said_before_the_work(
    tmp_path: Path, archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def counted() -> Iterator[Example]:
        for example in noise(4000):
            read.append(1)
            yield example

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 11_000_000))
    with pytest.raises(
        InputError,
        match=r"toy: .* of 4,000 images will take about 12 MB more, .* has 11 MB left; make room",
    ):
        prepare(dataset(counted, 4000), "any", SETTINGS, archives, tmp_path / "toy")
    assert len(read) < 2000
    assert not (tmp_path / "toy").exists()


class Read:
    """A reading that has come so far as it is told."""

    def __init__(self, share: float) -> None:
        self.told = share

    def share(self) -> float:
        return self.told

    def md5(self) -> dict[str, str]:
        return {"a.bin": "0" * 32}


def test_the_number_of_images_follows_from_the_bytes_that_were_read_where_nothing_tells_it(
    tmp_path: Path, archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = Read(0.0)

    def slowly() -> Iterator[Example]:
        for i, example in enumerate(noise(4000), 1):
            reading.told = i / 4000
            yield example

    contents = Contents(("a", "b"), slowly(), reading=reading)
    toy = Dataset("toy", "Toy", 2, ("a.bin",), {}, lambda _: contents)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 9_000_000))
    with pytest.raises(InputError, match=r"toy: the store of 4,000 images will take about 11 MB more"):
        prepare(toy, "any", SETTINGS, archives, tmp_path / "toy")


def test_images_that_are_smaller_in_front_do_not_stand_for_the_rest(
    tmp_path: Path, archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = Read(0.0)

    def mixed() -> Iterator[Example]:
        for i, example in enumerate(noise(4000), 1):
            reading.told = i / 40_000 if i <= 400 else 0.01 + 0.99 * (i - 400) / 3600
            yield example

    toy = Dataset("toy", "Toy", 2, ("a.bin",), {}, lambda _: Contents(("a", "b"), mixed(), reading=reading))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 16_000_000))
    assert prepare(toy, "any", SETTINGS, archives, tmp_path / "toy").meta["counts"]["test"] == 800


def test_cifar_tells_it_in_its_first_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_archives.write("cifar10", tmp_path / "data")
    generator, written, add = np.random.default_rng(0), list[int](), Writer.add
    with tiny_archives.edited(tmp_path / "data" / "cifar-10-python.tar.gz") as files:
        for member in [member for member in files if "_batch" in member]:
            rows = generator.integers(0, 256, (1000, 3072)).astype(np.uint8)
            files[member] = tiny_archives.python2_pickle({b"labels": [0] * 1000, b"data": rows})

    def adding(self: Writer, *args: object) -> None:
        written.append(1)
        add(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Writer, "add", adding)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 9_000_000))
    with pytest.raises(InputError, match=r"cifar10: the store of [\d,]+ images will take about .* more") as caught:
        prepare(datasets.load("cifar10"), "any", SETTINGS, tmp_path / "data", tmp_path / "cifar10")
    told = int(str(caught.value).partition(" images")[0].rpartition(" ")[2].replace(",", ""))
    assert 4000 < told < 7000  # of 6,000: the archive is read a mebibyte at a time
    assert len(written) == 1024


def test_a_disk_that_just_holds_it_will_do(tmp_path: Path, archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = (200 - 64) * 3072 + 200 * 100  # bytes of pixels and of labels, index, hashes
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, needed - 1))
    with pytest.raises(InputError, match=f"will take about {size(needed)} more"):
        prepare(dataset(), "any", SETTINGS, archives, tmp_path / "toy")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, needed))
    assert prepare(dataset(), "any", SETTINGS, archives, tmp_path / "toy").meta["counts"]["test"] == 40


def test_a_disk_that_fills_up_is_one_sentence_and_leaves_the_old_store(
    tmp_path: Path, archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = prepare(dataset(), "any", SETTINGS, archives, tmp_path / "toy")

    def full(self: Writer, *args: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Writer, "add", full)
    with pytest.raises(
        InputError,
        match=r"toy: could not be .* \(No space left on device\) while .*; make room",
    ):
        prepare(dataset(), "any", SETTINGS, archives, tmp_path / "toy")
    assert check(open_store(tmp_path / "toy")) == 200
    assert open_store(tmp_path / "toy").digest == old.digest
    assert not (tmp_path / ".toy.aside").exists()


def test_a_disk_so_full_that_no_file_can_be_closed_keeps_nothing(
    tmp_path: Path, archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Writer.__init__

    class Full(io.StringIO):
        """Names that still wait to be written when the file is closed."""

        def close(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    def starting(self: Writer, *args: object, **named: object) -> None:
        start(self, *args, **named)  # type: ignore[arg-type]
        self._members.close()
        self._members = Full()  # type: ignore[assignment]

    monkeypatch.setattr(Writer, "__init__", starting)
    with pytest.raises(InputError, match=r"toy: could not be .* \(No space left on device\) while .*; make room"):
        prepare(dataset(), "any", SETTINGS, archives, tmp_path / "toy")
    assert not (tmp_path / ".toy.aside").exists()
    assert not (tmp_path / "toy").exists()


# Another edition


def test_another_md5_explains_whatever_the_reader_stumbles_over(tmp_path: Path, archives: Path) -> None:
    def strange() -> Iterator[Example]:
        yield from noise(3)
        raise InputError("a.bin: meta: no such member")

    sample = Edition({"a.bin": "0" * 32}, train=160, test=40)
    with pytest.raises(InputError, match=r"a\.bin: found md5 .*expected 0{32} of the sample edition"):
        prepare(dataset(strange, sample=sample), "sample", SETTINGS, archives, tmp_path / "toy")
    assert not (tmp_path / "toy").exists()


def test_another_md5_is_refused_though_the_images_can_be_read(tmp_path: Path, archives: Path) -> None:
    sample = Edition({"a.bin": "0" * 32}, train=160, test=40)
    with pytest.raises(InputError, match="found md5"):
        prepare(dataset(sample=sample), "sample", SETTINGS, archives, tmp_path / "toy")
    assert not (tmp_path / "toy").exists()


def test_another_number_of_images_than_the_editions_has_the_md5_checked_before_any_is_read(
    tmp_path: Path, archives: Path
) -> None:
    def untouched() -> Iterator[Example]:
        raise AssertionError
        yield

    sample = Edition({"a.bin": "0" * 32}, train=400, test=100)
    with pytest.raises(InputError, match="found md5"):
        prepare(dataset(untouched, 200, sample=sample), "sample", SETTINGS, archives, tmp_path / "toy")


def test_more_images_than_the_editions_have_the_md5_checked_at_once(
    tmp_path: Path, archives: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, add = list[int](), Writer.add

    def adding(self: Writer, *args: object) -> None:
        written.append(1)
        add(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Writer, "add", adding)
    sample = Edition({"a.bin": "0" * 32}, train=80, test=20)
    with pytest.raises(InputError, match="found md5"):
        prepare(dataset(noise, None, sample=sample), "sample", SETTINGS, archives, tmp_path / "toy")
    assert len(written) == 101


def test_memory_holds_few_images_at_a_time(tmp_path: Path, archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead: list[int] = []
    read, written = 0, 0
    add = Writer.add

    def counted() -> Iterator[Example]:
        nonlocal read
        for example in noise(600):
            read += 1
            ahead.append(read - written)
            yield example

    def adding(self: Writer, *args: object, **named: object) -> None:
        nonlocal written
        written += 1
        add(self, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Writer, "add", adding)
    monkeypatch.setattr(decoding, "_GROUP", 5 * 3072)  # bytes of five images
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(2), raising=False)
    prepare(dataset(counted, None), "any", SETTINGS, archives, tmp_path / "toy")
    assert max(ahead) <= 2 * 3 * 5 + 5  # threads x groups in flight for each x images in a group, and the next group


def stuck(folder: Path) -> dict[str, str]:
    """A digest that takes for ever."""
    threading.Event().wait()
    raise AssertionError


def test_an_interruption_does_not_wait_for_the_md5(tmp_path: Path, archives: Path) -> None:
    def interrupted() -> Iterator[Example]:
        yield from noise(3)
        raise KeyboardInterrupt

    slow = Dataset("toy", "Toy", 2, (), {}, lambda _: Contents(("a", "b"), interrupted()), digest=stuck)
    with pytest.raises(KeyboardInterrupt):
        prepare(slow, "any", SETTINGS, archives, tmp_path / "toy")


def test_a_broken_image_is_told_though_the_md5_takes_long(tmp_path: Path, archives: Path) -> None:
    def broken() -> Iterator[Example]:
        yield Example("train", 0, b"no image", "a.bin: 0")

    slow = Dataset("toy", "Toy", 2, (), {}, lambda _: Contents(("a", "b"), broken()), digest=stuck)
    with pytest.raises(InputError, match=r"a\.bin: 0: not an image"):
        prepare(slow, "any", SETTINGS, archives, tmp_path / "toy")
