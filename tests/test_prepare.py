"""Archives to store: whole or not at all, of the right edition, split by the book."""

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny_archives
from finetune import datasets
from finetune.datasets import SPLITS, Contents, Dataset, Edition, Example, Late
from finetune.errors import InputError
from finetune.params import PrepareParams
from finetune.prepare import check_archives, prepare, stratified
from finetune.store import Store, open_store

MakeToy = Callable[..., Dataset]
SETTINGS = PrepareParams(short_side=32, val_fraction=0.25)
MD5 = hashlib.md5(b"toy").hexdigest()


def pixels(store: Store, split: str) -> list[np.ndarray]:
    opened = store.split(split)
    return [opened.image(i) for i in range(len(opened))]


def names_in(folder: Path) -> list[str]:
    """What lies there, but for locks."""
    return sorted(file.name for file in folder.iterdir() if file.suffix != ".lock")


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def few(train: int = 6, test: int = 2, damaged_after: int | None = None) -> Iterator[Example]:
    """Noise in one class; after `damaged_after` images the archive turns out to be damaged."""
    generator = np.random.default_rng(3)
    for i in range(train + test):
        if i == damaged_after:
            raise InputError("toy.bin: images/7.jpg: truncated; get the archive again")
        image = generator.integers(0, 256, (8 + i, 9, 3)).astype(np.uint8)
        yield Example("train" if i < train else "test", 0, image, f"toy.bin: {i}")


# The way through


def test_arrays_come_through_exactly_and_in_order(tmp_path: Path, toy_archives: Path, make_toy: MakeToy) -> None:
    store = prepare(make_toy(examples=few), "any", SETTINGS, toy_archives, tmp_path / "toy")
    examples = list(few())
    chosen = stratified(np.zeros(6, np.int64), 0.25, 0)
    expected = {
        "train": [e.image for e, val in zip(examples, chosen, strict=False) if not val],
        "val": [e.image for e, val in zip(examples, chosen, strict=False) if val],
        "test": [e.image for e in examples[6:]],
    }
    for split, images in expected.items():
        assert all(np.array_equal(a, b) for a, b in zip(pixels(store, split), images, strict=True))


def test_order_holds_over_more_examples_than_are_decoded_at_a_time(
    tmp_path: Path, toy_archives: Path, make_toy: MakeToy
) -> None:
    def numbered() -> Iterator[Example]:
        for i in range(400):
            side = 200 if i % 40 == 0 else 8  # some take longer than those behind them
            yield Example("train", 0, png(np.full((side, side, 3), i % 251, np.uint8)), f"toy.bin: {i}")
        yield Example("test", 0, np.zeros((8, 8, 3), np.uint8), "toy.bin: last")

    settings = PrepareParams(short_side=8, val_fraction=0)
    store = prepare(make_toy(examples=numbered), "any", settings, toy_archives, tmp_path / "toy")
    assert [int(image[0, 0, 0]) for image in pixels(store, "train")] == [i % 251 for i in range(400)]


def late(early: Dataset, mixed: np.ndarray) -> Dataset:
    """The same data set, whose images come in the order `mixed` and whose splits and labels come after them."""

    def read(folder: Path) -> Contents:
        contents = early.read(folder)
        examples = list(contents.examples)
        told = [examples[i] for i in mixed]
        splits = np.array([SPLITS.index(example.split or "train") for example in told], np.uint8)
        labels = np.array([example.label for example in told])
        stream = (replace(example, split=None, label=-1) for example in told)
        return Contents((), stream, late=lambda: Late(contents.classes, splits, labels), placed=False)

    return replace(early, read=read)


