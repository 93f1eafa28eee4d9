"""Writes a store; `store` has the format."""

import json
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
import xxhash

from finetune.store import FILES, FORMAT, SPLITS, digest, hashes, seal


@dataclass
class _File:
    """One pixel file as it grows, and its images' entries: some 70 bytes of memory for each."""

    pixels: BinaryIO
    members: TextIO
    index: "array[int]" = field(default_factory=lambda: array("q"))  # offset, height, width of each image
    labels: "array[int]" = field(default_factory=lambda: array("q"))
    content: bytearray = field(default_factory=bytearray)
    decoded: bytearray = field(default_factory=bytearray)  # hashes before shrinking; not written
    original: "array[int]" = field(default_factory=lambda: array("i"))  # height, width before shrinking
    size: int = 0  # bytes of pixels


class Writer:
    """Writes a store into the empty folder `aside`; the caller moves it into place once `finish` has returned."""

    def __init__(self, aside: Path) -> None:
        self.aside = aside
        aside.mkdir(parents=True)
        self._files = {
            name: _File(
                (aside / f"{name}.u8").open("wb", buffering=0),
                (aside / f"{name}.members.txt").open("w", encoding="utf-8", newline="\n"),
            )
            for name in FILES
        }

    def add(
        self,
        official_split: str,
        label: int,
        image: np.ndarray,
        member: str = "",
        content: bytes | None = None,
        decoded: bytes | None = None,
        original: tuple[int, int] | None = None,
    ) -> None:
        """Append one image (uint8, height x width x 3) of the official split `train` or `test`.

        Args:
            member: its name in its archive.
            content: `content_hash` of its pixels, where the caller has it already.
            decoded: the same of its pixels before shrinking; None: it was not shrunk.
            original: height, width before shrinking; None: it was not shrunk.
        """
        file = self._files[SPLITS[official_split]]
        image = np.ascontiguousarray(image)
        file.index.extend((file.size, *image.shape[:2]))
        file.labels.append(label)
        content = content or content_hash(image)
        file.content += content
        file.decoded += decoded or content
        file.original.extend(original or image.shape[:2])
        file.members.write(json.dumps(member) + "\n")
        view = image.reshape(-1).data
        while len(view):  # an unbuffered write may be a partial one
            view = view[file.pixels.write(view) :]
        file.size += image.size

    def size(self) -> int:
        """Bytes of pixels so far."""
        return sum(file.size for file in self._files.values())

    def counts(self) -> dict[str, int]:
        """Images so far of the official splits."""
        return {"train": len(self._files["trainval"].labels), "test": len(self._files["test"].labels)}

    def labels(self, name: str = "trainval") -> np.ndarray:
        """Labels so far in a pixel file, in the order they came: int64."""
        return np.array(self._files[name].labels, np.int64)

    def hashes(self, name: str) -> np.ndarray:
        """`content_hash` of each image in a pixel file, as it was before shrinking: uint8, images x 16."""
        return np.frombuffer(bytes(self._files[name].decoded), np.uint8).reshape(-1, 16)

    def member(self, name: str, row: int) -> str:
        """The archive member that image `row` of a pixel file came from."""
        self._files[name].members.flush()
        with (self.aside / f"{name}.members.txt").open(encoding="utf-8") as lines:
            return json.loads(next(line for i, line in enumerate(lines) if i == row))

    def finish(self, validation: np.ndarray, meta: Mapping[str, Any], left_out: np.ndarray | None = None) -> None:
        """Close the files and write arrays and meta.json.

        Args:
            validation: bool, one per image of the official training split.
            meta: what to record beside counts, format and digest.
            left_out: bool, the same: images of no split.
        """
        self.close()
        used = np.ones(len(validation), bool) if left_out is None else ~left_out
        rows = {"train": ~validation & used, "val": validation & used, "test": np.ones(len(self.labels("test")), bool)}
        for split, chosen in rows.items():
            np.save(self.aside / f"{split}.rows.npy", np.flatnonzero(chosen).astype(np.int64))
        for name, file in self._files.items():
            np.save(self.aside / f"{name}.index.npy", np.array(file.index, np.int64).reshape(-1, 3))
            np.save(self.aside / f"{name}.labels.npy", self.labels(name))
            np.save(self.aside / f"{name}.content.npy", np.frombuffer(bytes(file.content), np.uint8).reshape(-1, 16))
            np.save(self.aside / f"{name}.original.npy", np.array(file.original, np.int32).reshape(-1, 2))
        meta = {"format": FORMAT, **meta, "counts": {split: int(chosen.sum()) for split, chosen in rows.items()}}
        meta |= {"digest": digest(self.aside, meta), "files": hashes(self.aside)}
        meta["seal"] = seal(meta)
        (self.aside / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")

    def close(self) -> None:
        """Close the files; may be called again."""
        for file in self._files.values():
            file.pixels.close()
            file.members.close()


def content_hash(image: np.ndarray) -> bytes:
    """XXH3 (128 bits) of an image's pixels, seeded with its height: 16 bytes. It is as fast as memory is.

    Args:
        image: uint8, height x width x 3, contiguous.
    """
    return xxhash.xxh3_128_digest(image.reshape(-1).data, seed=image.shape[0])
