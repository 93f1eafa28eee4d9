"""The store's format: what is written is read back, what is damaged is refused."""

import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from finetune import store_writer
from finetune.errors import InputError
from finetune.store import Split, Store, open_store
from finetune.store_check import check
from finetune.store_writer import Writer

SHAPES = [(4, 5), (3, 3), (6, 2), (1, 8), (5, 5)]


def images() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (*shape, 3)).astype(np.uint8) for shape in SHAPES]


def write(place: Path, classes: tuple[str, ...] = ("a", "b"), first: int = 0) -> Store:
    """Training images 0 (val), 1, 2 (val) and test images 3, 4; labels 0 1 0 1 0 from `first`."""
    writer = Writer(place)
    for i, image in enumerate(images()):
        writer.add("train" if i < 3 else "test", (i + first) % 2, image)
    writer.finish(np.array([True, False, True]), {"dataset": place.name, "classes": list(classes)})
    return open_store(place)


def write_late(place: Path) -> Store:
    """The same as `write`, of a stream that mixes the splits and tells them at its end: test, train, test, train, …"""
    writer, originals = Writer(place, together=True), images()
    for i in (3, 0, 4, 1, 2):
        writer.add(None, -1, originals[i])
    writer.place(np.array([2, 0, 2, 0, 0], np.uint8), np.array([1, 0, 0, 1, 0]))
    writer.finish(np.array([True, False, True]), {"dataset": place.name, "classes": ["a", "b"]})
    return open_store(place)


@pytest.mark.parametrize("made", [write, write_late])
def test_pixels_and_labels_come_back_exactly_in_the_order_they_came(
    made: Callable[[Path], Store], tmp_path: Path
) -> None:
    store, originals = made(tmp_path / "toy"), images()
    for name, rows in (("train", [1]), ("val", [0, 2]), ("test", [3, 4])):
        split = store.split(name)
        assert len(split) == len(rows)
        assert split.labels.tolist() == [i % 2 for i in rows]
        for i, row in enumerate(rows):
            assert np.array_equal(split.image(i), originals[row])


def test_pixels_are_uint8_and_labels_int64(tmp_path: Path) -> None:
    split = write(tmp_path / "toy").split("train")
    assert split.image(0).dtype == np.uint8
    assert split.labels.dtype == np.int64


def test_an_image_is_a_copy_that_may_be_written_to(tmp_path: Path) -> None:
    split = write(tmp_path / "toy").split("train")
    split.image(0)[:] = 0
    assert np.array_equal(split.image(0), images()[1])


def test_pixels_are_mapped_from_disk(tmp_path: Path) -> None:
    assert isinstance(write(tmp_path / "toy").split("train").pixels, np.memmap)


def test_pixels_are_written_once_whatever_the_split(tmp_path: Path) -> None:
    write(tmp_path / "toy")
    sizes = [height * width * 3 for height, width in SHAPES]
    assert (tmp_path / "toy" / "trainval.u8").stat().st_size == sum(sizes[:3])
    assert (tmp_path / "toy" / "test.u8").stat().st_size == sum(sizes[3:])


def test_splits_that_are_told_late_share_one_file(tmp_path: Path) -> None:
    store = write_late(tmp_path / "toy")
    assert store.meta["format"] == 3
    assert [file.name for file in store.path.glob("*.u8")] == ["pixels.u8"]
    assert store.path.joinpath("pixels.u8").stat().st_size == sum(height * width * 3 for height, width in SHAPES)


def test_splits_that_are_told_late_have_names_and_sizes_of_their_own(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "toy", together=True)
    for name, size in (("a", 2), ("b\n", 3), ("c", 4), ("d", 5)):
        writer.add(None, -1, np.zeros((size, size, 3), np.uint8), name, original=(10 * size, 10))
    writer.place(np.array([2, 0, 1, 0], np.uint8), np.array([0, 1, 0, 1]))
    assert writer.counts() == {"train": 3, "test": 1}
    assert writer.own_validation().tolist() == [False, True, False]
    assert writer.member("trainval", 1) == "c"
    writer.finish(writer.own_validation(), {"classes": ["a", "b"]})
    store = open_store(tmp_path / "toy")
    assert [store.members(name) for name in ("train", "val", "test")] == [["b\n", "d"], ["c"], ["a"]]
    assert store.array("trainval.original").tolist() == [[30, 10], [40, 10], [50, 10]]
    assert not (tmp_path / "toy" / "members.txt").exists()


