"""Images of one's own: every layout and packing, what is refused, and where test and validation come from."""

import gzip
import hashlib
import io
import json
import os
import re
import stat
import tarfile
import tracemalloc
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from finetune import params, study
from finetune.datasets import Dataset, _zip_parts, class_folders
from finetune.datasets._zip_parts import zip_parts
from finetune.errors import InputError
from finetune.params import PrepareParams
from finetune.prepare import check_archives, prepare, source_meta
from finetune.store import open_store
from own_images import CLASSES, FORMS, jpeg, pool, split, write
from whole_contents import whole

SHARED = Path(__file__).parents[2] / "shared" / "data"
SETTINGS = PrepareParams(short_side=8, val_fraction=0.25)
ARCHIVES = [form for form in FORMS if Path(form).suffix]
THREE = split(train=4, val=3, test=2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the archive, or the class folders, lie."""
    (tmp_path / "own").mkdir()
    return tmp_path / "own"


@pytest.fixture(params=FORMS)
def place(request: pytest.FixtureRequest, folder: Path) -> Path:
    """What to write in each form: the archive, or the folder itself."""
    return folder / request.param if Path(request.param).suffix else folder


def counts(folder: Path, **options: Any) -> Counter[tuple[str, str]]:
    """Images per split and class name."""
    classes, examples = whole(class_folders.dataset("own", **options).read(folder))
    return Counter((str(example.split), classes[example.label]) for example in examples)


def fault(folder: Path, **options: Any) -> str:
    """The sentence with which reading everything fails."""
    with pytest.raises(InputError) as caught:
        counts(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def each(**images: int) -> dict[tuple[str, str], int]:
    return {(name, kind): count for name, count in images.items() for kind in CLASSES}


def held_out(folder: Path, **options: Any) -> set[str]:
    _, examples = whole(class_folders.dataset("own", **options).read(folder))
    lead = f"{folder.parent.name}/{folder.name}/"
    return {e.member.split(": ")[-1].removeprefix(lead) for e in examples if e.split == "test"}


# Layouts


def test_train_and_test_are_what_they_say(place: Path, folder: Path) -> None:
    write(place, split(train=4, test=2))
    assert counts(folder) == each(train=4, test=2)


def test_val_beside_train_alone_is_the_test_split(place: Path, folder: Path) -> None:
    write(place, split(train=4, val=2))
    assert counts(folder) == each(train=4, test=2)


def test_val_beside_train_and_test_is_the_validation_split(place: Path, folder: Path) -> None:
    write(place, THREE)
    assert counts(folder) == each(train=4, val=3, test=2)


def test_a_pool_is_split_by_ratio_in_every_class(place: Path, folder: Path) -> None:
    write(place, pool(10))
    assert counts(folder, test_fraction=0.3) == each(train=7, test=3)


@pytest.mark.parametrize("lead", ["own2/", "a/b.c/d e/"])
@pytest.mark.parametrize("files", [split(train=4, test=2), split(train=3, val=1, test=1), pool(5)])
def test_leading_folders_are_skipped(lead: str, files: dict[str, bytes], place: Path, folder: Path) -> None:
    write(place, {f"{lead}{name}": data for name, data in files.items()})
    assert sum(counts(folder).values()) == len(files)


def test_train_may_be_a_class(folder: Path) -> None:
    write(folder, pool(5, ("train", "bus", "val")))
    assert {kind for _, kind in counts(folder)} == {"train", "bus", "val"}


def test_classes_are_sorted_whatever_the_order_in_the_archive(folder: Path) -> None:
    write(folder / "a.tar", dict(reversed(split(("b", "B", "10", "9"), train=1, test=1).items())))
    assert class_folders.dataset("own").read(folder).classes == ("10", "9", "B", "b")


def test_a_class_may_lack_in_test(folder: Path) -> None:
    write(folder, {**split(train=2), **split(("ant", "cat"), test=1)})
    assert set(counts(folder)) == {*each(train=1), ("test", "ant"), ("test", "cat")}


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".Png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"])
def test_images_are_known_by_their_suffix_in_either_case(suffix: str, folder: Path) -> None:
    write(folder, {name.replace(".jpg", suffix): data for name, data in split(train=2, test=1).items()})
    assert counts(folder) == each(train=2, test=1)


def test_what_is_no_image_or_hidden_is_passed_over(place: Path, folder: Path) -> None:
    extra = ["LICENSE", "train.csv", "train/labels.txt", "train/ant/Thumbs.db", "train/ant/notes/a.txt", ".git/a.jpg"]
    extra += ["train/ant/._0.jpg", "__MACOSX/train/ant/._0.jpg", "__MACOSX/x.jpg", "train/.cache/a.jpg", "docs/a.pdf"]
    write(place, dict.fromkeys(extra, b"?") | split(train=2, test=1))
    assert counts(folder) == each(train=2, test=1)


def test_dotted_names_are_read(folder: Path) -> None:
    write(folder / "a.tar", {"./": b""} | {f"./{name}": data for name, data in split(train=2, test=1).items()})
    assert counts(folder) == each(train=2, test=1)


def test_a_zip_made_with_backslashes_is_read(folder: Path) -> None:
    write(folder / "a.zip", {name.replace("/", "\\"): data for name, data in split(train=2, test=1).items()})
    assert counts(folder) == each(train=2, test=1)


def test_links_in_a_folder_are_followed(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", split(train=2, test=1))
    (folder / "train").symlink_to(tmp_path / "elsewhere" / "train")
    for name in CLASSES:
        (folder / "test" / name).mkdir(parents=True)
        (folder / "test" / name / "1.jpg").symlink_to(tmp_path / "elsewhere" / "test" / name / "0.jpg")
    assert counts(folder) == each(train=2, test=1)


def test_members_are_not_kept_while_a_tar_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    real = tarfile.TarFile.next

    def spied(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        kept.append(len(tar.members))  # type: ignore[attr-defined]
        return real(tar)

    write(folder / "a.tar.gz", split(train=20, test=10))
    monkeypatch.setattr(tarfile.TarFile, "next", spied)
    counts(folder)
    assert max(kept) <= 1
    assert len(kept) > 90


# The pool's test split


def test_the_same_images_are_for_test_however_the_pool_is_packed(tmp_path: Path) -> None:
    files, chosen = pool(20), []
    for form in FORMS:
        at = tmp_path / form.replace(".", "_")
        at.mkdir()
        write(at / form if Path(form).suffix else at, dict(reversed(files.items())) if form == "own.zip" else files)
        chosen.append(held_out(at))
    assert all(names == chosen[0] for names in chosen)


def test_a_leading_folder_changes_no_choice(tmp_path: Path) -> None:
    write(tmp_path / "a", pool(20))
    write(tmp_path / "b", {f"lead/{name}": data for name, data in pool(20).items()})
    assert {f"lead/{name}" for name in held_out(tmp_path / "a")} == held_out(tmp_path / "b")


def test_another_test_seed_chooses_others(folder: Path) -> None:
    write(folder, pool(20))
    assert held_out(folder, test_seed=1) != held_out(folder, test_seed=0)


def test_a_smaller_fraction_chooses_among_the_same(folder: Path) -> None:
    write(folder, pool(20))
    assert held_out(folder, test_fraction=0.1) < held_out(folder, test_fraction=0.3)


def test_images_that_join_the_pool_move_few(tmp_path: Path) -> None:
    write(tmp_path / "a", pool(100))
    write(tmp_path / "b", pool(110))
    before, after = held_out(tmp_path / "a"), held_out(tmp_path / "b")
    assert len(before & after) >= 0.8 * len(before)


@pytest.mark.parametrize(("images", "test"), [(1, 0), (2, 1), (3, 1), (5, 1), (10, 2)])
def test_test_takes_one_image_at_least_and_leaves_one(images: int, test: int, folder: Path) -> None:
    write(folder, pool(images))
    assert counts(folder).total() == 3 * images
    assert counts(folder)["test", "ant"] == test


# What is refused


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({**split(train=2, test=1), "x.jpg": b""}, "x.jpg: an image outside the class folders"),
        ({**split(train=2, test=1), "train/x.jpg": b""}, "train/x.jpg: an image outside the class folders"),
        ({**split(train=2), "test/7.jpg": b""}, "test/7.jpg: an image outside the class folders"),
        ({**pool(3), "ant/red/x.jpg": b""}, "ant/red/x.jpg: lies in a folder within the class folder ant/"),
        ({**split(train=2, test=1), "test/ant/a/b/x.jpg": b""}, "x.jpg: lies in a folder within the class folder test"),
        ({**split(train=2, test=1), "test/dog/1.jpg": b""}, "test/dog/1.jpg: there is no class 'dog' in train/"),
        ({**THREE, "val/dog/1.jpg": b""}, "val/dog/1.jpg: there is no class 'dog' in train/"),
        ({**pool(3), "dog/": b""}, "dog/: found no image in it"),
        ({**pool(3), "dog/list.txt": b""}, "dog/: found no image in it"),
        ({**split(train=2, test=1), "train/dog/": b""}, "train/dog/: found no image in it"),
        ({**split(train=2, val=1), "test/": b""}, "test/: found no image in it"),
        (split(train=2), "found images in train/, expected train/ with test/ or val/"),
        (split(val=2, test=1), "found images in test/, val/, expected train/ with"),
        (split(train=2, valid=1), "found images in train/, valid/, expected train/ with"),
        (split(("ant",), train=2, test=1), "found the one class folder ant/"),
        (pool(2, ("ant",)), "found the one class folder ant/"),
        ({"notes.txt": b"", "ant/a.xml": b""}, "found no image"),
    ],
)
def test_a_layout_that_is_none_is_refused(files: dict[str, bytes], expected: str, folder: Path, tmp_path: Path) -> None:
    for form in ("own.tar", "own.tar.gz", "own.zip", "bare"):
        at = tmp_path / f"in {form}"
        at.mkdir()
        place = write(at / form if Path(form).suffix else at, files)
        message = fault(at)
        assert message.startswith(f"{place}: ")
        assert expected in message


@pytest.mark.parametrize(
    ("first", "wrong"),
    [
        ("ant/0.jpg", "x.jpg"),
        ("train/ant/0.jpg", "train/x.jpg"),
        ("a/b/ant/0.jpg", "a/x.jpg"),
        ("ant/0.jpg", "bee/red/0.jpg"),
        ("train/ant/0.jpg", "test/ant/red/0.jpg"),
        ("ant/red/0.jpg", "bee/0.jpg"),
    ],
)
def test_an_image_too_deep_or_outside_is_told_when_it_comes(first: str, wrong: str, folder: Path) -> None:
    behind = {f"{first.rpartition('/')[0]}/{i}.jpg": b"" for i in range(1, 1000)}
    write(folder / "own.tar.gz", {first: b"", wrong: b"", **behind})
    seen = []
    with pytest.raises(InputError, match=r"outside the class folders|in a folder within the class folder"):
        seen.extend(class_folders.dataset("own").read(folder).examples)
    assert len(seen) <= 1


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), "found nothing, expected a .tar, .tar.gz, .tgz or .zip, or folders of images; bring one, or pull it with"),
        (("notes.txt",), "found notes.txt, expected a .tar,"),
        (("own.tar.xz",), "found own.tar.xz, expected a .tar, .tar.gz, .tgz or .zip, or folders of images; pack it"),
        (tuple("abcdefg"), "found a, b, c, d, e, …, expected a .tar"),
        (("a.tar", "b.zip"), "found a.tar, b.zip, expected"),
    ],
)
def test_a_folder_without_one_archive_is_refused(names: tuple[str, ...], expected: str, folder: Path) -> None:
    for name in names:
        (folder / name).touch()
    assert expected in fault(folder)


def test_an_archive_beside_class_folders_is_read_when_it_is_named(folder: Path) -> None:
    write(folder, pool(3))
    write(folder / "a.tar", split(train=4, test=2))
    assert "found a.tar, ant, expected one archive" in fault(folder)
    assert counts(folder, archive="a.tar") == each(train=4, test=2)


@pytest.mark.parametrize("form", ARCHIVES)
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_archive_is_named(form: str, kept: float, folder: Path) -> None:
    files = {name: os.urandom(5000) for name in split(train=4, test=2)}
    whole = write(folder / form, files).read_bytes()
    (folder / form).write_bytes(whole[: int(kept * len(whole))])
    message = fault(folder)
    assert message.startswith(f"{folder / form}: ")
    assert "truncated, damaged or unreadable" in message


def test_a_tar_cut_between_two_members_is_noticed(folder: Path) -> None:
    place = write(folder / "a.tar", split(train=4, test=2))
    with tarfile.open(place) as tar:
        end = tar.getmembers()[-1].offset
    place.write_bytes(place.read_bytes()[:end])
    assert "the mark of the archive's end is missing" in fault(folder)


def test_a_tar_with_a_broken_header_in_its_middle_is_noticed(folder: Path) -> None:
    place = write(folder / "a.tar", split(train=4, test=2))
    with tarfile.open(place) as tar:
        at = tar.getmembers()[9].offset
    content = bytearray(place.read_bytes())
    content[at : at + 512] = b"\xff" * 512
    place.write_bytes(content)
    assert "the mark of the archive's end is missing" in fault(folder)


def test_a_wrong_checksum_is_noticed(folder: Path) -> None:
    place = write(folder / "a.tgz", split(train=4, test=2))
    content = bytearray(place.read_bytes())
    content[-8] ^= 1  # gzip ends with CRC-32 and length, 4 bytes each
    place.write_bytes(content)
    assert re.search(r"a\.tgz: (\S+\.jpg: )?truncated, damaged", fault(folder))


def test_a_damaged_member_of_a_zip_is_named(folder: Path) -> None:
    place = folder / "a.zip"
    with zipfile.ZipFile(place, "w", zipfile.ZIP_STORED) as zipped:
        for name, data in split(train=4, test=2).items():
            zipped.writestr(name, data)
    content = place.read_bytes()
    place.write_bytes(content.replace(jpeg(1), jpeg(1)[:-9] + bytes(9), 1))
    assert "a.zip: train/bee/0.jpg: truncated, damaged or unreadable (Bad CRC-32" in fault(folder)


@pytest.mark.parametrize("members", [1, 2, 5, 18, 100])
@pytest.mark.parametrize("lead", [b"", b"#!/bin/sh\n"])
def test_a_zip_is_read_in_parts_of_any_size(
    members: int, lead: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write(folder / "a.zip", split(train=4, test=2))
    with zipfile.ZipFile(place, "a") as zipped:
        zipped.comment = b"PK\1\2 is no entry"
    place.write_bytes(lead + place.read_bytes())  # as a .zip that unpacks itself
    monkeypatch.setattr(_zip_parts, "_MEMBERS", members)
    with zipfile.ZipFile(place) as zipped:
        expected = [(name, zipped.read(name)) for name in zipped.namelist()]
    with place.open("rb") as contents:
        parts = [(info.filename, part.read(info)) for part in zip_parts(place, contents) for info in part.infolist()]
    assert parts == expected
    assert counts(folder) == each(train=4, test=2)


def test_a_zip_of_the_large_format_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    place = write(folder / "a.zip", split(train=4, test=2))
    monkeypatch.undo()
    assert b"PK\6\6" in place.read_bytes()
    assert counts(folder) == each(train=4, test=2)


def test_a_zip_whose_directory_is_broken_is_named(folder: Path) -> None:
    place = write(folder / "a.zip", split(train=4, test=2))
    content = place.read_bytes()
    at = content.rindex(b"PK\1\2")
    for broken in (b"PK\1\3", b"PK\1\2" + content[at + 4 : at + 28] + b"\xff\xff"):
        place.write_bytes(content[:at] + broken + content[at + len(broken) :])
        assert re.search(r"a\.zip: (\S+ )?truncated, damaged or unreadable \(a \w+ central", fault(folder))


@pytest.mark.parametrize("form", ["own.tar", "own.tar.gz", "own"])
def test_a_class_name_that_is_not_utf8_is_refused(form: str, folder: Path) -> None:
    write(folder / form if Path(form).suffix else folder, split((*CLASSES, "caf\udce9"), train=2, test=1))
    assert r"/caf\xe9/: this class folder's name is not UTF-8, expected one that" in fault(folder)


@pytest.mark.parametrize("form", ["own.tar", "own.tar.gz", "own"])
def test_a_file_name_that_is_not_utf8_is_read_and_kept(form: str, folder: Path, tmp_path: Path) -> None:
    names = {f"{kind}/caf\udce9 {i}.jpg": jpeg(label, i) for label, kind in enumerate(CLASSES) for i in range(5)}
    write(folder / form if Path(form).suffix else folder, names)
    store = prepare(own(), "any", SETTINGS, folder, tmp_path / "store")
    assert sum(member.count("caf\udce9") for split in ("train", "val", "test") for member in store.members(split)) == 15


@pytest.mark.parametrize("escape", ["../x.jpg", "/etc/x.jpg", "train/../../x.jpg", "../.x"])
@pytest.mark.parametrize("form", ARCHIVES)
def test_a_path_that_leaves_its_folder_is_refused(escape: str, form: str, folder: Path) -> None:
    write(folder / form, {**split(train=2, test=1), escape: b""})
    assert f"{form}: {escape}: a path that leaves its folder" in fault(folder)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_link_or_device_in_a_tar_is_refused(kind: bytes, folder: Path) -> None:
    with tarfile.open(folder / "a.tar", "w") as tar:
        link = tarfile.TarInfo("train/ant/1.jpg")
        link.type, link.linkname = kind, "/etc/passwd"
        tar.addfile(link)
    assert "a.tar: train/ant/1.jpg: a link or a device" in fault(folder)


def test_a_link_in_a_zip_is_refused(folder: Path) -> None:
    with zipfile.ZipFile(folder / "a.zip", "w") as zipped:
        link = zipfile.ZipInfo("train/ant/1.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(link, "/etc/passwd")
    assert "a.zip: train/ant/1.jpg: a link or a device" in fault(folder)


def test_an_encrypted_member_is_refused(folder: Path) -> None:
    place = write(folder / "a.zip", split(train=2, test=1))
    content = bytearray(place.read_bytes())
    at = content.index(b"PK\x01\x02")  # the first entry of the central directory; its flags stand 8 bytes on
    content[at + 8] |= 1
    place.write_bytes(content)
    assert "a.zip: train/ant/0.jpg: encrypted, expected a .zip without a password" in fault(folder)


@pytest.mark.parametrize("form", ["a.tar", "a.tar.gz", "a.zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_comes_twice_is_refused(form: str, folder: Path) -> None:
    place = write(folder / form.removesuffix(".gz"), split(train=2, test=1))
    if form == "a.zip":
        with zipfile.ZipFile(place, "a") as zipped:
            zipped.writestr("train/bee/1.jpg", b"")
    else:
        with tarfile.open(place, "a") as tar:
            tar.addfile(tarfile.TarInfo("train/bee/1.jpg"), io.BytesIO())
    if form == "a.tar.gz":
        (folder / form).write_bytes(gzip.compress(place.read_bytes()))
        place.unlink()
    assert f"{form}: train/bee/1.jpg: this member comes twice" in fault(folder)


def test_a_broken_link_in_a_folder_is_refused(folder: Path) -> None:
    write(folder, split(train=2, test=1))
    (folder / "train" / "ant" / "x.jpg").symlink_to("nowhere.jpg")
    assert f"{folder}: train/ant/x.jpg: a broken link or a device" in fault(folder)


def test_a_link_that_leads_back_is_refused(folder: Path) -> None:
    write(folder, split(train=2, test=1))
    (folder / "train" / "ant" / "loop").symlink_to(folder / "train" / "ant")
    assert "does a link lead back?" in fault(folder)


# Through prepare


def own(**options: Any) -> Dataset:
    return class_folders.dataset("own", **options)


def test_validation_is_carved_out_of_train_where_there_is_none(folder: Path, tmp_path: Path) -> None:
    write(folder / "a.tar", split(train=8, val=2))
    store = prepare(own(), "official", SETTINGS, folder, tmp_path / "store")
    assert store.meta["counts"] == {"train": 18, "val": 6, "test": 6}
    assert store.classes == list(CLASSES)


def test_a_validation_split_of_its_own_is_taken_whatever_the_fraction(folder: Path, tmp_path: Path) -> None:
    write(
        folder / "a.zip", {name: THREE[name] for name in sorted(THREE, key=lambda name: name[::-1])}
    )  # the splits mixed
    for fraction in (0.0, 0.5):
        settings = PrepareParams(short_side=8, val_fraction=fraction)
        store = prepare(own(), "any", settings, folder, tmp_path / "store")
        assert store.meta["counts"] == {"train": 12, "val": 9, "test": 6}
        for name, count in (("train", 4), ("val", 3), ("test", 2)):
            images = store.split(name)
            assert sorted(images.labels) == sorted([0, 1, 2] * count)


def test_a_broken_image_is_named_with_archive_and_member(folder: Path, tmp_path: Path) -> None:
    write(folder / "a.tar", {**split(train=4, test=2), "train/cat/9.jpg": b"no image"})
    with pytest.raises(InputError, match=r"a\.tar: train/cat/9\.jpg: not an image"):
        prepare(own(), "any", SETTINGS, folder, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_broken_image_in_a_folder_is_named_as_it_lies_below_data(tmp_path: Path) -> None:
    folder = write(tmp_path / "data" / "x", {**pool(4), "ant/z.jpg": b"no image"})
    with pytest.raises(InputError, match=r"^data/x/ant/z\.jpg: not an image"):
        prepare(own(), "any", SETTINGS, folder, tmp_path / "store")


def test_the_store_tells_edition_options_and_the_archives_md5(folder: Path, tmp_path: Path) -> None:
    write(folder / "a.tar", pool(10))
    meta = prepare(own(test_seed=3), "sample", SETTINGS, folder, tmp_path / "store").meta
    assert meta["edition"] == "any"
    assert meta["options"] == {"reader": "class_folders", "test_fraction": 0.2, "test_seed": 3}
    assert list(meta["archives_md5"]) == ["a.tar"]
    read = open_store(tmp_path / "store").meta
    md5 = check_archives(own(), "sample", folder)
    assert source_meta(own(test_seed=3), "sample", md5, SETTINGS).items() <= read.items()
    assert not source_meta(own(test_seed=4), "sample", md5, SETTINGS).items() <= read.items()


def test_the_md5_of_a_folder_is_that_of_its_images_by_their_paths(folder: Path) -> None:
    write(folder, {"b/1.jpg": b"abc", "a/2.jpg": b"", "notes.txt": b"x"})
    # the hash that `dvc add` gave a folder of these two images
    assert own().digest(folder) == {".": "90c1d8d4bb55d5f7a0e92d43c3aebf03"}  # type: ignore[misc]


def test_the_md5_of_a_folder_is_that_of_the_list_that_dvc_writes(folder: Path) -> None:
    names = ["ant/1.jpg", "ant-eater/1.jpg", "ant/caf\udce9.JPG", "ant/\u00e9.png", "ant!/2.gif", 'ant/a b".jpg']
    write(folder, {name: name.encode(errors="surrogateescape") for name in names})
    listed = [
        {"md5": hashlib.md5(name.encode(errors="surrogateescape")).hexdigest(), "relpath": name}
        for name in sorted(names)
    ]
    whole = hashlib.md5(json.dumps(listed, sort_keys=True).encode()).hexdigest()
    assert own().digest(folder) == {".": whole}  # type: ignore[misc]


def test_images_that_come_or_go_while_a_folder_is_read_are_noticed(folder: Path) -> None:
    write(folder, split(train=2, test=1))
    contents = own().read(folder)
    whole(contents)
    (folder / "train" / "bee" / "9.jpg").write_bytes(jpeg(1))
    assert contents.reading is not None
    with pytest.raises(InputError, match=r"train/bee: 2 images were read and 3 are there now"):
        contents.reading.md5()


@pytest.mark.parametrize("name", ["own.tar", "own.tgz"])
def test_a_tar_is_known_by_its_bytes_whatever_its_name(name: str, folder: Path) -> None:
    write(folder / f"x{'.tgz' if name == 'own.tar' else '.tar'}", split(train=4, test=2)).rename(folder / name)
    assert counts(folder) == each(train=4, test=2)


@pytest.mark.parametrize("form", ["own.tar", "own.tar.gz", "own.zip", "own"])
def test_names_are_not_kept(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_zip_parts, "_MEMBERS", 100)

    def peak(classes: int) -> int:
        folder, files = tmp_path / f"{classes}", {f"{i // 60}/{i:0100}.jpg": b"" for i in range(60 * classes)}
        write(folder / form if Path(form).suffix else folder, files)
        for _ in range(2):  # what is imported and cached at the first time is not counted
            tracemalloc.start()
            if form == "own":  # an archive is hashed a mebibyte at a time
                own().digest(folder)  # type: ignore[misc]
            assert sum(1 for _ in own().read(folder).examples) == len(files)
            found = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return found

    assert peak(80) - peak(40) < 60 * (80 - 40) * 60  # bytes for each image; a path takes 150


def test_the_same_images_in_another_form_give_an_equal_split(tmp_path: Path) -> None:
    digests = set()
    for form in ("own.tar", "own.tar.gz", "own"):
        at = tmp_path / form.replace(".", "_")
        files = dict(sorted(pool(10).items()))  # a folder is read in the alphabet's order
        write(at / form if Path(form).suffix else at, files)
        digests.add(prepare(own(), "any", SETTINGS, at, tmp_path / f"store {form}").digest)
    assert len(digests) == 1


# Through params.yaml


def test_an_entry_with_a_reader_is_found_by_its_name(tiny: dict[str, Any], folder: Path) -> None:
    entry = {"reader": "class_folders", "title": "My Own", "test_fraction": 0.5, "archive": "b.zip"}
    tiny["datasets"]["mine"] = entry
    tiny["study"]["datasets"] = ["mine"]
    read = params.parse(tiny)
    study.check_run(read, "mine", "same_lr")
    study.check_readers(["mine", "cub200"], read.datasets)
    found = study.dataset_of(read, "mine")
    assert (found.name, found.title, found.archives) == ("mine", "My Own", ("b.zip",))
    write(folder / "b.zip", pool(4))
    assert Counter(example.split for example in found.read(folder).examples) == {"train": 6, "test": 6}


def test_a_data_set_with_a_file_of_its_own_is_loaded_by_its_name(tiny: dict[str, Any]) -> None:
    tiny["datasets"]["cub200"] = {}
    assert study.dataset_of(params.parse(tiny), "cub200").title == "CUB-200-2011"


def test_a_name_that_has_a_file_of_its_own_is_refused(tiny: dict[str, Any]) -> None:
    tiny["datasets"]["cifar10"] = {"reader": "class_folders"}
    with pytest.raises(InputError, match=r"datasets\.cifar10\.reader: cifar10 has a reader of its own.*another name"):
        study.check_run(params.parse(tiny), "cifar10", "same_lr")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"reader": "folders"}, r"datasets\.toy\.reader: found 'folders' .* 'class_folders'"),
        ({"title": "Toy"}, r"datasets\.toy: title is for data of one's own; add reader: class_folders"),
        ({"test_fraction": 0.3}, r"test_fraction is for data of one's own"),
        ({"reader": "class_folders", "archive": "../a.tar"}, r"archive '\.\./a\.tar' must be the name of a \.tar or"),
        ({"reader": "class_folders", "archive": "a.rar"}, r"archive 'a\.rar' must be the name"),
        ({"reader": "class_folders", "test_fraction": 1.0}, r"test_fraction: found 1\.0 .* below 1"),
        ({"reader": "class_folders", "tset_seed": 1}, r"did you mean 'test_seed'"),
    ],
)
def test_a_wrong_entry_is_refused(entry: dict[str, Any], expected: str, tiny: dict[str, Any]) -> None:
    tiny["datasets"]["toy"] = entry
    with pytest.raises(InputError, match=expected):
        params.parse(tiny)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared is absent")
def test_imagenette_in_imagenets_layout(tmp_path: Path) -> None:
    store = prepare(own(), "official", PrepareParams(short_side=64), SHARED / "imagenette", tmp_path / "store")
    assert store.meta["counts"] == {"train": 540, "val": 60, "test": 200}
    assert store.classes[:2] == ["n01440764", "n02102040"]
    assert len(store.classes) == 10
    for name, each_class in (("train", 54), ("val", 6), ("test", 20)):
        assert Counter(store.split(name).labels.tolist()) == dict.fromkeys(range(10), each_class)
