"""CUB-200-2011: 11,788 photographs of 200 species of birds.

Source: Wah, Branson, Welinder, Perona, Belongie, The Caltech-UCSD Birds-200-2011 Dataset, Caltech CNS-TR-2011-001;
https://www.vision.caltech.edu/datasets/cub_200_2011/. Bounding boxes, parts and attributes are not used.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from finetune.datasets._labelled import Told, check_label, images_with_tables
from finetune.datasets._source import Archives
from finetune.datasets.archives import as_text
from finetune.datasets.dataset import Contents, Dataset, Edition, Split
from finetune.errors import InputError

_ARCHIVE = "CUB_200_2011.tgz"
_IMAGES = "CUB_200_2011/images.txt"  # image id, path under images/
_LABELS = "CUB_200_2011/image_class_labels.txt"  # image id, class id from 1
_SPLITS = "CUB_200_2011/train_test_split.txt"  # image id, 1 for training or 0 for test
_CLASSES = "CUB_200_2011/classes.txt"  # class id from 1, name


def read(folder: Path) -> Contents:
    """See `Dataset.read`. Classes are named as in classes.txt, for example 001.Black_footed_Albatross."""
    archive = folder / _ARCHIVE

    def told(found: Mapping[str, bytes]) -> Told:
        tables = {
            name: _table(as_text(data, f"{archive}: {name}"), f"{archive}: {name}") for name, data in found.items()
        }
        classes = tables[_CLASSES]
        if list(classes) != list(range(1, len(classes) + 1)):
            raise InputError(f"{archive}: {_CLASSES}: class ids are not 1, 2, 3, …; get the archive again")
        return tuple(classes.values()), _rows(archive, tables), f"{archive}: {_IMAGES}"

    return images_with_tables(Archives(folder, (_ARCHIVE,)), _ARCHIVE, (_IMAGES, _LABELS, _SPLITS, _CLASSES), told)


DATASET = Dataset(
    name="cub200",
    title="CUB-200-2011",
    classes=200,
    archives=(_ARCHIVE,),
    editions={
        "official": Edition({_ARCHIVE: "97eceeb196236b17998738112f37df78"}, train=5_994, test=5_794),
        # Drawn by finetune.samples.
        "sample": Edition({_ARCHIVE: "1a0e53e92d6d0cfa36fa4acf5137894e"}, train=480, test=256),
        # A reduced edition of the real images in the official layout, used for this project's committed evidence.
        "reduced": Edition({_ARCHIVE: "b44d5694fafb1922085d8c851029bbac"}, train=1_600, test=800),
    },
    read=read,
    homepage="https://www.vision.caltech.edu/datasets/cub_200_2011/",
    sources={_ARCHIVE: ("https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",)},
)


def _table(text: str, where: str) -> dict[int, str]:
    """Lines of "<id> <value>"."""
    table: dict[int, str] = {}
    for line in text.splitlines():
        key, _, value = line.strip().partition(" ")
        if not key.isdecimal() or not value or int(key) in table:
            raise InputError(f"{where}: found the line {line!r}, expected a new id and a value; get the archive again")
        table[int(key)] = value
    return table


def _rows(archive: Path, tables: dict[str, dict[int, str]]) -> Iterator[tuple[str, Split, int]]:
    paths, labels, splits = tables[_IMAGES], tables[_LABELS], tables[_SPLITS]
    for name, table in ((_LABELS, labels), (_SPLITS, splits)):
        if odd := table.keys() ^ paths.keys():
            raise InputError(f"{archive}: {name}: image {min(odd)} is only here or only in {_IMAGES}; get it again")
    split_of: dict[str, Split] = {"1": "train", "0": "test"}
    for image, path in paths.items():
        if splits[image] not in split_of:
            raise InputError(
                f"{archive}: {_SPLITS}: image {image} has {splits[image]!r}, expected 1 or 0; get it again"
            )
        if not labels[image].isdecimal():
            raise InputError(f"{archive}: {_LABELS}: image {image} has {labels[image]!r}, expected a class id")
        label = check_label(int(labels[image]) - 1, len(tables[_CLASSES]), f"{archive}: {_LABELS}: image {image}")
        yield f"CUB_200_2011/images/{path}", split_of[splits[image]], label