def test_a_system_that_writes_less_than_it_is_given_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.writev, list[int]()

    def writev(file: int, parts: Sequence[memoryview]) -> int:
        calls.append(len(parts))
        return real(file, [parts[0][:7]] if len(calls) % 3 else [*parts[:-1], parts[-1][:1]])

    monkeypatch.setattr(store_writer.os, "writev", writev)
    store, originals = write(tmp_path / "toy"), images()
    assert len(calls) > 10
    assert check(store) == 5
    assert np.array_equal(store.split("test").image(1), originals[4])


def test_pixels_are_written_some_mebibytes_at_a_time(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "toy")
    large = np.zeros((1000, 300, 3), np.uint8)
    for written in (0, 1_800_000, 1_800_000, 3_600_000):
        writer.add("train", 0, large)
        assert (tmp_path / "toy" / "trainval.u8").stat().st_size == written
    writer.close()


def test_meta_has_classes_counts_and_what_the_writer_was_told(tmp_path: Path) -> None:
    store = write(tmp_path / "toy")
    assert store.classes == ["a", "b"]
    assert store.meta["counts"] == {"train": 1, "val": 2, "test": 2}
    assert store.meta["dataset"] == "toy"


def test_the_writer_counts_official_splits(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "toy")
    for i, image in enumerate(images()):
        writer.add("train" if i < 3 else "test", i % 2, image)
    assert writer.counts() == {"train": 3, "test": 2}
    assert writer.labels().tolist() == [0, 1, 0]
    writer.close()


def test_a_split_without_images_is_empty(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "toy")
    writer.add("train", 0, images()[0])
    writer.finish(np.array([False]), {"classes": ["a"]})
    store = open_store(tmp_path / "toy")
    assert (len(store.split("train")), len(store.split("val")), len(store.split("test"))) == (1, 0, 0)


# Digest


def test_the_same_content_has_the_same_digest_wherever_it_lies(tmp_path: Path) -> None:
    first, second = write(tmp_path / "one"), write(tmp_path / "two")
    assert first.digest == second.digest
    assert len(first.digest) == 64


def test_the_digest_is_the_same_whether_the_splits_came_early_or_late(tmp_path: Path) -> None:
    early, late = write(tmp_path / "one"), write_late(tmp_path / "two")
    assert early.meta["format"] == 2
    assert early.digest == late.digest


def test_other_labels_have_another_digest(tmp_path: Path) -> None:
    assert write(tmp_path / "one").digest != write(tmp_path / "two", first=1).digest


def test_other_class_names_have_another_digest(tmp_path: Path) -> None:
    assert write(tmp_path / "one").digest != write(tmp_path / "two", classes=("a", "c")).digest


def test_another_validation_split_has_another_digest(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "two")
    for i, image in enumerate(images()):
        writer.add("train" if i < 3 else "test", i % 2, image)
    writer.finish(np.array([False, False, True]), {"dataset": "two", "classes": ["a", "b"]})
    assert open_store(tmp_path / "two").digest != write(tmp_path / "one").digest


# What is refused


def test_no_store_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no store here; make it with `dvc repro -s prepare@cub200`"):
        open_store(tmp_path / "cub200")


def test_a_half_written_store_is_no_store(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "toy")
    writer.add("train", 0, images()[0])
    writer.close()
    with pytest.raises(InputError, match="no store here"):
        open_store(tmp_path / "toy")


def test_another_format_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "toy")
    meta = tmp_path / "toy" / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"format": 99}))
    with pytest.raises(InputError, match=r"store format 99, expected 2 or 3; make it again"):
        open_store(tmp_path / "toy")


