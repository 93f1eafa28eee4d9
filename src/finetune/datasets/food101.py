"""Food-101: 101,000 photographs of 101 dishes; the training labels are noisy by design.

Source: Bossard, Guillaumin, Van Gool, Food-101 - Mining Discriminative Components with Random Forests, ECCV 2014;
https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/. The official MD5 is the one that torchvision records.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from finetune.datasets._labelled import Told, images_with_tables
from finetune.datasets._source import Archives
from finetune.datasets.archives import as_text
from finetune.datasets.dataset import Contents, Dataset, Edition, Split
from finetune.errors import InputError

_ARCHIVE = "food-101.tar.gz"
_CLASSES = "food-101/meta/classes.txt"  # a name per line
_SPLITS: dict[str, Split] = {  # class name -> image paths under images/, without .jpg
    "food-101/meta/train.json": "train",
    "food-101/meta/test.json": "test",
}


def read(folder: Path) -> Contents:
    """See `Dataset.read`. Classes are named as in classes.txt, for example apple_pie."""
    archive = folder / _ARCHIVE

    def told(found: Mapping[str, bytes]) -> Told:
        meta = {name: as_text(data, f"{archive}: {name}") for name, data in found.items()}
        classes = tuple(meta[_CLASSES].split())
        rows = _rows(archive, meta, {name: label for label, name in enumerate(classes)})
        return classes, rows, f"{archive}: food-101/meta"

    return images_with_tables(Archives(folder, (_ARCHIVE,)), _ARCHIVE, (_CLASSES, *_SPLITS), told)


DATASET = Dataset(
    name="food101",
    title="Food-101",
    classes=101,
    archives=(_ARCHIVE,),
    editions={
        "official": Edition({_ARCHIVE: "85eeb15f3717b99a5da872d97d918f87"}, train=75_750, test=25_250),
        # Drawn by finetune.samples.
        "sample": Edition({_ARCHIVE: "e32eec3a4a032a643ca45cf16387ea21"}, train=476, test=252),
        # A reduced edition of the real images in the official layout, used for this project's committed evidence.
        "reduced": Edition({_ARCHIVE: "51c484bff32b69fcaf855e572008bae1"}, train=4_040, test=1_515),
    },
    read=read,
    homepage="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
    sources={_ARCHIVE: ("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",)},
)


def _rows(archive: Path, meta: Mapping[str, str], label_of: Mapping[str, int]) -> Iterator[tuple[str, Split, int]]:
    for name, split in _SPLITS.items():
        where = f"{archive}: {name}"
        for dish, images in _listing(meta[name], where).items():
            if dish not in label_of:
                raise InputError(
                    f"{where}: class {dish!r} is not one of the {len(label_of)} in {_CLASSES}; get it again"
                )
            for image in images:
                yield f"food-101/images/{image}.jpg", split, label_of[dish]


def _listing(text: str, where: str) -> dict[str, list[str]]:
    try:
        listing = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON ({error}); get the archive again") from None
    if not isinstance(listing, dict) or not all(isinstance(images, list) for images in listing.values()):
        raise InputError(f"{where}: not a mapping of classes to lists of images; get the archive again")
    return listing
