"""Tiny archives of every data set in its official layout, for tests: `write("cub200", folder)`.

Every image of label k is of the one colour `colour(k)`, so a test can see that images and labels belong together.
"""

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_NAMES = {  # in label order, which is not the alphabet's for those that start with CIFAR-10's and Cars'
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "cifar100": ("apple", "aquarium_fish", "baby", "bear", "beaver", "bed"),
    "cub200": ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross", "004.Groove_billed_Ani"),
    "cars196": ("AM General Hummer SUV 2000", "Volvo C30 Hatchback 2012", "Acura RL Sedan 2012", "Audi R8 Coupe 2012"),
    "food101": ("apple_pie", "baby_back_ribs", "baklava", "beef_carpaccio"),
}


def class_names(name: str, classes: int = 3) -> tuple[str, ...]:
    """The classes of data set `name` in label order."""
    assert classes <= len(_NAMES[name])
    return _NAMES[name][:classes]


def colour(label: int) -> tuple[int, int, int]:
    """The RGB colour of every image of `label`."""
    return ((40 + 90 * label) % 256, (200 - 70 * label) % 256, (90 + 150 * label) % 256)


def write(name: str, folder: Path, classes: int = 3, train: int = 4, test: int = 2) -> None:
    """Write the archives of data set `name` into `folder`; `train` and `test` are images per class."""
    folder.mkdir(parents=True, exist_ok=True)
    _WRITERS[name](folder, class_names(name, classes), {"train": train, "test": test})


@contextmanager
def edited(archive: Path) -> Iterator[dict[str, bytes]]:
    """The files of an archive as {member: content}; what the block makes of them is written back."""
    with tarfile.open(archive) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar if member.isreg()}  # type: ignore[union-attr]
    yield files
    tarball(archive, files)


def tarball(archive: Path, files: Mapping[str, bytes], extra: tuple[tarfile.TarInfo, ...] = ()) -> None:
    """Write an archive; `extra` are members without content (folders, links). Equal files give equal bytes."""
    with gzip.GzipFile(archive, "wb", mtime=0) as unzipped, tarfile.open(fileobj=unzipped, mode="w") as tar:
        for member in extra:
            tar.addfile(member)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def python2_pickle(content: Any) -> bytes:
    """`content` as Python 2 and NumPy 1 pickled it, and so the official CIFAR files: bytes are `str`."""
    return b"\x80\x02" + _opcodes(content) + b"."


def _opcodes(value: Any) -> bytes:  # noqa: PLR0911 one return per type
    def joined(*values: Any) -> bytes:
        return b"".join(map(_opcodes, values))

    match value:
        case None:
            return b"N"
        case int():
            return b"J" + struct.pack("<i", value)
        case float():
            return b"G" + struct.pack(">d", value)
        case bytes():
            return b"T" + struct.pack("<i", len(value)) + value
        case tuple():
            return b"(" + joined(*value) + b"t"
        case list():
            return b"](" + joined(*value) + b"e"
        case dict():
            return b"}(" + joined(*(part for item in value.items() for part in item)) + b"u"
        case np.ndarray():
            order, kind = value.dtype.str[:1].encode(), value.dtype.str[1:].encode()
            dtype = b"cnumpy\ndtype\n" + _opcodes((kind, 0, 1)) + b"R"
            dtype += _opcodes((3, order, None, None, None, -1, -1, 0)) + b"b"
            empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + joined((0,), b"b") + b"tR"
            return empty + b"(" + joined(1, value.shape) + dtype + joined(0, value.tobytes()) + b"tb"
    raise TypeError(type(value))


def mat(**variables: Any) -> bytes:
    """A MATLAB file."""
    from scipy.io import savemat

    file: Any = io.BytesIO()  # scipy-stubs does not know that savemat takes an open file
    savemat(file, variables)
    return file.getvalue()


