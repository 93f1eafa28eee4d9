"""The sample edition: which stand-in is drawn for which data set, how many images, and from which seed."""

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finetune import datasets
from finetune.datasets.dataset import Split
from finetune.errors import InputError
from finetune.samples import birds, cars, foods, kinds, layouts, objects
from finetune.samples.layouts import Drawn
from finetune.samples.shapes import Rng


@dataclass(frozen=True)
class StandIn:
    """What stands in for one data set."""

    classes: tuple[str, ...]
    picture: Callable[[int, Rng], np.ndarray]  # (label, rng) -> uint8, height x width x 3
    per_class: dict[Split, int]  # images of each class
    write: Callable[[Path, tuple[str, ...], layouts.Splits], None]


def _write_cifar100(folder: Path, classes: tuple[str, ...], splits: layouts.Splits) -> None:
    layouts.cifar100(folder, classes, splits, kinds.COARSE, [kinds.coarse(y) for y in range(len(classes))])


STAND_INS = {
    "cifar10": StandIn(objects.CLASSES, objects.picture, {"train": 48, "test": 25}, layouts.cifar10),
    "cifar100": StandIn(kinds.CLASSES, kinds.picture, {"train": 12, "test": 6}, _write_cifar100),
    "cub200": StandIn(birds.CLASSES, birds.picture, {"train": 30, "test": 16}, layouts.cub200),
    "cars196": StandIn(cars.CLASSES, cars.picture, {"train": 26, "test": 14}, layouts.cars196),
    "food101": StandIn(foods.CLASSES, foods.picture, {"train": 34, "test": 18}, layouts.food101),
}


def draw(folder: Path) -> None:
    """Draw the five data sets, each into its own folder under `folder`: always the same bytes.

    Raises:
        InputError: another edition's archive lies there; nothing was drawn.
    """
    for name in STAND_INS:
        _check_free(name, folder / name)
    for name in STAND_INS:
        draw_one(name, folder / name)


def draw_one(name: str, folder: Path) -> None:
    """Draw the stand-in of data set `name` as its official archives in `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    stand_in = STAND_INS[name]
    splits: dict[Split, list[Drawn]] = {}
    for split, count in stand_in.per_class.items():
        seed = zlib.crc32(f"{name} {split}".encode())
        labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(stand_in.classes)), count))
        splits[split] = [
            Drawn(int(label), stand_in.picture(int(label), np.random.default_rng((seed, place))))
            for place, label in enumerate(labels)
        ]
    stand_in.write(folder, stand_in.classes, splits)


def _check_free(name: str, folder: Path) -> None:
    for archive, md5 in datasets.load(name).editions["sample"].md5.items():
        path = folder / archive
        if not path.exists():
            continue
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != md5:
            raise InputError(
                f"{path}: is there with md5 {found} and would be overwritten by the sample edition's, {md5}; move it "
                "away, or draw into another folder with `finetune sample FOLDER`"
            )
