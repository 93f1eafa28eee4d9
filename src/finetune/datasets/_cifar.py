"""The layout that CIFAR-10 and CIFAR-100 share, their "python version": pickled dicts of flat images in a .tar.gz."""

import pickle
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from finetune.datasets.archives import check_label, read_members, stream_members
from finetune.datasets.dataset import Contents, Example, Split
from finetune.errors import InputError


def read_python_version(
    archive: Path, meta: str, names_key: bytes, batches: Mapping[str, Split], labels_key: bytes
) -> Contents:
    """Read either CIFAR: the pickled dict in member `meta` has the class names, those in `batches` the images.

    Raises:
        InputError: as `Dataset.read`, or a pickle holds anything but plain values and arrays.
    """
    where = f"{archive}: {meta}"
    names = _unpickle(read_members(archive, [meta])[meta], where).get(names_key)
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise InputError(f"{where}: no list of class names under {names_key!r}; get the archive again")
    classes = tuple(name.decode("latin-1") for name in names)
    return Contents(classes, _examples(archive, batches, labels_key, len(classes)))


def _examples(archive: Path, batches: Mapping[str, Split], labels_key: bytes, classes: int) -> Iterator[Example]:
    for member, data in stream_members(archive, batches):
        where = f"{archive}: {member}"
        batch = _unpickle(data, where)
        rows, labels = batch.get(b"data"), batch.get(labels_key)
        if not (isinstance(rows, np.ndarray) and rows.dtype == np.uint8 and rows.shape[1:] == (3 * 32 * 32,)):
            raise InputError(f"{where}: b'data' is not a uint8 array of n x 3072; get the archive again")
        if not (isinstance(labels, list) and len(labels) == len(rows) and all(isinstance(k, int) for k in labels)):
            raise InputError(f"{where}: {labels_key!r} is not a list of {len(rows)} labels; get the archive again")
        for index, (row, label) in enumerate(zip(rows, labels, strict=True)):
            image = np.ascontiguousarray(row.reshape(3, 32, 32).transpose(1, 2, 0))  # a row is three planes: R, G, B
            checked = check_label(label, classes, f"{where}[{index}]")
            yield Example(batches[member], checked, image, f"{archive.name}: {member}[{index}]")


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