def test_splits_and_labels_that_come_last_give_the_same_store(
    tmp_path: Path, toy_archives: Path, make_toy: MakeToy
) -> None:
    early = make_toy()  # 36 training images, then 12 for test
    mixed = np.insert(np.arange(36), np.arange(12) * 3, np.arange(36, 48))
    one = prepare(early, "any", SETTINGS, toy_archives, tmp_path / "one")
    other = prepare(late(early, mixed), "any", SETTINGS, toy_archives, tmp_path / "other")
    assert other.digest == one.digest
    for split in ("train", "val", "test"):
        assert other.split(split).labels.tolist() == one.split(split).labels.tolist()
        assert other.members(split) == one.members(split)
        assert all(np.array_equal(a, b) for a, b in zip(pixels(other, split), pixels(one, split), strict=True))
    assert {k: v for k, v in other.meta.items() if k not in ("format", "files", "seal")} == {
        k: v for k, v in one.meta.items() if k not in ("format", "files", "seal")
    }


def test_what_is_wrong_with_late_labels_leaves_nothing(tmp_path: Path, toy_archives: Path, make_toy: MakeToy) -> None:
    def damaged() -> Late:
        raise InputError("toy.bin: labels.txt: not UTF-8 text")

    contents = Contents((), (replace(example, split=None) for example in few()), late=damaged, placed=False)
    toy = replace(make_toy(), read=lambda folder: contents)
    with pytest.raises(InputError, match=r"labels\.txt: not UTF-8"):
        prepare(toy, "any", SETTINGS, toy_archives, tmp_path / "toy")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "cub200", "cars196", "food101"])
def test_the_md5s_of_a_store_are_those_of_its_archives(name: str, tmp_path: Path) -> None:
    tiny_archives.write(name, tmp_path / "data")
    store = prepare(datasets.load(name), "any", SETTINGS, tmp_path / "data", tmp_path / "store")
    assert store.meta["archives_md5"] == {
        file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in (tmp_path / "data").iterdir()
    }


def test_files_are_decoded_and_shrunk(tmp_path: Path, toy_archives: Path, make_toy: MakeToy) -> None:
    def photographs() -> Iterator[Example]:
        for split in ("train", "train", "test"):
            yield Example(split, 0, png(np.full((64, 128, 3), 90, np.uint8)), "toy.bin: a.png")

    settings = PrepareParams(short_side=32, val_fraction=0)
    store = prepare(make_toy(examples=photographs), "any", settings, toy_archives, tmp_path / "toy")
    (test,) = pixels(store, "test")
    assert np.array_equal(test, np.full((32, 64, 3), 90))


def test_meta_tells_where_the_store_comes_from(tmp_path: Path, toy_archives: Path, make_toy: MakeToy) -> None:
    store = prepare(make_toy(), "any", SETTINGS, toy_archives, tmp_path / "toy")
    assert store.meta["dataset"] == "toy"
    assert store.meta["edition"] == "any"
    assert store.meta["archives_md5"] == {"toy.bin": MD5}
    assert store.meta["prepare"] == {"short_side": 32, "val_fraction": 0.25, "split_seed": 0}
    assert store.classes == ["red", "green", "blue"]
    assert store.meta["counts"] == {"train": 27, "val": 9, "test": 12}


def test_twice_gives_the_same_digest(tmp_path: Path, toy_archives: Path, make_toy: MakeToy) -> None:
    first, second = (prepare(make_toy(), "any", SETTINGS, toy_archives, tmp_path / name) for name in ("a", "b"))
    assert first.digest == second.digest


def test_another_split_seed_gives_another_digest(tmp_path: Path, toy_archives: Path, make_toy: MakeToy) -> None:
    other = SETTINGS.model_copy(update={"split_seed": 1})
    first, second = (prepare(make_toy(), "any", s, toy_archives, tmp_path / "toy") for s in (SETTINGS, other))
    assert first.digest != second.digest


def test_a_new_store_replaces_the_old(tmp_path: Path, toy_archives: Path, make_toy: MakeToy) -> None:
    prepare(make_toy(train=4), "any", SETTINGS, toy_archives, tmp_path / "toy")
    prepare(make_toy(train=8), "any", SETTINGS, toy_archives, tmp_path / "toy")
    assert open_store(tmp_path / "toy").meta["counts"] == {"train": 18, "val": 6, "test": 12}
    assert names_in(tmp_path) == ["toy"]


