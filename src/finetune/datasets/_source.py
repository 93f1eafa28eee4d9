"""An archive that is read once: its MD5 comes of the bytes as they are read, in whatever order a reader wants them."""

import hashlib
import io
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune.counting import counted

_CHUNK = 1 << 20  # bytes


class Source:
    """One file. Bytes that are skipped over are hashed when something behind them is read, and the rest in `md5`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._total, self._hashed = hashlib.md5(usedforsecurity=False), 0  # the hash of the first bytes, their number

    @contextmanager
    def open(self) -> Iterator["io.BufferedReader[Any]"]:
        """The file for reading; it may be opened again, and no byte is hashed twice.

        Raises:
            OSError: there is no such file, or it cannot be read.
        """
        with self.path.open("rb", buffering=0) as raw, io.BufferedReader(_Reader(raw, self), _CHUNK) as file:
            yield file

    def md5(self) -> str:
        """32 hex digits; reads what nobody has read.

        Raises:
            OSError: the file cannot be read.
        """
        with self.path.open("rb", buffering=0) as raw:
            size = os.fstat(raw.fileno()).st_size
            if self._hashed < size:
                with counted(f"md5 of {self.path.name}", size, "B") as advance:
                    while self.catch_up(raw, min(size, self._hashed + _CHUNK)):
                        advance(self._hashed)
        return self._total.hexdigest()

    def hashed(self) -> int:
        """How many of the first bytes have been read and hashed."""
        return self._hashed

    def take(self, data: memoryview, start: int) -> None:
        """Hash what is new of bytes that were read at `start`."""
        if start <= self._hashed < start + len(data):
            self._total.update(data[self._hashed - start :])
            self._hashed = start + len(data)

    def catch_up(self, raw: io.FileIO, end: int) -> bool:
        """Read and hash up to `end`; whether there was anything."""
        before = raw.seek(self._hashed)
        while self._hashed < end and (data := raw.read(min(_CHUNK, end - self._hashed))):
            self.take(memoryview(data), self._hashed)
        return self._hashed > before


class _Reader(io.RawIOBase):
    def __init__(self, raw: io.FileIO, source: Source) -> None:
        self._raw, self._source, self._at = raw, source, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = self._raw.seek(offset, whence)
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._at > self._source.hashed():
            self._source.catch_up(self._raw, self._at)
            self._raw.seek(self._at)
        count = self._raw.readinto(buffer) or 0
        self._source.take(memoryview(buffer)[:count], self._at)
        self._at += count
        return count


class Archives:
    """The archives of a data set, each a `Source`; see `Reading`."""

    def __init__(self, folder: Path, names: Collection[str]) -> None:
        self._sources = {name: Source(folder / name) for name in names}

    def __getitem__(self, name: str) -> Source:
        return self._sources[name]

    def md5(self) -> dict[str, str]:
        return {name: source.md5() for name, source in self._sources.items()}

    def share(self) -> float:
        sizes = sum(source.path.stat().st_size for source in self._sources.values())
        return sum(source.hashed() for source in self._sources.values()) / max(sizes, 1)
