import hashlib
import io
import json
import pickle
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune import datasets
from finetune.errors import InputError
from finetune.samples import STAND_INS, UPSTREAM_CLASSES, draw, draw_one, shapes, sketches, upstream, upstream_example

ARCHIVES = {
    "cifar10": ["cifar-10-python.tar.gz"],
    "cifar100": ["cifar-100-python.tar.gz"],
    "cub200": ["CUB_200_2011.tgz"],
    "cars196": ["car_devkit.tgz", "cars_test.tgz", "cars_test_annos_withlabels.mat", "cars_train.tgz"],
    "food101": ["food-101.tar.gz"],
}


@pytest.fixture(scope="module")
def edition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edition")
    draw(folder)
    return folder


def _md5s(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def _members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]


def _image(example: datasets.Example) -> np.ndarray:
    if isinstance(example.image, np.ndarray):
        return example.image
    return np.asarray(Image.open(io.BytesIO(example.image)))


@pytest.mark.parametrize("name", STAND_INS)
def test_the_archives_have_the_official_names(edition: Path, name: str) -> None:
    assert sorted(file.name for file in (edition / name).iterdir()) == sorted(ARCHIVES[name])


def test_the_edition_is_at_most_eight_megabytes(edition: Path) -> None:
    assert sum(file.stat().st_size for file in edition.rglob("*") if file.is_file()) <= 8_000_000


@pytest.mark.parametrize("name", ["cifar100", "cars196"])  # pickles, JPEGs, .mat files
def test_drawing_again_gives_the_same_bytes(edition: Path, tmp_path: Path, name: str) -> None:
    draw_one(name, tmp_path)
    assert _md5s(tmp_path) == _md5s(edition / name)


@pytest.mark.parametrize("name", STAND_INS)
def test_the_project_s_reader_reads_every_image(edition: Path, name: str) -> None:
    stand_in = STAND_INS[name]
    contents = datasets.load(name).read(edition / name)
    assert len(contents.classes) == len(stand_in.classes)
    counts = Counter((example.split, example.label) for example in contents.examples)
    assert counts == {
        (split, label): count for split, count in stand_in.per_class.items() for label in range(len(stand_in.classes))
    }


@pytest.mark.parametrize("name", STAND_INS)
def test_images_are_rgb_with_sides_of_32_to_96_pixels(edition: Path, name: str) -> None:
    sizes = {_image(example).shape for example in datasets.load(name).read(edition / name).examples}
    assert {channels for _, _, channels in sizes} == {3}
    assert all(32 <= side <= 96 for height, width, _ in sizes for side in (height, width))


@pytest.mark.parametrize("name", STAND_INS)
def test_no_image_is_in_both_splits(edition: Path, name: str) -> None:
    seen: dict[str, set[bytes]] = {"train": set(), "test": set()}
    for example in datasets.load(name).read(edition / name).examples:
        seen[example.split].add(_image(example).tobytes())
    assert not seen["train"] & seen["test"]


def test_cifar_pickles_have_byte_keys_and_five_batches_of_near_equal_size(edition: Path) -> None:
    members = _members(edition / "cifar10" / "cifar-10-python.tar.gz")
    batches = [pickle.loads(members[f"cifar-10-batches-py/data_batch_{k}"], encoding="bytes") for k in range(1, 6)]
    assert [len(batch[b"labels"]) for batch in batches] == [96] * 5
    assert batches[0][b"data"].shape == (96, 3072)
    assert batches[0][b"data"].dtype == np.uint8


def test_cifar100_names_the_superclass_of_every_image(edition: Path) -> None:
    members = _members(edition / "cifar100" / "cifar-100-python.tar.gz")
    meta = pickle.loads(members["cifar-100-python/meta"], encoding="bytes")
    train = pickle.loads(members["cifar-100-python/train"], encoding="bytes")
    names = {
        (meta[b"fine_label_names"][fine], meta[b"coarse_label_names"][coarse])
        for fine, coarse in zip(train[b"fine_labels"], train[b"coarse_labels"], strict=True)
    }
    assert len(names) == 40
    assert (b"pine_tree", b"trees") in names


def test_cub_lists_come_before_the_images(edition: Path) -> None:
    names = list(_members(edition / "cub200" / "CUB_200_2011.tgz"))
    assert names[:5] == [
        f"CUB_200_2011/{name}.txt"
        for name in ("images", "image_class_labels", "train_test_split", "bounding_boxes", "classes")
    ]
    assert all(name.endswith(".jpg") for name in names[5:])