# Whole or not at all


def test_a_reader_that_fails_midway_leaves_nothing(tmp_path: Path, toy_archives: Path, make_toy: MakeToy) -> None:
    broken = make_toy(examples=lambda: few(damaged_after=5))
    with pytest.raises(InputError, match=r"images/7\.jpg: truncated"):
        prepare(broken, "any", SETTINGS, toy_archives, tmp_path / "prepared" / "toy")
    assert names_in(tmp_path / "prepared") == []


def test_the_old_store_survives_a_reader_that_fails_midway(
    tmp_path: Path, toy_archives: Path, make_toy: MakeToy
) -> None:
    old = prepare(make_toy(), "any", SETTINGS, toy_archives, tmp_path / "toy")
    with pytest.raises(InputError, match="truncated"):
        prepare(make_toy(examples=lambda: few(damaged_after=5)), "any", SETTINGS, toy_archives, tmp_path / "toy")
    assert open_store(tmp_path / "toy").digest == old.digest
    assert names_in(tmp_path) == ["toy"]


def test_the_old_store_survives_an_interruption(tmp_path: Path, toy_archives: Path, make_toy: MakeToy) -> None:
    def interrupted() -> Iterator[Example]:
        yield from few(train=3, test=0)
        raise KeyboardInterrupt

    old = prepare(make_toy(), "any", SETTINGS, toy_archives, tmp_path / "toy")
    with pytest.raises(KeyboardInterrupt):
        prepare(make_toy(examples=interrupted), "any", SETTINGS, toy_archives, tmp_path / "toy")
    assert open_store(tmp_path / "toy").digest == old.digest
    assert names_in(tmp_path) == ["toy"]


def test_a_broken_image_is_refused_naming_its_member(tmp_path: Path, toy_archives: Path, make_toy: MakeToy) -> None:
    def one_broken() -> Iterator[Example]:
        yield from few()
        yield Example("train", 0, b"no image", "toy.bin: images/9.jpg")

    with pytest.raises(InputError, match=r"toy\.bin: images/9\.jpg: not an image"):
        prepare(make_toy(examples=one_broken), "any", SETTINGS, toy_archives, tmp_path / "toy")
    assert names_in(tmp_path) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, toy_archives: Path, make_toy: MakeToy) -> None:
    (tmp_path / "prepared").write_text("a file where the folder should be")
    with pytest.raises(InputError, match="prepared"):
        prepare(make_toy(), "any", SETTINGS, toy_archives, tmp_path / "prepared" / "toy")


# Editions


def edition(md5: str = MD5, train: int = 36, test: int = 12) -> dict[str, Edition]:
    return {"sample": Edition({"toy.bin": md5}, train, test), "official": Edition({"toy.bin": "0" * 32}, 9, 9)}


def test_archives_of_the_edition_are_taken(tmp_path: Path, toy_archives: Path, make_toy: MakeToy) -> None:
    store = prepare(make_toy(editions=edition()), "sample", SETTINGS, toy_archives, tmp_path / "toy")
    assert store.meta["edition"] == "sample"


def test_the_md5_of_each_archive_is_given_back(toy_archives: Path, make_toy: MakeToy) -> None:
    assert check_archives(make_toy(), "any", toy_archives) == {"toy.bin": MD5}


def test_another_md5_is_refused_with_both_and_the_mend(toy_archives: Path, make_toy: MakeToy) -> None:
    with pytest.raises(InputError) as caught:
        check_archives(make_toy(editions=edition("1" * 32)), "sample", toy_archives)
    for part in ("toy.bin", MD5, "1" * 32, "sample edition", "study.edition", "official"):
        assert part in str(caught.value)


