"""The layout that CIFAR-10 and CIFAR-100 share, their "python version": pickled dicts of flat images in a .tar.gz."""

import pickle
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from finetune.datasets._labelled import check_label
from finetune.datasets._source import Archives
from finetune.datasets.archives import stream_members
from finetune.datasets.dataset import Contents, Example, Late, Split
from finetune.errors import InputError


def read_python_version(
    archive: Path, meta: str, names_key: bytes, batches: Mapping[str, Split], labels_key: bytes
) -> Contents:
    """Read either CIFAR: the pickled dict in member `meta` has the class names, those in `batches` the images.

    Raises:
        InputError: as `Dataset.read`, or a pickle holds anything but plain values and arrays.
    """
    archives = Archives(archive.parent, (archive.name,))
    reading = _Batches(archives)
    members = stream_members(archives[archive.name], {meta, *batches})
    classes, labels = list[str](), dict[str, list[int]]()  # labels whose class names have not come yet, by where

    def name_classes(data: bytes) -> None:
        where = f"{archive}: {meta}"
        classes.extend(_names(_unpickle(data, where), names_key, where))

    def check() -> None:
        for where in list(labels):
            for index, label in enumerate(labels.pop(where)):
                check_label(label, len(classes), f"{where}[{index}]")

    def examples(members: Iterable[tuple[str, bytes]]) -> Iterator[Example]:
        for member, data in members:
            if member == meta:
                name_classes(data)
                continue
            where = f"{archive}: {member}"
            batch = _unpickle(data, where)
            labels[where] = found = _labels(batch, labels_key, where)
            if classes:
                check()
            for example in _examples(batch[b"data"], found, batches[member], f"{archive.name}: {member}"):
                reading.given += 1 / len(found)
                yield example
            reading.begin()

    def late() -> Late:
        check()
        return Late(tuple(classes))

    first = next(members)  # of an archive that has none, `stream_members` says so
    if first[0] != meta:
        return Contents((), examples(chain([first], members)), late=late, reading=reading)
    name_classes(first[1])
    return Contents(tuple(classes), examples(members), late=late, reading=reading)


class _Batches:
    """See `Reading`; the bytes of a batch count as read as its images are given."""

    def __init__(self, archives: Archives) -> None:
        self.given = 0.0  # of the present batch, 0 to 1
        self._archives, self._before = archives, 0.0

    def begin(self) -> None:
        """The next batch will be read now."""
        self.given, self._before = 0.0, self._archives.share()

    def md5(self) -> dict[str, str]:
        return self._archives.md5()

    def share(self) -> float:
        return self._before + self.given * (self._archives.share() - self._before)


def _names(content: Mapping[bytes, Any], key: bytes, where: str) -> list[str]:
    names = content.get(key)
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise InputError(f"{where}: no list of class names under {key!r}; get the archive again")
    return [name.decode("latin-1") for name in names]


def _labels(batch: Mapping[bytes, Any], key: bytes, where: str) -> list[int]:
    rows, labels = batch.get(b"data"), batch.get(key)
    if not (isinstance(rows, np.ndarray) and rows.dtype == np.uint8 and rows.shape[1:] == (3 * 32 * 32,)):
        raise InputError(f"{where}: b'data' is not a uint8 array of n x 3072; get the archive again")
    if not (isinstance(labels, list) and len(labels) == len(rows) and all(isinstance(k, int) for k in labels)):
        raise InputError(f"{where}: {key!r} is not a list of {len(rows)} labels; get the archive again")
    return labels


def _examples(rows: np.ndarray, labels: list[int], split: Split, where: str) -> Iterator[Example]:
    for index, (row, label) in enumerate(zip(rows, labels, strict=True)):
        image = np.ascontiguousarray(row.reshape(3, 32, 32).transpose(1, 2, 0))  # a row is three planes: R, G, B
        yield Example(split, label, image, f"{where}[{index}]")


def _unpickle(data: bytes, where: str) -> dict[bytes, Any]:
    try:
        # The official files are pickles of Python 2, whose texts are bytes.
        content = _PlainUnpickler(BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise InputError(f"{where}: not a pickle of plain values and arrays ({error}); get the archive again") from None
    if not isinstance(content, dict):
        raise InputError(f"{where}: found a pickled {type(content).__name__}, expected a dict; get the archive again")
    return content


class _PlainUnpickler(pickle.Unpickler):
    """Builds plain values and NumPy arrays; any other global, and so any foreign code, is refused."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _GLOBALS[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed") from None


def _no_bytes() -> bytes:
    """b"" as Python 3 pickles it in protocol 2."""
    return b""


_RECONSTRUCT = np.empty(0).__reduce__()[0]  # NumPy's own rebuilder of arrays, wherever this version keeps it
_GLOBALS = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "numpy.core.multiarray._reconstruct": _RECONSTRUCT,  # as NumPy 1 wrote it
    "numpy._core.multiarray._reconstruct": _RECONSTRUCT,  # NumPy 2
    "_codecs.encode": str.encode,  # bytes as Python 3 pickles them in protocol 2; text encodings only
    "__builtin__.bytes": _no_bytes,
}
