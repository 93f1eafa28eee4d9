"""A .zip as many small ones, so that a million members take no more memory than a thousand.

`zipfile` keeps half a kilobyte of each member that the central directory lists. Here it sees the file with a piece of
that directory at a time, in front of an end record for the piece; where contents lie stays as it is.
"""

import io
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

_MEMBERS = 4096  # in a piece
_ENTRY, _ENTRY_BYTES = b"PK\1\2", 46  # what each entry begins with, and bytes before its name
# APPNOTE.TXT of PKWARE, 4.3.14 to 4.3.16: the end record of ZIP64, its locator, the end record
_END64, _LOCATOR, _END = struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL"), struct.Struct("<4s4H2LH")
_LARGE, _MANY = 0xFFFFFFFF, 0xFFFF  # "see the end record of ZIP64"
_LONGEST_COMMENT = 0xFFFF  # bytes


def zip_parts(path: Path, contents: IO[bytes]) -> Iterator[zipfile.ZipFile]:
    """The members of the .zip at `path`, some thousand at a time, in its order.

    Args:
        contents: the same file, which contents are read from.

    Raises:
        zipfile.BadZipFile, OSError: while streaming: no .zip, or a damaged one.
    """
    with path.open("rb") as directory:
        start, size, offset = _directory(directory)
        directory.seek(start)
        while size:
            piece, count = bytearray(), 0
            while size > len(piece) and count < _MEMBERS:
                piece += _entry(directory, size - len(piece))
                count += 1
            size -= len(piece)
            end = start + len(piece)
            tail = _END64.pack(b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(piece), offset)
            tail += _LOCATOR.pack(b"PK\6\7", 0, end, 1)
            tail += _END.pack(b"PK\5\6", 0, 0, _MANY, _MANY, _LARGE, _LARGE, 0)
            view: Any = _View(contents, start, bytes(piece) + tail)
            with zipfile.ZipFile(view) as part:
                yield part


def _entry(directory: IO[bytes], left: int) -> bytes:
    """The next entry of the central directory, of which `left` bytes are left."""
    head = directory.read(_ENTRY_BYTES)
    if len(head) < _ENTRY_BYTES or not head.startswith(_ENTRY):
        raise zipfile.BadZipFile("a broken central directory")
    more = sum(struct.unpack_from("<3H", head, 28))  # bytes of name, extra fields and comment
    entry = head + directory.read(more)
    if len(entry) < _ENTRY_BYTES + more or len(entry) > left:
        raise zipfile.BadZipFile("a truncated central directory")
    return entry


def _directory(file: IO[bytes]) -> tuple[int, int, int]:
    """Where the central directory starts, its bytes, and where its end record says that it starts.

    The two differ where something was put in front of the whole .zip.
    """
    length = file.seek(0, os.SEEK_END)
    before = max(0, length - _LONGEST_COMMENT - _END.size)
    file.seek(before)
    last = file.read()
    at = last.rfind(b"PK\5\6")
    if at < 0 or at + _END.size > len(last):
        raise zipfile.BadZipFile("no end record, with which a .zip ends")
    *_, size, offset, _ = _END.unpack_from(last, at)
    end = before + at
    locator = end - _LOCATOR.size - _END64.size
    if locator >= 0:
        file.seek(locator)
        record = file.read(_END64.size + _LOCATOR.size)
        if record[:4] == b"PK\6\6" and record[_END64.size :][:4] == b"PK\6\7":
            *_, size, offset = _END64.unpack_from(record)
            end = locator
    if size > end:
        raise zipfile.BadZipFile("a truncated file")
    return end - size, size, offset


class _View(io.RawIOBase):
    """The file `contents` up to `start`, then `tail`."""

    def __init__(self, contents: IO[bytes], start: int, tail: bytes) -> None:
        self._contents, self._start, self._tail, self._at = contents, start, tail, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._start + len(self._tail)}[whence]
        if base + offset < 0:
            raise OSError("an offset before the file's start")
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        """As a whole: no reading stops at `start`."""
        size = self._start + len(self._tail) - self._at if size < 0 else size
        data = b""
        if self._at < self._start:
            self._contents.seek(self._at)
            data = self._contents.read(min(size, self._start - self._at))
        skipped = max(0, self._at - self._start)
        data += self._tail[skipped : skipped + size - len(data)] if self._at + len(data) >= self._start else b""
        self._at += len(data)
        return data
