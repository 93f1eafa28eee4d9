"""Stanford Cars: 16,185 photographs of 196 makes, models and years.

Source: Krause, Stark, Deng, Fei-Fei, 3D Object Representations for Fine-Grained Categorization, 3dRR 2013;
https://ai.stanford.edu/~jkrause/cars/car_dataset.html. Stanford's links are dead: bring the four official files. Their
MD5s are those that torchvision recorded while the links lived. Bounding boxes are not used.
"""

from collections.abc import Iterator
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from finetune.datasets._labelled import check_label, labelled_images
from finetune.datasets._source import Archives
from finetune.datasets.archives import read_file, read_members
from finetune.datasets.dataset import Contents, Dataset, Edition, Split
from finetune.errors import InputError

_DEVKIT = "car_devkit.tgz"
_META = "devkit/cars_meta.mat"  # class_names
_TRAIN_LABELS = "devkit/cars_train_annos.mat"  # annotations with class (from 1) and fname
_TEST_LABELS = "cars_test_annos_withlabels.mat"  # the same; the devkit's own copy has no class
_TRAIN, _TEST = "cars_train.tgz", "cars_test.tgz"


def read(folder: Path) -> Contents:
    """See `Dataset.read`. Classes are named as in cars_meta.mat, for example AM General Hummer SUV 2000."""
    archives = Archives(folder, (_DEVKIT, _TRAIN, _TEST, _TEST_LABELS))
    devkit = read_members(archives[_DEVKIT], (_META, _TRAIN_LABELS))
    names = _variable(devkit[_META], "class_names", f"{folder / _DEVKIT}: {_META}")
    classes = tuple(str(name) for name in names)

    train_source, test_source = f"{folder / _DEVKIT}: {_TRAIN_LABELS}", f"{folder / _TEST_LABELS}"
    train = _rows(devkit[_TRAIN_LABELS], "train", len(classes), train_source)
    test = _rows(read_file(archives[_TEST_LABELS]), "test", len(classes), test_source)
    of_train, training = labelled_images(archives[_TRAIN], train, train_source)
    of_test, testing = labelled_images(archives[_TEST], test, test_source)
    return Contents(classes, chain(training, testing), of_train + of_test, reading=archives)


DATASET = Dataset(
    name="cars196",
    title="Stanford Cars",
    classes=196,
    archives=(_DEVKIT, _TRAIN, _TEST, _TEST_LABELS),
    editions={
        "official": Edition(
            {
                _DEVKIT: "c3b158d763b6e2245038c8ad08e45376",
                _TRAIN: "065e5b463ae28d29e77c1b4b166cfe61",
                _TEST: "4ce7ebf6a94d07f1952d94dd34c4d501",
                _TEST_LABELS: "b0a2b23655a3edd16d84508592a98d10",
            },
            train=8_144,
            test=8_041,
        ),
        # Drawn by finetune.samples.
        "sample": Edition(
            {
                _DEVKIT: "53ffa6b9b6b8456a852d4f959fdf85bd",
                _TRAIN: "35ca2fd0c004698f204ea22d44095395",
                _TEST: "7d1eb919f5bf65a5e4a9d52429802d72",
                _TEST_LABELS: "4fdf01d56d75b0384434860901ed427c",
            },
            train=468,
            test=252,
        ),
        # A reduced edition of the real images in the official layout, used for this project's committed evidence.
        "reduced": Edition(
            {
                _DEVKIT: "b9480d610cf3cd6472bd8280c591da50",
                _TRAIN: "ab35bdfc71355372a45bf9254f11c44a",
                _TEST: "35a862a863040c0db60fda3c2c49fbf5",
                _TEST_LABELS: "aa66a38059f081c05ca754d40e66fcd7",
            },
            train=1_176,
            test=588,
        ),
    },
    read=read,
    homepage="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
)


def _variable(data: bytes, name: str, where: str) -> np.ndarray:
    """Variable `name` of a MATLAB file, as an array of one dimension."""
    from scipy.io import loadmat

    file: Any = BytesIO(data)  # scipy-stubs does not know that loadmat takes an open file
    try:
        return np.atleast_1d(loadmat(file, squeeze_me=True, variable_names=[name])[name])
    except Exception as error:  # a damaged MATLAB file may raise anything
        raise InputError(f"{where}: not a MATLAB file with {name} ({error}); get the file again") from None


def _rows(data: bytes, split: Split, classes: int, where: str) -> Iterator[tuple[str, Split, int]]:
    for annotation in _variable(data, "annotations", where):
        try:
            image, number = str(annotation["fname"]), int(annotation["class"])
        except (IndexError, TypeError, ValueError):
            raise InputError(f"{where}: an annotation without class or fname; get the file that has both") from None
        yield f"cars_{split}/{image}", split, check_label(number - 1, classes, f"{where}: {image}")
