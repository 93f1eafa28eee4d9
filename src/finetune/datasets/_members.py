"""The files in a .tar, .tar.gz or .zip, or in a folder, as one stream; every fault is one sentence.

Hidden files and __MACOSX are skipped. A link or a device in an archive, an encrypted member and a path that leaves its
folder are refused. In a folder links are followed: DVC itself may have made them.
"""

import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from isal import igzip, igzip_lib

from finetune.counting import counted
from finetune.datasets._source import Source
from finetune.datasets._tar import Info, content, inside
from finetune.datasets._zip_parts import zip_parts
from finetune.errors import InputError

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
_CHUNK = 1 << 20  # bytes
_GZIP = b"\x1f\x8b"
_DEEPEST = 16  # folders in one another
_BROKEN: tuple[type[Exception], ...] = (  # isal is typed as if this were an instance
    igzip_lib.IsalError,  # type: ignore[assignment]
    zlib.error,
    tarfile.TarError,
    zipfile.BadZipFile,
)
_FAULTS: tuple[type[Exception], ...] = (EOFError, OSError, RuntimeError, ValueError, struct.error, *_BROKEN)


def nothing(name: str) -> bool:
    """No content is wanted, only the names."""
    return False


def members(
    source: Path, wanted: Callable[[str], bool] = nothing, through: Source | None = None
) -> Iterator[tuple[str, bytes | None]]:
    """(path inside, content) of all that is not hidden: an archive in its own order, a folder in the alphabet's.

    A folder's path ends with "/". Content is None but for the files that are wanted: the others are not read, which
    leaves little to do in a .tar or .zip, while a .tar.gz is decompressed all the same.

    Args:
        through: what the bytes of an archive are read through, to be hashed.

    Raises:
        InputError: while streaming: `source` is truncated, damaged or unreadable, or holds what is refused.
    """
    if source.is_dir():
        return _folder(source, wanted)
    return (_zip if source.suffix.lower() == ".zip" else _tar)(source, wanted, through)


def packed(source: Path) -> bool:
    """Whether to list an archive is to decompress it: a .tar.gz by its first two bytes, whatever its name."""
    if source.is_dir():
        return False
    with _whole(source), source.open("rb", buffering=0) as file:
        return file.read(2) == _GZIP


def hidden(name: str) -> bool:
    """Whether a file or folder of that name is none of the data: .DS_Store, ._1.jpg, __MACOSX."""
    return name.startswith(".") or name == "__MACOSX"


def shown(name: str) -> str:
    """A name that can be written everywhere: of one that is not UTF-8, the bytes that are at fault as \\xe9."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _silent(done: int) -> None:
    """Whoever wants contents shows how far the work on them is."""


def _listing(source: Path) -> AbstractContextManager[Callable[[int], None]]:
    return counted(f"list {source.name}", source.stat().st_size, "B")


def _tar(source: Path, wanted: Callable[[str], bool], through: Source | None) -> Iterator[tuple[str, bytes | None]]:
    with (
        _whole(source) as last,
        through.open() if through else source.open("rb") as raw,
        _listing(source) if wanted is nothing else nullcontext(_silent) as advance,
        _unzipped(raw) as file,
        tarfile.open(fileobj=file, mode="r:", tarinfo=Info) as tar,
    ):
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # else all are kept: a gigabyte for a million
            last[:] = [member.name]
            name = _checked(source, member.name)
            if name and not (member.isreg() or member.isdir()):
                raise InputError(f"{source}: {member.name}: a link or a device, expected only files and folders")
            if member.isdir() and name:
                yield f"{name}/", None
            elif name:
                yield name, content(tar, member) if wanted(name) else None
            advance(raw.tell())
        last.clear()
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # the second block of zeros; tarfile misses none
            raise tarfile.ReadError("the mark of the archive's end is missing")
        while file is not raw and file.read(_CHUNK):
            pass  # gzip checks length and CRC at the very end


def _zip(source: Path, wanted: Callable[[str], bool], through: Source | None) -> Iterator[tuple[str, bytes | None]]:
    with (
        _whole(source) as last,
        through.open() if through else source.open("rb") as contents,
        _listing(source) if wanted is nothing else nullcontext(_silent) as advance,
    ):
        for archive, info in ((part, info) for part in zip_parts(source, contents) for info in part.infolist()):
            last[:] = [info.filename]
            advance(info.header_offset)
            name = _checked(source, info.filename.replace("\\", "/"))
            if not name:
                continue
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise InputError(f"{source}: {info.filename}: a link or a device, expected only files and folders")
            if info.flag_bits & 1:
                raise InputError(f"{source}: {info.filename}: encrypted, expected a .zip without a password")
            if info.is_dir():
                yield f"{name}/", None
            else:
                yield name, archive.read(info) if wanted(name) else None


def _folder(source: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes | None]]:
    with _whole(source) as last:
        for name in _below(source, "", 0):
            last[:] = [name]
            yield name, (source / name).read_bytes() if not name.endswith("/") and wanted(name) else None


def _below(source: Path, inside: str, depth: int) -> Iterator[str]:
    """What lies below a folder of `source`; of one with a million files just the names are kept."""
    if depth > _DEEPEST:
        raise InputError(f"{source / inside}: more than {_DEEPEST} folders in one another; does a link lead back?")
    names, folders = [], set()
    with os.scandir(source / inside) as found:
        for entry in found:
            if hidden(entry.name):
                continue
            names.append(entry.name)
            if entry.is_dir():
                folders.add(entry.name)
            elif not entry.is_file():
                raise InputError(
                    f"{source}: {inside}{entry.name}: a broken link or a device, expected only files and folders"
                )
    names.sort()
    for name in names:
        if name in folders:
            yield f"{inside}{name}/"
            yield from _below(source, f"{inside}{name}/", depth + 1)
        else:
            yield f"{inside}{name}"


def _unzipped(raw: IO[bytes]) -> Any:
    """The .tar in an open file, which gzip's first two bytes tell from a .tar.gz."""
    zipped = raw.read(2) == _GZIP
    raw.seek(0)
    return igzip.open(raw) if zipped else nullcontext(raw)


def _checked(source: Path, name: str) -> str:
    """The path inside the archive, without "./"; empty for what is hidden."""
    path = inside(name)
    if path is None:
        raise InputError(f"{source}: {name}: a path that leaves its folder, expected one inside; do not unpack this")
    return "" if any(map(hidden, path.split("/"))) else path


@contextmanager
def _whole(source: Path) -> Iterator[list[str]]:
    """Turn what goes wrong in reading into one sentence; the list holds the name of the member being read."""
    last: list[str] = []
    try:
        yield last
    except InputError:
        raise
    except _FAULTS as error:
        where = f"{source}: {last[0]}" if last else str(source)
        raise InputError(
            f"{where}: truncated, damaged or unreadable ({error}); expected a whole {' or '.join(ARCHIVES)}, or a "
            "folder of class folders; get it again"
        ) from None