def test_the_unlabelled_cars_annotations_have_no_class(edition: Path) -> None:
    from scipy.io import loadmat

    members = _members(edition / "cars196" / "car_devkit.tgz")
    train = loadmat(io.BytesIO(members["devkit/cars_train_annos.mat"]))["annotations"]
    test = loadmat(io.BytesIO(members["devkit/cars_test_annos.mat"]))["annotations"]
    assert "class" in train.dtype.names
    assert "class" not in test.dtype.names
    assert test[0, 0]["fname"][0] == "00001.jpg"


def test_food_json_and_txt_list_the_same_images(edition: Path) -> None:
    members = _members(edition / "food101" / "food-101.tar.gz")
    for split in ("train", "test"):
        listed = json.loads(members[f"food-101/meta/{split}.json"])
        assert members[f"food-101/meta/{split}.txt"].decode().split() == [i for ids in listed.values() for i in ids]


def test_archive_members_carry_no_time_owner_or_file_name(edition: Path) -> None:
    archive = edition / "food101" / "food-101.tar.gz"
    assert archive.read_bytes()[3:8] == bytes(5)  # gzip's flags (no file name) and time
    with tarfile.open(archive) as tar:
        assert {(m.mtime, m.uid, m.uname) for m in tar.getmembers()} == {(1_300_000_000, 0, "")}


def test_upstream_goes_through_its_classes_in_turn() -> None:
    contents = upstream(130, seed=0)
    assert contents.classes == UPSTREAM_CLASSES
    assert len(contents.classes) == 128
    assert [example.label for example in contents.examples] == [*range(128), 0, 1]


def test_upstream_pictures_are_64_pixels_rgb() -> None:
    image = next(upstream(1, seed=0).examples).image
    assert isinstance(image, np.ndarray)
    assert (image.shape, image.dtype) == ((64, 64, 3), np.dtype(np.uint8))


def test_an_upstream_picture_depends_on_seed_and_place_alone() -> None:
    third = list(upstream(3, seed=5).examples)[2]
    assert np.array_equal(third.image, upstream_example(2, seed=5).image)
    assert not np.array_equal(third.image, upstream_example(2, seed=6).image)
    assert not np.array_equal(third.image, upstream_example(2 + 128, seed=5).image)


def test_a_part_drawn_twice_is_mirrored_from_left_to_right() -> None:
    right, left = sketches.parse("box2 accent .1 -.5 .4 .5")
    assert right.points.tolist() == [[0.1, -0.5], [0.4, -0.5], [0.4, 0.5], [0.1, 0.5]]
    assert left.points.tolist() == [[-0.1, -0.5], [-0.4, -0.5], [-0.4, 0.5], [-0.1, 0.5]]
    assert right.tone == left.tone == shapes.ACCENT


def test_a_sketched_line_keeps_its_width_out_of_its_points() -> None:
    start, end, bar = sketches.parse("line dark .2 0 0 1 0")
    assert start.points.mean(axis=0) == pytest.approx([0, 0])
    assert end.points.mean(axis=0) == pytest.approx([1, 0])
    assert sorted(bar.points.tolist()) == [[0, -0.1], [0, 0.1], [1, -0.1], [1, 0.1]]


def test_hsv_gives_the_wheel_s_corners() -> None:
    assert shapes.hsv(0, 1, 1) == (255, 0, 0)
    assert shapes.hsv(1 / 3, 1, 1) == (0, 255, 0)
    assert shapes.hsv(2 / 3, 1, 1) == (0, 0, 255)
    assert shapes.hsv(0.7, 0, 0.5) == (128, 128, 128)


def test_another_editions_archive_is_never_overwritten(tmp_path: Path) -> None:
    mine = tmp_path / "food101" / "food-101.tar.gz"
    mine.parent.mkdir()
    mine.write_bytes(b"the official one")
    with pytest.raises(InputError, match=r"food101/food-101\.tar\.gz: is there with md5 .* another folder"):
        draw(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]
    assert mine.read_bytes() == b"the official one"


def test_the_sample_edition_is_drawn_over_itself(edition: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr("finetune.samples.edition.draw_one", lambda name, _: drawn.append(name))
    draw(edition)
    assert drawn == list(STAND_INS)
