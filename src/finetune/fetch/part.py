"""A file on its way: it grows under another name, is hashed as it grows, and is renamed when it is whole and right."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from threading import Event
from typing import Any

from finetune.errors import InputError
from finetune.fetch.transfer import Transfer, size

_CHUNK = 1 << 20  # bytes


class SourceError(Exception):
    """Why a source did not give the file: a clause that follows the source's name."""


class Stopped(Exception):
    """The user stopped; what has come is kept."""


class Part:
    """A file that is not whole yet, hashed as it grows; every byte that came is with the system at once.

    Beside it a note says whose bytes they are, so that a later process can ask for the rest of that very file.
    """

    def __init__(self, path: Path, transfer: Transfer, stop: Event) -> None:
        self.path, self._note = path, path.with_name(f"{path.name}.json")
        self._transfer, self._stop = transfer, stop
        self._hash = hash_file(path, transfer, stop, "checks what came before") if path.exists() else _md5()
        self._file = path.open("ab", buffering=0)
        self.size = self._file.tell()
        self.origin = self._read_note() if self.size else {}

    @property
    def md5(self) -> str:
        return str(self._hash.hexdigest())

    def expect(self, total: int | None, origin: dict[str, Any], state: str) -> None:
        """What follows is the rest of a file of `total` bytes.

        Raises:
            InputError: the disk has no room for it.
        """
        need, free = (total or 0) - self.size, shutil.disk_usage(self.path.parent).free
        if need > free:
            raise InputError(
                f"{self.path}: {size(need)} are still to come, but the disk has {size(free)} free; make room, then "
                "repeat the command: what has come is kept"
            )
        self.origin = origin
        self._note.write_text(json.dumps(origin), encoding="utf-8")
        self._transfer.begin(state, total, self.size)

    def append(self, chunk: bytes) -> None:
        """Write what comes next.

        Raises:
            InputError: it cannot be written.
            Stopped: the user stopped.
        """
        rest = memoryview(chunk)
        while rest:
            try:
                written = self._file.write(rest)  # less than all of it when the disk is about to be full
            except OSError as error:
                raise InputError(
                    f"{self.path}: could not be written after {size(self.size)} ({error.strerror}); make room, then "
                    "repeat the command: what has come is kept"
                ) from None
            self._hash.update(rest[:written])
            self.size += written
            rest = rest[written:]
        self._transfer.done = self.size
        if self._stop.is_set():
            raise Stopped

    def restart(self) -> None:
        """Throw away what has come."""
        self._file.truncate(0)
        self._hash, self.size, self.origin = _md5(), 0, {}

    def close(self) -> None:
        self._file.close()

    def move(self, place: Path) -> None:
        """Rename to `place`, once every byte is on the disk."""
        os.fsync(self._file.fileno())
        self._file.close()
        self.path.rename(place)
        self._note.unlink(missing_ok=True)

    def discard(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def _read_note(self) -> dict[str, Any]:
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}


def hash_file(path: Path, transfer: Transfer, stop: Event, state: str) -> "hashlib._Hash":
    """The MD5 of a file as far as it goes.

    Raises:
        Stopped: the user stopped.
    """
    md5 = _md5()
    with path.open("rb") as file:
        transfer.begin(state, os.fstat(file.fileno()).st_size)
        while chunk := file.read(_CHUNK):
            md5.update(chunk)
            transfer.done += len(chunk)
            if stop.is_set():
                raise Stopped
    return md5


def copy(source: Path, part: Part) -> None:
    """The whole of `source` into `part`.

    Raises:
        SourceError: it cannot be read.
        InputError, Stopped: as `Part.append`.
    """
    try:
        file = source.open("rb")
    except OSError as error:
        raise SourceError(f"cannot be read ({error.strerror})") from None
    with file:
        part.restart()
        part.expect(os.fstat(file.fileno()).st_size, {}, "copies")
        while chunk := file.read(_CHUNK):
            part.append(chunk)


def _md5() -> "hashlib._Hash":
    return hashlib.md5(usedforsecurity=False)