def test_a_missing_archive_says_how_to_pull_it(tmp_path: Path, make_toy: MakeToy) -> None:
    with pytest.raises(InputError, match=r"toy\.bin: no such file; pull it with `dvc pull data/toy`"):
        check_archives(make_toy(editions=edition()), "sample", tmp_path)


def test_the_second_of_two_archives_is_checked_too(tmp_path: Path, make_toy: MakeToy) -> None:
    (tmp_path / "a.bin").write_bytes(b"a")
    with pytest.raises(InputError, match=r"b\.bin: no such file"):
        check_archives(make_toy(archives=("a.bin", "b.bin")), "any", tmp_path)


def test_an_unknown_edition_is_refused_with_the_known_ones(toy_archives: Path, make_toy: MakeToy) -> None:
    with pytest.raises(InputError) as caught:
        check_archives(make_toy(editions=edition()), "smaple", toy_archives)
    for part in ("study.edition", "toy has no edition 'smaple'", "did you mean 'sample'?", "any, official, sample"):
        assert part in str(caught.value)


@pytest.mark.parametrize(("train", "test"), [(35, 12), (36, 13)])
def test_other_counts_are_refused_with_both(
    tmp_path: Path, toy_archives: Path, make_toy: MakeToy, train: int, test: int
) -> None:
    toy = make_toy(editions=edition(train=train, test=test))
    with pytest.raises(InputError, match=f"found 36 training and 12 test images, expected {train} and {test}"):
        prepare(toy, "sample", SETTINGS, toy_archives, tmp_path / "toy")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(("train", "test"), [(0, 3), (3, 0)])
def test_a_split_without_images_is_refused_in_any_edition(
    tmp_path: Path, toy_archives: Path, make_toy: MakeToy, train: int, test: int
) -> None:
    with pytest.raises(InputError, match=f"found {train * 3} training and {test * 3} test images"):
        prepare(make_toy(train=train, test=test), "any", SETTINGS, toy_archives, tmp_path / "toy")


# The validation split

LABELS = np.array([0] * 20 + [1] * 10 + [2] * 5 + [3] * 2 + [4])


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.1, [2, 1, 1, 1, 0]),  # 2, 1, then at least one, but none of the class with a single image
        (0.2, [4, 2, 1, 1, 0]),
        (0.5, [10, 5, 2, 1, 0]),
        (0.9, [18, 9, 4, 1, 0]),  # training keeps at least one of each
        (0.0, [0, 0, 0, 0, 0]),
    ],
)
def test_every_class_gives_its_share(fraction: float, expected: list[int]) -> None:
    chosen = stratified(LABELS, fraction, seed=0)
    assert np.bincount(LABELS[chosen], minlength=5).tolist() == expected


def test_the_same_seed_chooses_the_same_images() -> None:
    assert np.array_equal(stratified(LABELS, 0.2, 7), stratified(LABELS, 0.2, 7))


def test_another_seed_chooses_other_images() -> None:
    assert not np.array_equal(stratified(LABELS, 0.2, 7), stratified(LABELS, 0.2, 8))


def test_the_order_of_the_classes_does_not_matter() -> None:
    mixed = np.tile([2, 0, 1], 8)
    assert np.bincount(mixed[stratified(mixed, 0.25, 0)]).tolist() == [2, 2, 2]


def test_training_and_validation_together_are_the_official_training_split(
    tmp_path: Path, toy_archives: Path, make_toy: MakeToy
) -> None:
    store = prepare(make_toy(), "any", SETTINGS, toy_archives, tmp_path / "toy")
    whole = prepare(make_toy(), "any", PrepareParams(short_side=32, val_fraction=0), toy_archives, tmp_path / "whole")
    seen = [image.tobytes() for split in ("train", "val") for image in pixels(store, split)]
    assert len(set(seen)) == 36
    assert set(seen) == {image.tobytes() for image in pixels(whole, "train")}
    assert np.bincount(store.split("val").labels).tolist() == [3, 3, 3]
