"""Writes drawn images as the official archives of each data set: the same names, members and formats.

The bytes depend on the images alone: times, owners and headers are fixed.
"""

import gzip
import io
import json
import pickle
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from finetune.datasets.dataset import Split

Splits = Mapping[Split, Sequence["Drawn"]]
_MTIME = 1_300_000_000  # seconds since 1970, of every member


@dataclass(frozen=True)
class Drawn:
    """One image of the sample edition."""

    label: int
    image: np.ndarray  # uint8, height x width x 3, RGB


def cifar10(folder: Path, classes: Sequence[str], splits: Splits) -> None:
    """cifar-10-python.tar.gz: five pickled training batches, one test batch, batches.meta."""
    top, batches = "cifar-10-batches-py/", np.array_split(np.arange(len(splits["train"])), 5)
    members = {
        f"{top}batches.meta": _pickled(
            {"num_cases_per_batch": len(batches[0]), "label_names": list(classes), "num_vis": 3072}
        )
    }
    for number, rows in enumerate(batches, 1):
        chosen = [splits["train"][i] for i in rows]
        members[f"{top}data_batch_{number}"] = _pickled(
            {"batch_label": f"training batch {number} of 5", "labels": [d.label for d in chosen], **_pixels(chosen)}
        )
    test = splits["test"]
    members[f"{top}test_batch"] = _pickled(
        {"batch_label": "testing batch 1 of 1", "labels": [d.label for d in test], **_pixels(test)}
    )
    _tar(folder / "cifar-10-python.tar.gz", members)


def cifar100(
    folder: Path, classes: Sequence[str], splits: Splits, superclasses: Sequence[str], coarse: Sequence[int]
) -> None:
    """cifar-100-python.tar.gz: pickled train, test and meta; `coarse` is the superclass of each class."""
    top = "cifar-100-python/"
    members = {f"{top}meta": _pickled({"fine_label_names": list(classes), "coarse_label_names": list(superclasses)})}
    for split, drawn in splits.items():
        labels = [d.label for d in drawn]
        members[top + split] = _pickled(
            {"batch_label": "", "fine_labels": labels, "coarse_labels": [coarse[y] for y in labels], **_pixels(drawn)}
        )
    _tar(folder / "cifar-100-python.tar.gz", members)


def cub200(folder: Path, classes: Sequence[str], splits: Splits) -> None:
    """CUB_200_2011.tgz: five lists (ids from 1), then images/<class>/<name>.jpg."""
    top = "CUB_200_2011/"
    images: dict[str, bytes] = {}
    rows: dict[str, list[str]] = {
        "images": [], "image_class_labels": [], "train_test_split": [], "bounding_boxes": [],
        "classes": [f"{number} {name}" for number, name in enumerate(classes, 1)],
    }  # fmt: skip
    ordered = sorted(((d.label, split != "train", d) for split in splits for d in splits[split]), key=lambda r: r[:2])
    for number, (label, test, drawn) in enumerate(ordered, 1):
        path = f"{classes[label]}/{classes[label][4:]}_{number:04d}.jpg"
        height, width = drawn.image.shape[:2]
        images[f"{top}images/{path}"] = _jpeg(drawn.image)
        rows["images"].append(f"{number} {path}")
        rows["image_class_labels"].append(f"{number} {label + 1}")
        rows["train_test_split"].append(f"{number} {int(not test)}")
        rows["bounding_boxes"].append(f"{number} 0.0 0.0 {width:.1f} {height:.1f}")
    lists = {f"{top}{name}.txt": _lines(lines) for name, lines in rows.items()}
    _tar(folder / "CUB_200_2011.tgz", lists | images)


def cars196(folder: Path, classes: Sequence[str], splits: Splits) -> None:
    """cars_train.tgz, cars_test.tgz, car_devkit.tgz and the labels of the test images (MATLAB; classes from 1)."""
    annotations = {}
    for split, drawn in splits.items():
        named = {f"{number:05d}.jpg": one for number, one in enumerate(drawn, 1)}
        _tar(folder / f"cars_{split}.tgz", {f"cars_{split}/{name}": _jpeg(one.image) for name, one in named.items()})
        annotations[split] = [
            (1, 1, one.image.shape[1], one.image.shape[0], one.label + 1, name) for name, one in named.items()
        ]
    (folder / "cars_test_annos_withlabels.mat").write_bytes(_annotations(annotations["test"], labelled=True))
    _tar(
        folder / "car_devkit.tgz",
        {
            "devkit/cars_meta.mat": _matlab({"class_names": np.array([list(classes)], dtype=object)}),
            "devkit/cars_train_annos.mat": _annotations(annotations["train"], labelled=True),
            "devkit/cars_test_annos.mat": _annotations(annotations["test"], labelled=False),
        },
    )


def food101(folder: Path, classes: Sequence[str], splits: Splits) -> None:
    """food-101.tar.gz: meta/*.json and *.txt, then images/<class>/<number>.jpg."""
    top, images = "food-101/", {}
    members = {
        f"{top}meta/classes.txt": _lines(classes),
        f"{top}meta/labels.txt": _lines(name.replace("_", " ").capitalize() for name in classes),
    }
    number = 1000
    for split, drawn in splits.items():
        listed: dict[str, list[str]] = {name: [] for name in classes}
        for one in sorted(drawn, key=lambda d: d.label):
            path, number = f"{classes[one.label]}/{number}", number + 1
            listed[classes[one.label]].append(path)
            images[f"{top}images/{path}.jpg"] = _jpeg(one.image)
        members[f"{top}meta/{split}.json"] = json.dumps(listed).encode()
        members[f"{top}meta/{split}.txt"] = _lines(path for paths in listed.values() for path in paths)
    _tar(folder / "food-101.tar.gz", members | images)


def _pixels(drawn: Sequence[Drawn]) -> dict[str, object]:
    """CIFAR's `data`, uint8 images x 3072 (red, green, blue planes), and `filenames`."""
    data = np.stack([d.image.transpose(2, 0, 1).ravel() for d in drawn])
    return {"data": data, "filenames": [f"drawn_{d.label:02d}_{i:05d}.png" for i, d in enumerate(drawn)]}


def _pickled(content: Mapping[str, object]) -> bytes:
    """As Python 2 pickled it: keys and texts are bytes."""

    def old(value: object) -> object:
        if isinstance(value, list):
            return [old(v) for v in value]
        return value.encode() if isinstance(value, str) else value

    return pickle.dumps({old(key): old(value) for key, value in content.items()}, protocol=2)


def _jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=85)
    return file.getvalue()


def _lines(rows: Iterable[str]) -> bytes:
    return "".join(f"{row}\n" for row in rows).encode()


def _annotations(rows: Sequence[tuple[object, ...]], labelled: bool) -> bytes:
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    if not labelled:
        fields.remove("class")
        rows = [(*row[:4], row[5]) for row in rows]
    return _matlab({"annotations": np.array([rows], dtype=[(field, "O") for field in fields])})


def _matlab(content: Mapping[str, np.ndarray]) -> bytes:
    """A MATLAB 5 file; its header's free text (116 bytes) would hold the date."""
    from scipy.io import savemat

    file = io.BytesIO()
    savemat(file, dict(content), do_compression=True)
    return b"MATLAB 5.0 MAT-file, drawn by finetune".ljust(116) + file.getvalue()[116:]


def _tar(path: Path, members: Mapping[str, bytes]) -> None:
    """A gzipped tar of `members`, in their order."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), _MTIME
            tar.addfile(info, io.BytesIO(data))
