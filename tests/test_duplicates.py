"""Images of the same pixels: found, counted, and never on both sides of a validation split."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from finetune.datasets import Contents, Dataset, Example
from finetune.duplicates import first_of_kind, in_train_too, summary
from finetune.errors import InputError
from finetune.params import PrepareParams
from finetune.prepare import prepare, stratified
from finetune.store import Store
from finetune.store_writer import content_hash


def hashes(*contents: int) -> np.ndarray:
    return np.array([[content] * 16 for content in contents], np.uint8)


def test_each_image_knows_the_first_of_its_content() -> None:
    assert first_of_kind(hashes(7, 3, 7, 0, 3, 7)).tolist() == [0, 1, 0, 3, 1, 0]
    assert first_of_kind(hashes()).tolist() == []


def test_contents_that_differ_in_their_last_byte_only_are_not_the_same() -> None:
    pair = np.zeros((2, 16), np.uint8)
    pair[1, -1] = 1
    assert first_of_kind(pair).tolist() == [0, 1]


def test_the_same_bytes_in_another_shape_are_another_image() -> None:
    assert content_hash(np.zeros((2, 3, 3), np.uint8)) != content_hash(np.zeros((3, 2, 3), np.uint8))


def test_validation_images_with_a_twin_in_train_are_found() -> None:
    first = np.array([0, 1, 0, 3, 3])
    validation = np.array([False, False, True, True, True])
    assert in_train_too(first, validation).tolist() == [False, False, True, False, False]


def test_the_summary_counts_by_hand() -> None:
    #        train train val  val  left test  test  test
    first = [0, 0, 2, 3, 0, 0, 2, 7]
    labels = [0, 0, 1, 1, 0, 1, 1, 0]
    splits = ["train", "train", "val", "val", "", "test", "test", "test"]
    found = summary(np.array(first), np.array(splits), np.array(labels), "image {}".format)
    assert found == {
        "within": {"train": 1, "val": 0, "test": 0},
        "train/val": 0,
        "train/test": 1,
        "val/test": 1,
        "left_out": 1,
        "conflicting": 4,  # images 0, 1, 4, 5: one content, two classes
        "examples": [
            ["image 0", "image 1"],
            ["image 0", "image 4"],
            ["image 0", "image 5"],
            ["image 2", "image 6"],
        ],
    }


@pytest.mark.parametrize("seed", range(20))
def test_twins_are_chosen_together(seed: int) -> None:
    generator = np.random.default_rng(seed)
    first = first_of_kind(hashes(*generator.integers(0, 30, 60)))
    chosen = stratified(generator.integers(0, 3, 60), 0.3, seed, first)
    assert chosen.any()
    assert not in_train_too(first, chosen).any()


def test_without_twins_the_choice_is_the_same_as_ever() -> None:
    labels = np.arange(50) % 4
    assert np.array_equal(stratified(labels, 0.2, 5), stratified(labels, 0.2, 5, np.arange(50)))


# Through prepare

SETTINGS = PrepareParams(short_side=8, val_fraction=0.3)


def grey(level: int) -> np.ndarray:
    return np.full((8, 8, 3), level, np.uint8)


def prepared(folder: Path, *images: tuple[str, int, int]) -> Store:
    """A store of (split, label, grey level)."""

    def examples() -> Iterator[Example]:
        for i, (split, label, level) in enumerate(images):
            yield Example(split, label, grey(level), f"a.bin: {i}")  # type: ignore[arg-type]

    (folder / "a.bin").write_bytes(b"a")
    dataset = Dataset("toy", "Toy", 2, ("a.bin",), {}, lambda _: Contents(("a", "b"), examples()))
    return prepare(dataset, "any", SETTINGS, folder, folder / "prepared" / "toy")


def levels(store: Store, split: str) -> list[int]:
    opened = store.split(split)
    return [int(opened.image(i)[0, 0, 0]) for i in range(len(opened))]


def test_validation_shares_nothing_with_train_and_all_is_counted(tmp_path: Path) -> None:
    train = [("train", i % 2, i // 4) for i in range(40)]  # each content four times, in both classes
    store = prepared(tmp_path, *train, ("test", 0, 3), ("test", 0, 99))
    assert not set(levels(store, "train")) & set(levels(store, "val"))
    assert sorted(levels(store, "train") + levels(store, "val")) == sorted(level for _, _, level in train)
    found = store.meta["duplicates"]
    assert found["train/val"] == 0
    assert found["train/test"] + found["val/test"] == 1
    assert found["conflicting"] == 41
    assert found["examples"][0] == ["a.bin: 0", "a.bin: 1"]


def test_what_the_users_own_validation_shares_with_train_is_left_out(tmp_path: Path) -> None:
    store = prepared(tmp_path, ("train", 0, 1), ("val", 0, 1), ("train", 1, 2), ("val", 1, 3), ("test", 0, 4))
    assert (levels(store, "train"), levels(store, "val"), levels(store, "test")) == ([1, 2], [3], [4])
    assert store.meta["counts"] == {"train": 2, "val": 1, "test": 1}
    assert store.meta["duplicates"]["left_out"] == 1


def test_a_validation_that_is_a_copy_of_train_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"every image of val/ is in train/ too"):
        prepared(tmp_path, ("train", 0, 1), ("train", 1, 2), ("val", 0, 1), ("test", 0, 4))
    assert not (tmp_path / "prepared" / "toy").exists()


def test_classes_of_one_image_many_times_leave_nothing_to_validate_on(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no class has two different training images.*val_fraction: 0"):
        prepared(tmp_path, *[("train", i % 2, i % 2) for i in range(8)], ("test", 0, 9))


def test_members_are_named_in_the_order_of_their_split(tmp_path: Path) -> None:
    store = prepared(tmp_path, ("train", 0, 1), ("val", 1, 2), ("test", 1, 3), ("train", 1, 4))
    assert store.members("train") == ["a.bin: 0", "a.bin: 3"]
    assert store.members("val") == ["a.bin: 1"]
    assert store.members("test") == ["a.bin: 2"]
