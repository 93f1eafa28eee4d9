"""Reading .tar.gz archives as streams: nothing is unpacked to disk, every fault is one sentence naming file and member.

What all readers share: folders and macOS' "._" files are skipped; a link, a device or a path that leaves its folder
is refused; whatever the metadata list must come, exactly once.
"""

import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from isal import igzip, igzip_lib

from finetune.datasets._class_layout import IMAGES
from finetune.datasets._source import Source
from finetune.datasets._tar import Info, content, inside
from finetune.errors import InputError

_CHUNK = 1 << 20  # bytes
_FAULTS: tuple[type[Exception], ...] = (EOFError, OSError, igzip_lib.IsalError, tarfile.TarError)  # type: ignore[assignment]


def md5(path: Path) -> str:
    """The MD5 of a file as 32 hex digits, read in chunks.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    with _readable(path):
        return Source(path).md5()


def read_file(source: Source) -> bytes:
    """A small file that lies beside the archives.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    with _readable(source.path), source.open() as file:
        return file.read()


def read_members(source: Source, names: Collection[str]) -> dict[str, bytes]:
    """The small members `names`, all of them; reads no further than the last.

    Raises:
        InputError: the archive is absent or truncated, or lacks a member.
    """
    found: dict[str, bytes] = {}
    for name, data in files(source, names.__contains__):
        found[name] = data
        if len(found) == len(names):
            break
    return all_of(found, names, source.path)


def stream_members(source: Source, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the members `names`, each exactly once, in the archive's order; reads to the archive's end.

    An image that is not among `names` is an error: no official archive has one that its metadata do not list.

    Raises:
        InputError: the archive is absent or truncated, lacks a member, or has one twice or too many.
    """
    return once(files(source, lambda name: name in names or is_image(name)), names, source.path)


def files(source: Source, keep: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the regular files whose name `keep` accepts; the others are passed over unread."""
    last: list[str] = []  # the member that is being read, for messages
    with (
        _readable(source.path, last),
        source.open() as packed,
        igzip.open(packed) as unzipped,
        tarfile.open(fileobj=unzipped, mode="r:", tarinfo=Info) as tar,
    ):
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # else all are kept: a gigabyte for a million
            name = _checked_name(source.path, member)
            last[:] = [name]
            if member.isreg() and not name.rpartition("/")[2].startswith("._") and keep(name):
                yield name, content(tar, member)
        last.clear()
        while unzipped.read(_CHUNK):
            pass  # gzip checks length and CRC at the very end, where tarfile does not look


def once(members: Iterable[tuple[str, bytes]], names: Collection[str], archive: Path) -> Iterator[tuple[str, bytes]]:
    """`members`, which have to be `names`, each exactly once.

    Raises:
        InputError: while streaming: one comes twice, is none of them, or does not come.
    """
    waiting = set(names)
    for name, data in members:
        if name not in waiting:
            fault = "this member comes twice" if name in names else "the metadata do not list this image"
            raise InputError(f"{archive}: {name}: {fault}; get the official archive again")
        waiting.remove(name)
        yield name, data
    if waiting:
        raise InputError(
            f"{archive}: {min(waiting)}: no such member, but the metadata list it ({len(waiting)} of {len(names)} are "
            "missing); get the archive again"
        )


def all_of(found: dict[str, bytes], names: Collection[str], archive: Path) -> dict[str, bytes]:
    """`found`, unless it lacks one of `names`: then InputError."""
    if missing := next((name for name in names if name not in found), None):
        raise InputError(f"{archive}: {missing}: no such member, but the official layout has it; get the archive again")
    return found


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGES)


def as_text(data: bytes, where: str) -> str:
    """UTF-8 text, or InputError naming `where`."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text ({error}); get the archive again") from None


def _checked_name(archive: Path, member: tarfile.TarInfo) -> str:
    name = inside(member.name)
    if name is None:
        raise InputError(
            f"{archive}: {member.name}: a path that leaves its folder, expected one inside it; "
            "do not unpack this archive, get the official one"
        )
    if not (member.isreg() or member.isdir()):
        raise InputError(
            f"{archive}: {member.name}: a link or a device, expected only files and folders; "
            "do not unpack this archive, get the official one"
        )
    return name


@contextmanager
def _readable(path: Path, last: Sequence[str] = ()) -> Iterator[None]:
    """Turn what goes wrong in reading `path` into one sentence; `last` holds the name of the member being read."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; get it with `dvc pull data/{path.parent.name}` or "
            f"`finetune fetch {path.parent.name}`, or put the official file there"
        ) from None
    except _FAULTS as error:
        where = f"{path}: {last[0]}" if last else path
        raise InputError(
            f"{where}: truncated, damaged or unreadable ({error}); expected the whole official file, get it again"
        ) from None