@pytest.mark.parametrize(
    ("text", "found"), [("[]", "found a list"), ("{}", "store format None"), ("x", "not valid JSON")]
)
def test_a_damaged_meta_file_is_refused_with_the_stage_that_makes_it_again(
    tmp_path: Path, text: str, found: str
) -> None:
    place = tmp_path / "prepared" / "toy"
    write(place)
    (place / "meta.json").write_text(text)
    with pytest.raises(InputError, match=rf"{place}.*{found}.*make it again with `dvc repro -. -. prepare@toy`"):
        open_store(place)


@pytest.mark.parametrize("key", ["digest", "classes"])
def test_what_the_meta_file_lacks_is_named(tmp_path: Path, key: str) -> None:
    place = tmp_path / "prepared" / "toy"
    write(place)
    (place / "meta.json").write_text('{"format": 2}')
    store = open_store(place)
    with pytest.raises(InputError, match=rf"meta\.json: lacks '{key}', .*`dvc repro -f -s prepare@toy`"):
        getattr(store, key)


def test_truncated_pixels_are_refused_with_both_sizes(tmp_path: Path) -> None:
    store = write(tmp_path / "toy")
    file = tmp_path / "toy" / "test.u8"
    whole = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match=rf"test\.u8: found {whole - 10} bytes, expected {whole}"):
        store.split("test")


def test_truncated_pixels_of_both_splits_are_refused(tmp_path: Path) -> None:
    store = write_late(tmp_path / "toy")
    file = tmp_path / "toy" / "pixels.u8"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"pixels\.u8: found \d+ bytes, expected"):
        store.split("val")  # which has the last of the file


def test_pixels_that_were_emptied_are_refused(tmp_path: Path) -> None:
    store = write(tmp_path / "toy")
    (tmp_path / "toy" / "trainval.u8").write_bytes(b"")
    with pytest.raises(InputError, match=r"trainval\.u8: found 0 bytes"):
        store.split("train")


@pytest.mark.parametrize("name", ["trainval.u8", "trainval.index.npy", "trainval.labels.npy", "train.rows.npy"])
def test_a_file_that_is_gone_is_named(tmp_path: Path, name: str) -> None:
    store = write(tmp_path / "toy")
    (tmp_path / "toy" / name).unlink()
    with pytest.raises(InputError, match=name):
        store.split("train")


# A part of the training split


def labelled(labels: list[int]) -> Split:
    index = np.array([(i * 3, 1, 1) for i in range(len(labels))], np.int64)
    return Split(np.arange(3 * len(labels), dtype=np.uint8), index, np.array(labels))


def offsets(split: Split) -> list[int]:
    return split.index[:, 0].tolist()


def test_a_part_takes_its_share_of_every_class_in_the_same_order() -> None:
    whole = labelled([0, 1] * 20 + [2] * 10)
    part = whole.part(0.3, 0)
    assert np.bincount(part.labels).tolist() == [6, 6, 3]
    assert offsets(part) == sorted(offsets(part))
    assert set(offsets(part)) <= set(offsets(whole))


def test_smaller_parts_lie_in_larger_ones() -> None:
    whole = labelled([i % 7 for i in range(80)])
    parts = [set(offsets(whole.part(fraction, 3))) for fraction in (0.15, 0.3, 0.5, 0.99, 1.0)]
    assert all(small <= large for small, large in itertools.pairwise(parts))
    assert len(parts[0]) < len(parts[1]) < len(parts[2])


def test_a_part_has_an_image_of_every_class() -> None:
    assert labelled([0, 1, 2, 2]).part(0.01, 0).labels.tolist() == [0, 1, 2]


def test_another_seed_takes_another_part() -> None:
    whole = labelled([0] * 50)
    assert offsets(whole.part(0.3, 0)) == offsets(whole.part(0.3, 0))
    assert offsets(whole.part(0.3, 0)) != offsets(whole.part(0.3, 1))


def test_the_whole_is_itself() -> None:
    whole = labelled([0, 1])
    assert whole.part(1.0, 0) is whole