def annotations(rows: list[tuple[str, int]]) -> np.ndarray:
    """The annotations of Stanford Cars, from (file name, class from 1)."""
    kinds = [(key, "O") for key in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    return np.array([[(1, 1, 30, 20, number, image) for image, number in rows]], dtype=kinds)


def _folder(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info


def _jpeg(label: int, index: int) -> bytes:
    """One colour all over, in various sizes."""
    file = io.BytesIO()
    Image.new("RGB", (30 + index, 24 + 2 * label), colour(label)).save(file, "JPEG", quality=95)
    return file.getvalue()


def _cifar_batch(labels: list[int], labels_key: bytes) -> bytes:
    planes = np.array([colour(label) for label in labels], np.uint8).reshape(-1, 3, 1)
    rows = np.broadcast_to(planes, (len(labels), 3, 1024)).reshape(-1, 3072).copy()
    bits = np.arange(len(labels))[:, None] >> np.arange(8) & 1
    rows[:, :8] ^= bits.astype(np.uint8)  # no two images of a class are the same
    names = [b"image_%d.png" % index for index in range(len(labels))]
    return python2_pickle({b"batch_label": b"", labels_key: labels, b"data": rows, b"filenames": names})


def _cifar10(folder: Path, names: tuple[str, ...], images: Mapping[str, int]) -> None:
    top, labels = "cifar-10-batches-py", {split: list(range(len(names))) * n for split, n in images.items()}
    meta = {b"num_cases_per_batch": 1, b"label_names": [name.encode() for name in names], b"num_vis": 3072}
    files = {  # the official archive's order is no more orderly
        f"{top}/data_batch_4": _cifar_batch(labels["train"][3::5], b"labels"),
        f"{top}/readme.html": b"<html></html>",
        f"{top}/test_batch": _cifar_batch(labels["test"], b"labels"),
        f"{top}/data_batch_3": _cifar_batch(labels["train"][2::5], b"labels"),
        f"{top}/batches.meta": python2_pickle(meta),
        f"{top}/data_batch_2": _cifar_batch(labels["train"][1::5], b"labels"),
        f"{top}/data_batch_5": _cifar_batch(labels["train"][4::5], b"labels"),
        f"{top}/data_batch_1": _cifar_batch(labels["train"][0::5], b"labels"),
    }
    tarball(folder / "cifar-10-python.tar.gz", files, (_folder(top),))


def _cifar100(folder: Path, names: tuple[str, ...], images: Mapping[str, int]) -> None:
    top, labels = "cifar-100-python", {split: list(range(len(names))) * n for split, n in images.items()}
    meta = {b"fine_label_names": [name.encode() for name in names], b"coarse_label_names": [b"all"]}
    files = {
        f"{top}/file.txt~": b"",
        f"{top}/train": _cifar_batch(labels["train"], b"fine_labels"),
        f"{top}/test": _cifar_batch(labels["test"], b"fine_labels"),
        f"{top}/meta": python2_pickle(meta),
    }
    tarball(folder / "cifar-100-python.tar.gz", files, (_folder(top),))


def _cub200(folder: Path, names: tuple[str, ...], images: Mapping[str, int]) -> None:
    top, files = "CUB_200_2011", {"attributes.txt": b"1 has_bill_shape::curved\n", "._attributes.txt": b"\0\5\x16\7"}
    lines: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": []}
    for label, bird in enumerate(names):
        for index in range(sum(images.values())):
            path, number = f"{bird}/Bird_{index:04d}.jpg", len(lines["images"]) + 1
            files[f"{top}/images/{path}"] = _jpeg(label, index)
            files[f"{top}/images/{bird}/._Bird_{index:04d}.jpg"] = b"\0\5\x16\7"
            lines["images"].append(f"{number} {path}")
            lines["image_class_labels"].append(f"{number} {label + 1}")
            lines["train_test_split"].append(f"{number} {int(index < images['train'])}")
    lines["classes"] = [f"{number} {bird}" for number, bird in enumerate(names, 1)]
    files |= {f"{top}/{name}.txt": "".join(f"{line}\n" for line in table).encode() for name, table in lines.items()}
    tarball(folder / "CUB_200_2011.tgz", files, (_folder(top), _folder(f"{top}/images")))


def _cars196(folder: Path, names: tuple[str, ...], images: Mapping[str, int]) -> None:
    labels_of = {}
    for split, n in images.items():
        labels = list(range(len(names))) * n
        files = {f"cars_{split}/{k:05d}.jpg": _jpeg(label, k) for k, label in enumerate(labels, 1)}
        tarball(folder / f"cars_{split}.tgz", files, (_folder(f"cars_{split}"),))
        labels_of[split] = mat(annotations=annotations([(f"{k:05d}.jpg", y + 1) for k, y in enumerate(labels, 1)]))
    devkit = {
        "devkit/cars_meta.mat": mat(class_names=np.array([names], dtype="O")),
        "devkit/cars_train_annos.mat": labels_of["train"],
        "devkit/README.txt": b"",
    }
    tarball(folder / "car_devkit.tgz", devkit, (_folder("devkit"),))
    (folder / "cars_test_annos_withlabels.mat").write_bytes(labels_of["test"])


def _food101(folder: Path, names: tuple[str, ...], images: Mapping[str, int]) -> None:
    top, files = "food-101", {}
    listing: dict[str, dict[str, list[str]]] = {split: {dish: [] for dish in names} for split in images}
    for label, dish in enumerate(names):
        for index in range(sum(images.values())):
            files[f"{top}/images/{dish}/{1000 + index}.jpg"] = _jpeg(label, index)
            listing["train" if index < images["train"] else "test"][dish].append(f"{dish}/{1000 + index}")
    files[f"{top}/license_agreement.txt"] = b""
    files[f"{top}/meta/classes.txt"] = "".join(f"{dish}\n" for dish in names).encode()
    files |= {f"{top}/meta/{split}.json": json.dumps(dishes).encode() for split, dishes in listing.items()}
    tarball(folder / "food-101.tar.gz", files, (_folder(top), _folder(f"{top}/images")))


_WRITERS: dict[str, Callable[[Path, tuple[str, ...], Mapping[str, int]], None]] = {
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "cub200": _cub200,
    "cars196": _cars196,
    "food101": _food101,
}
