"""The hash of a folder of images as DVC has it for one that holds just these, of bytes that are read once."""

import hashlib
import json
import os
from pathlib import Path

from finetune.datasets._class_layout import is_image
from finetune.errors import InputError

_BYTES = 16  # of an MD5


class FolderHash:
    """See `Reading`."""

    def __init__(self, source: Path, total: int) -> None:
        self.images = 0  # so far
        self._source, self._total, self._hashes = source, total, dict[str, bytearray]()

    def take(self, folder: str, data: bytes) -> None:
        """Note the next image of `folder`, in the order of its names."""
        self.images += 1
        self._hashes.setdefault(folder, bytearray()).extend(hashlib.md5(data, usedforsecurity=False).digest())

    def share(self) -> float:
        return self.images / self._total

    def md5(self) -> dict[str, str]:
        """Under ".", the md5 of the list that DVC makes of paths and md5s.

        Raises:
            InputError: images came or went meanwhile.
        """
        total, begun = hashlib.md5(usedforsecurity=False), b"["
        for folder in sorted(self._hashes, key=lambda folder: f"{folder}/"):  # so are paths sorted, as DVC has them
            with os.scandir(self._source / folder) as found:
                files = sorted(entry.name for entry in found if is_image(entry.name) and entry.is_file())
            hashes = self._hashes[folder]
            if _BYTES * len(files) != len(hashes):
                raise InputError(
                    f"{self._source / folder}: {len(hashes) // _BYTES} images were read and {len(files)} are there "
                    "now, expected that nothing changes meanwhile; start again"
                )
            for at, file in enumerate(files):
                content = hashes[_BYTES * at : _BYTES * (at + 1)].hex()
                entry = json.dumps({"md5": content, "relpath": f"{folder}/{file}".lstrip("/")}, sort_keys=True)
                total.update(begun + entry.encode())
                begun = b", "
        total.update(b"]")
        return {".": total.hexdigest()}
