"""The array format on disk: opened memory-mapped, checked. `store_writer` writes it.

A store is a folder. Pixels lie in two flat files, one for the official training split (`trainval.u8`) and one for
test (`test.u8`): format 2. Where the archive told the splits only after its images, they lie in one, `pixels.u8`:
format 3. For each official split there are, one entry per image: `<split>.index.npy`, int64 rows (offset, height,
width) into its file, `<split>.labels.npy`, int64, `<split>.content.npy`, uint8 rows of 16 (XXH3 of the pixels),
`<split>.original.npy`, int32 rows (height, width) before shrinking, and `<split>.members.txt`, the name in its archive.
A split is a choice of these images, `<split>.rows.npy`, int64: they are written once, in one pass, whatever the split.
`meta.json` names classes, counts, sources, duplicates, format and digest, and has a hash of each small file and of
itself.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.errors import InputError
from finetune.runs import read_json

APART, TOGETHER = 2, 3  # formats: a pixel file for each official split, or one for both
FORMAT = TOGETHER  # the newest
FILES = ("trainval", "test")
NUMBERS = ("index", "labels", "content", "rows")  # the arrays that decide a training's numbers
SPLITS = {"train": "trainval", "val": "trainval", "test": "test"}  # split -> the official one that it is of
_DIGEST = 2  # the version of its recipe


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

    def put(self, i: int, into: np.ndarray) -> None:
        """Copy the values of image i into a flat array of as many."""
        offset = self.index[i, 0]
        into[:] = self.pixels[offset : offset + len(into)]

    def part(self, fraction: float, seed: int) -> "Split":
        """About `fraction` of each class, at least one image. With one seed, a smaller part lies in every larger one.

        Args:
            fraction: in (0, 1].
        """
        if fraction == 1:
            return self
        chosen = np.zeros(len(self), bool)
        for label in np.unique(self.labels):
            members = np.random.default_rng((seed, int(label))).permutation(np.flatnonzero(self.labels == label))
            chosen[members[: max(1, round(fraction * len(members)))]] = True
        return Split(self.pixels, self.index[chosen], self.labels[chosen])


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
        official = SPLITS[name]
        file = self.pixel_file(official)
        rows, index, labels = (self.array(n) for n in (f"{name}.rows", f"{official}.index", f"{official}.labels"))
        try:
            pixels = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.empty(0, np.uint8)
            index, labels = index[rows], labels[rows]
        except (OSError, IndexError) as error:
            raise broken(self, error) from None
        if len(index) and (end := int((index[:, 0] + index[:, 1] * index[:, 2] * 3).max())) > len(pixels):
            raise InputError(
                f"{file}: found {len(pixels)} bytes, expected {end}; make the store again with {again(self)}"
            )
        return Split(pixels, index, labels)

    def pixel_file(self, official: str) -> Path:
        """Where the pixels of `trainval` or `test` lie."""
        return self.path / f"{official if self.meta['format'] == APART else 'pixels'}.u8"

    def array(self, name: str) -> np.ndarray:
        """The array in `<name>.npy`."""
        try:
            return np.load(self.path / f"{name}.npy")
        except (OSError, ValueError, EOFError) as error:
            raise broken(self, error) from None

    def members(self, split: str) -> list[str]:
        """The name of each image of a split in the archive it came from."""
        try:
            names = (self.path / f"{SPLITS[split]}.members.txt").read_text(encoding="utf-8").split("\n")
            return [json.loads(names[row]) for row in self.array(f"{split}.rows")]
        except (OSError, IndexError, ValueError) as error:
            raise broken(self, error) from None


def open_store(path: Path) -> Store:
    """Open the store in folder `path`.

    Raises:
        InputError: there is none, or it is of another format.
    """
    if not (path / "meta.json").is_file():
        raise InputError(f"{path}: no store here; make it with `dvc repro -s prepare@{path.name}`")
    store = Store(path, read_json(path / "meta.json"))
    if store.meta.get("format") not in (APART, TOGETHER):
        raise InputError(
            f"{path}: store format {store.meta.get('format')}, expected {APART} or {TOGETHER}; make it again with "
            f"{again(store)}"
        )
    return store


def again(store: Store) -> str:
    """How to make a store anew."""
    return f"`dvc repro -s -f prepare@{store.path.name}`"


def broken(store: Store, error: Exception) -> InputError:
    return InputError(f"{store.path}: a broken store ({error}); make it again with {again(store)}")


def digest(folder: Path, meta: Mapping[str, Any]) -> str:
    """SHA-256 over the class names and the arrays that decide numbers, and so, by each image's hash, over the pixels.
    Where in which file these lie is no part of it.

    Returns:
        64 hex digits.
    """
    total = hashlib.sha256(json.dumps([_DIGEST, meta["classes"]]).encode())
    for file in sorted(folder.glob("*.npy")):
        kind = file.name.split(".")[-2]
        if kind in NUMBERS:
            content = _as_if_apart(np.load(file)) if kind == "index" else file.read_bytes()
            total.update(file.name.encode() + hashlib.sha256(content).digest())
    return total.hexdigest()


def _as_if_apart(index: np.ndarray) -> bytes:
    """The file of an index into pixels that lie one after another."""
    ends = np.cumsum(index[:, 1] * index[:, 2] * 3)
    apart, file = index.copy(), io.BytesIO()
    apart[1:, 0] = ends[:-1]
    apart[:1, 0] = 0
    np.save(file, apart)
    return file.getvalue()


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a store but the pixels, which have hashes per image, and meta.json."""
    files = sorted(file for file in folder.iterdir() if file.suffix in (".npy", ".txt"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def seal(meta: Mapping[str, Any]) -> str:
    """SHA-256 over all that meta.json says, itself apart."""
    said = {key: value for key, value in meta.items() if key != "seal"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
