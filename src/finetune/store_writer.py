"""Writes a store; `store` has the format."""

import json
import os
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from finetune.store import APART, FILES, SPLITS, TOGETHER, digest, hashes, seal

_BUFFER = 1 << 20  # bytes of pixels that are written at once
_MOST = 512  # images, in one call of the system; it takes 1,024
_CODES = {split: code for code, split in enumerate(SPLITS)}
_UNTOLD = -1


class _Pixels:
    """A pixel file as it grows."""

    def __init__(self, path: Path) -> None:
        self.size = 0  # bytes, with those that wait to be written
        self._file: BinaryIO = path.open("wb", buffering=0)
        self._waiting: list[memoryview] = []
        self._written = 0

    def append(self, image: np.ndarray) -> None:
        self._waiting.append(image.reshape(-1).data)
        self.size += image.size
        if self.size - self._written >= _BUFFER or len(self._waiting) == _MOST:
            self.flush()

    def flush(self) -> None:
        waiting = self._waiting
        while waiting:
            written = os.writev(self._file.fileno(), waiting)  # may be a part
            self._written += written
            whole = 0
            while whole < len(waiting) and written >= len(waiting[whole]):
                written -= len(waiting[whole])
                whole += 1
            del waiting[:whole]
            if written:
                waiting[0] = waiting[0][written:]

    def close(self) -> None:
        self._file.close()


class Writer:
    """Writes a store into the empty folder `aside`; the caller moves it into place once `finish` has returned.

    Takes some 80 bytes of memory for each image, and a few mebibytes of pixels.
    """

    def __init__(self, aside: Path, together: bool = False) -> None:
        """
        Args:
            together: the splits are told by `place`, after all images, which lie in one file therefore.
        """
        self.aside, self._together = aside, together
        aside.mkdir(parents=True)
        self._pixels = {name: _Pixels(aside / f"{name}.u8") for name in (("pixels",) if together else FILES)}
        self._members = (aside / "members.txt").open("w", encoding="utf-8", newline="\n")  # of both official splits
        # Of each image, in the order in which they come:
        self._splits: array[int] | np.ndarray = array("b")
        self._labels: array[int] | np.ndarray = array("q")
        self._index = array("q")  # offset, height, width
        self._content, self._decoded = bytearray(), bytearray()  # hashes; those before shrinking are not written
        self._original = array("i")  # height, width before shrinking

    def add(
        self,
        official_split: str | None,
        label: int,
        image: np.ndarray,
        member: str = "",
        content: bytes | None = None,
        decoded: bytes | None = None,
        original: tuple[int, int] | None = None,
    ) -> None:
        """Append one image (uint8, height x width x 3), which must not be changed afterwards.

        Args:
            official_split: `train`, `val` where the data set has one of its own, or `test`; None: `place` tells.
            member: its name in its archive.
            content: `content_hash` of its pixels, where the caller has it already.
            decoded: the same of its pixels before shrinking; None: it was not shrunk.
            original: height, width before shrinking; None: it was not shrunk.
        """
        pixels = self._pixels["pixels" if self._together or official_split is None else SPLITS[official_split]]
        image = np.ascontiguousarray(image)
        content = content or content_hash(image)
        self._splits.append(_UNTOLD if official_split is None else _CODES[official_split])  # type: ignore[union-attr]
        self._labels.append(label)  # type: ignore[union-attr]
        self._index.extend((pixels.size, *image.shape[:2]))
        self._content += content
        self._decoded += decoded or content
        self._original.extend(original or image.shape[:2])
        self._members.write(json.dumps(member) + "\n")
        pixels.append(image)

    def place(self, splits: np.ndarray, labels: np.ndarray) -> None:
        """Tell split and label of each image: places in SPLITS, and int64."""
        self._splits, self._labels = splits, labels

    def size(self) -> int:
        """Bytes of pixels so far."""
        return sum(file.size for file in self._pixels.values())

    def counts(self) -> dict[str, int]:
        """Images so far of the official splits, with validation under `train`."""
        return {"train": int(self._chosen("trainval").sum()), "test": int(self._chosen("test").sum())}

    def labels(self, name: str = "trainval") -> np.ndarray:
        """Labels so far of an official split, in the order they came: int64."""
        return np.array(self._labels, np.int64)[self._chosen(name)]

    def own_validation(self) -> np.ndarray:
        """Which images of the official training split came as `val`: bool."""
        return np.array(self._splits, np.int8)[self._chosen("trainval")] == _CODES["val"]

    def hashes(self, name: str) -> np.ndarray:
        """`content_hash` of each image of an official split, as it was before shrinking: uint8, images x 16."""
        return np.frombuffer(bytes(self._decoded), np.uint8).reshape(-1, 16)[self._chosen(name)]

    def member(self, name: str, row: int) -> str:
        """The archive member that image `row` of an official split came from."""
        self._members.flush()
        image = np.flatnonzero(self._chosen(name))[row]
        with (self.aside / "members.txt").open(encoding="utf-8") as lines:
            return json.loads(next(line for i, line in enumerate(lines) if i == image))

    def finish(self, validation: np.ndarray, meta: Mapping[str, Any], left_out: np.ndarray | None = None) -> None:
        """Close the files and write arrays and meta.json.

        Args:
            validation: bool, one per image of the official training split.
            meta: what to record beside counts, format and digest.
            left_out: bool, the same: images of no split.
        """
        for file in self._pixels.values():
            file.flush()
        self.close()
        used = np.ones(len(validation), bool) if left_out is None else ~left_out
        rows = {"train": ~validation & used, "val": validation & used, "test": np.ones(len(self.labels("test")), bool)}
        for split, chosen in rows.items():
            np.save(self.aside / f"{split}.rows.npy", np.flatnonzero(chosen).astype(np.int64))
        content = np.frombuffer(bytes(self._content), np.uint8).reshape(-1, 16)
        for name in FILES:
            chosen = self._chosen(name)
            np.save(self.aside / f"{name}.index.npy", np.array(self._index, np.int64).reshape(-1, 3)[chosen])
            np.save(self.aside / f"{name}.labels.npy", self.labels(name))
            np.save(self.aside / f"{name}.content.npy", content[chosen])
            np.save(self.aside / f"{name}.original.npy", np.array(self._original, np.int32).reshape(-1, 2)[chosen])
        self._sort_members()
        meta = {"format": TOGETHER if self._together else APART, **meta}
        meta |= {"counts": {split: int(chosen.sum()) for split, chosen in rows.items()}}
        meta |= {"digest": digest(self.aside, meta), "files": hashes(self.aside)}
        meta["seal"] = seal(meta)
        (self.aside / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")

    def close(self) -> None:
        """Close the files; may be called again."""
        for file in self._pixels.values():
            file.close()
        self._members.close()

    def _chosen(self, name: str) -> np.ndarray:
        """Which images are of an official split: bool."""
        return (np.array(self._splits, np.int8) == _CODES["test"]) == (name == "test")

    def _sort_members(self) -> None:
        one, other = ((self.aside / f"{name}.members.txt").open("wb") for name in FILES)
        with (self.aside / "members.txt").open("rb") as lines, one, other:
            for line, of_test in zip(lines, self._chosen("test"), strict=True):
                (other if of_test else one).write(line)
        (self.aside / "members.txt").unlink()


def content_hash(image: np.ndarray) -> bytes:
    """XXH3 (128 bits) of an image's pixels, seeded with its height: 16 bytes. It is as fast as memory is.

    Args:
        image: uint8, height x width x 3, contiguous.
    """
    return xxhash.xxh3_128_digest(image.reshape(-1).data, seed=image.shape[0])
