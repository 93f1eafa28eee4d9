"""The array format on disk: written atomically, opened memory-mapped, checked.

A store is a folder. Pixels lie in two flat files, one for the official training split (`trainval.u8`) and one for
test (`test.u8`). A split is a pair of arrays beside them: `<split>.index.npy`, int64 rows (offset, height, width)
into its pixel file, and `<split>.labels.npy`. Validation is a choice of rows of the training file, so images are
written once, in one pass, whatever the split. `meta.json` names classes, counts, sources, format and digest.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from finetune.errors import InputError
from finetune.runs import read_json

FORMAT = 1
SPLITS = {"train": "trainval", "val": "trainval", "test": "test"}


@dataclass(frozen=True)
class Split:
    """The images and labels of one split, read from disk as they are used."""

    pixels: np.ndarray  # uint8, flat, memory-mapped
    index: np.ndarray  # int64, images x 3: offset, height, width
    labels: np.ndarray  # int64, images

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, i: int) -> np.ndarray:
        """Image i: uint8, height x width x 3, a copy in memory."""
        offset, height, width = self.index[i]
        return np.array(self.pixels[offset : offset + height * width * 3]).reshape(height, width, 3)


@dataclass(frozen=True)
class Store:
    """An opened store. Test is read only by whoever asks for it."""

    path: Path
    meta: dict[str, Any]

    @property
    def classes(self) -> list[str]:
        return self.meta["classes"]

    @property
    def digest(self) -> str:
        return self.meta["digest"]

    def split(self, name: str) -> Split:
        """The split `train`, `val` or `test`.

        Raises:
            InputError: a file of it is missing, unreadable or too short.
        """
        file = self.path / f"{SPLITS[name]}.u8"
        try:
            index = np.load(self.path / f"{name}.index.npy")
            labels = np.load(self.path / f"{name}.labels.npy")
            pixels = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.empty(0, np.uint8)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path}: a broken store ({error}); make it again with `dvc repro`") from None
        if len(index) and (end := int((index[:, 0] + index[:, 1] * index[:, 2] * 3).max())) > len(pixels):
            raise InputError(
                f"{file}: found {len(pixels)} bytes, expected {end}; make the store again with `dvc repro`"
            )
        return Split(pixels, index, labels)


def open_store(path: Path) -> Store:
    """Open the store in folder `path`.

    Raises:
        InputError: there is none, or it is of another format.
    """
    if not (path / "meta.json").is_file():
        raise InputError(f"{path}: no store here; make it with `dvc repro -s prepare@{path.name}`")
    meta = read_json(path / "meta.json")
    if meta.get("format") != FORMAT:
        raise InputError(
            f"{path}: store format {meta.get('format')}, expected {FORMAT}; make it again with "
            f"`dvc repro -s -f prepare@{path.name}`"
        )
    return Store(path, meta)


class Writer:
    """Writes a store into the empty folder `aside`; the caller moves it into place once `finish` has returned."""

    def __init__(self, aside: Path) -> None:
        self.aside = aside
        aside.mkdir(parents=True)
        self._pixels: dict[str, BinaryIO] = {n: (aside / f"{n}.u8").open("wb") for n in ("trainval", "test")}
        self._rows: dict[str, list[tuple[int, int, int]]] = {"trainval": [], "test": []}
        self._labels: dict[str, list[int]] = {"trainval": [], "test": []}

    def add(self, official_split: str, label: int, image: np.ndarray) -> None:
        """Append one image (uint8, height x width x 3) of the official split `train` or `test`."""
        name = SPLITS[official_split]
        file = self._pixels[name]
        self._rows[name].append((file.tell(), *image.shape[:2]))
        self._labels[name].append(label)
        file.write(np.ascontiguousarray(image).data)

    def counts(self) -> dict[str, int]:
        """Images so far of the official splits."""
        return {"train": len(self._labels["trainval"]), "test": len(self._labels["test"])}

    def labels(self) -> np.ndarray:
        """Labels so far of the official training split, in the order they came."""
        return np.asarray(self._labels["trainval"], np.int64)

    def finish(self, validation: np.ndarray, meta: Mapping[str, Any]) -> None:
        """Close the files and write indexes and meta.json.

        Args:
            validation: bool, one per image of the official training split.
            meta: what to record beside counts, format and digest.
        """
        self.close()
        everything = np.ones(len(self._labels["test"]), bool)
        chosen = {"train": ("trainval", ~validation), "val": ("trainval", validation), "test": ("test", everything)}
        counts = {}
        for split, (name, rows) in chosen.items():
            np.save(self.aside / f"{split}.index.npy", np.array(self._rows[name], np.int64).reshape(-1, 3)[rows])
            labels = np.asarray(self._labels[name], np.int64)[rows]
            np.save(self.aside / f"{split}.labels.npy", labels)
            counts[split] = len(labels)
        meta = {"format": FORMAT, **meta, "counts": counts}
        meta["digest"] = _digest(self.aside, meta)
        (self.aside / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")

    def close(self) -> None:
        """Close the pixel files; may be called again."""
        for file in self._pixels.values():
            file.close()


def _digest(folder: Path, meta: Mapping[str, Any]) -> str:
    """SHA-256 over every array and the class names, 64 hex digits."""
    total = hashlib.sha256(json.dumps([meta["format"], meta["classes"]]).encode())
    for file in sorted(folder.iterdir()):
        if file.name != "meta.json":
            with file.open("rb") as opened:
                total.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()
