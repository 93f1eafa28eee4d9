"""Whether the store that lies there is the one that prepare would make, so that it need not be made again.

DVC runs prepare when anything of the data set's entry in params.yaml changes, also what no store depends on. A store is
kept only if it was made by this very code and these libraries, with these settings, from these archives, and every byte
of it is as it was written. Code and libraries are noted beside the store: in it they would be part of what trainings
depend on.
"""

import hashlib
import inspect
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from finetune import datasets
from finetune.archive_check import check_archives, source_meta
from finetune.datasets import Dataset
from finetune.datasets._class_layout import IMAGES
from finetune.datasets._members import ARCHIVES, members
from finetune.errors import InputError
from finetune.params import PrepareParams
from finetune.runs import read_json, write_json
from finetune.store import Store, open_store
from finetune.store_check import check

# What decides the bytes of a store; dvc.yaml lists the same for the stage prepare.
_CODE = (
    "archive_check.py",
    "datasets/*.py",
    "decoding.py",
    "duplicates.py",
    "images.py",
    "prepare.py",
    "store.py",
    "store_writer.py",
)
_LIBRARIES = ("isal", "numpy", "pillow", "scipy", "simplejpeg", "torch", "xxhash")


def find(
    dataset: Dataset,
    edition: str,
    settings: PrepareParams,
    archives: Path,
    place: Path,
    md5: Mapping[str, str] | None = None,
) -> Store | None:
    """The store at `place` if it is what prepare would make; None in any doubt.

    Args:
        md5: of the archives, where the caller has read them already.

    Raises:
        InputError: archives are not the edition's.
    """
    try:
        note, store = read_json(_note(place)), open_store(place)
        claimed = source_meta(dataset, edition, store.meta["archives_md5"], settings) | {"dataset": dataset.name}
        if note != _made_by(dataset, archives, store) or not claimed.items() <= store.meta.items():
            return None
    except (InputError, OSError):
        return None
    if (md5 or check_archives(dataset, edition, archives)) != store.meta["archives_md5"]:
        return None
    try:
        check(store)
    except (InputError, OSError):
        return None
    return store


def note(dataset: Dataset, archives: Path, store: Store) -> None:
    """Note beside a store that was just made what made it."""
    if made_by := _made_by(dataset, archives, store):
        write_json(_note(store.path), made_by)


def _note(place: Path) -> Path:
    return place.with_name(f".{place.name}.made.json")


def _made_by(dataset: Dataset, archives: Path, store: Store) -> Mapping[str, Any] | None:
    """None where the reader is none of ours, whose code is not looked at."""
    package = Path(datasets.__file__).parent
    reader = inspect.getsourcefile(dataset.read)
    if reader is None or Path(reader).parent != package:
        return None
    code = hashlib.sha256()
    for pattern in _CODE:
        for file in sorted(package.parent.glob(pattern)):
            code.update(f"{file.name}\0".encode() + file.read_bytes() + b"\0")
    made_by = {"code": code.hexdigest(), "libraries": dict(map(_version, _LIBRARIES)), "seal": store.meta["seal"]}
    return made_by | {"archives": _size(dataset, archives)}


def _size(dataset: Dataset, archives: Path) -> Mapping[str, int]:
    """How much lies there: where that differs, nothing need be read to know that the archives do."""
    names = dataset.archives or (name for name, _ in members(archives) if name.lower().endswith((*IMAGES, *ARCHIVES)))
    sizes = [(archives / name).stat().st_size for name in names]
    return {"files": len(sizes), "bytes": sum(sizes)}


def _version(library: str) -> tuple[str, str | None]:
    try:
        return library, version(library)
    except PackageNotFoundError:
        return library, None
