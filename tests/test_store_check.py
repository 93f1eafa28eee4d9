"""A store whose bytes were changed is refused, and what changed is named."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from finetune.errors import InputError
from finetune.store import Store, open_store
from finetune.store_check import check
from finetune.store_writer import Writer
from small_store import store_of

SIZES = {"train": [(0, 4, 5), (1, 6, 3), (0, 7, 7), (1, 5, 5)], "test": [(0, 3, 3), (1, 8, 2)]}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_of(tmp_path, SIZES)


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def test_a_store_as_it_was_written_passes_with_all_its_images(store: Store) -> None:
    assert check(store) == 6


@pytest.mark.parametrize(("position", "image"), [(0, 0), (59, 0), (60, 1), (114, 2), (-1, 3)])
def test_one_bit_of_a_pixel_is_noticed_and_its_image_named(store: Store, position: int, image: int) -> None:
    flip(store.path / "trainval.u8", position)
    with pytest.raises(InputError, match=rf"trainval\.u8: the bytes of image {image} .*`dvc repro -s -f prepare@toy`"):
        check(store)


def test_one_bit_of_the_test_split_is_noticed(store: Store) -> None:
    flip(store.path / "test.u8", 30)
    with pytest.raises(InputError, match=r"test\.u8: the bytes of image 1 "):
        check(store)


@pytest.fixture
def together(tmp_path: Path) -> Store:
    """The images of SIZES, turned round, in one pixel file."""
    writer = Writer(tmp_path / "prepared" / "toy", together=True)
    both = [(split, *image) for split, images in SIZES.items() for image in images][::-1]
    for _, label, height, width in both:
        writer.add(None, -1, np.full((height, width, 3), label, np.uint8))
    codes = np.array([2 if split == "test" else 0 for split, *_ in both], np.uint8)
    writer.place(codes, np.array([label for _, label, *_ in both]))
    writer.finish(np.array([False, True, False, False]), {"classes": ["a", "b"]})
    return open_store(tmp_path / "prepared" / "toy")


def test_a_store_of_one_pixel_file_is_read_as_a_whole(together: Store) -> None:
    assert check(together) == 6


@pytest.mark.parametrize(("position", "image"), [(0, 0), (47, 0), (48, 1), (75, 2), (-1, 5)])
def test_one_bit_of_one_pixel_file_is_noticed(together: Store, position: int, image: int) -> None:
    flip(together.path / "pixels.u8", position)
    with pytest.raises(InputError, match=rf"pixels\.u8: the bytes of image {image} are not"):
        check(together)


@pytest.mark.parametrize("left", [0, 20, 150])
def test_an_array_that_was_cut_off_is_noticed(store: Store, left: int) -> None:
    path = store.path / "train.rows.npy"
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(InputError, match=r"a broken store \(.*\); make it again with `dvc repro"):
        store.split("train")


@pytest.mark.parametrize("name", ["trainval.u8", "test.u8"])
def test_pixels_that_are_gone_are_noticed(store: Store, name: str) -> None:
    (store.path / name).unlink()
    with pytest.raises(InputError, match=rf"a broken store .*{name}"):
        check(store)


def test_other_labels_are_noticed(store: Store) -> None:
    np.save(store.path / "trainval.labels.npy", np.zeros(4, np.int64))
    with pytest.raises(InputError, match=r"trainval\.labels\.npy: is not as it was written"):
        check(store)


def test_a_split_that_was_tampered_with_is_noticed(store: Store) -> None:
    np.save(store.path / "train.rows.npy", np.arange(4))
    with pytest.raises(InputError, match=r"train\.rows\.npy: is not as it was written"):
        check(store)


@pytest.mark.parametrize(("written", "changed"), [("class 0", "class 9"), ('"val": 1', '"val": 2')])
def test_other_class_names_and_other_counts_are_noticed(store: Store, written: str, changed: str) -> None:
    meta = store.path / "meta.json"
    assert written in meta.read_text()
    meta.write_text(meta.read_text().replace(written, changed))
    with pytest.raises(InputError, match=r"meta\.json: is not as it was written"):
        check(open_store(store.path))


@pytest.mark.parametrize("content", [b"", None])
def test_names_that_were_changed_or_are_gone_are_noticed(store: Store, content: bytes | None) -> None:
    names = store.path / "test.members.txt"
    names.unlink()
    if content is not None:
        names.write_bytes(content)
    with pytest.raises(InputError, match=r"test\.members\.txt: is not as it was written, or is missing"):
        check(store)


def test_bytes_too_many_are_noticed(store: Store) -> None:
    with (store.path / "test.u8").open("ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match=r"test\.u8: found 79 bytes, expected 75"):
        check(store)


def test_bytes_that_are_missing_are_noticed(store: Store) -> None:
    file = store.path / "test.u8"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"test\.u8: found 74 bytes, expected 75"):
        check(store)


def test_the_command_checks_every_store_of_the_study(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune.cli import cli

    folder = store.path.parent.parent
    (folder / "params.yaml").write_text(
        "study: {name: s, edition: any, datasets: [toy], strategies: [same_lr], seeds: [0], baseline: same_lr}\n"
        "datasets: {toy: {reader: class_folders}}\nstrategies: {same_lr: {}}\n"
    )
    monkeypatch.chdir(folder)
    found = CliRunner().invoke(cli, ["store", "check"])
    assert found.exit_code == 0
    assert "prepared/toy: 6 images as they were written" in found.output
    flip(store.path / "test.u8", 3)
    assert isinstance(CliRunner().invoke(cli, ["store", "check", "toy"]).exception, (InputError, SystemExit))
