"""Reading .tar.gz archives as streams: nothing is unpacked to disk, every fault is one sentence naming file and member.

What all readers share: folders and macOS' "._" files are skipped; a link, a device or a path that leaves its folder
is refused; whatever the metadata list must come, exactly once.
"""

import hashlib
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from isal import igzip, igzip_lib

from finetune.counting import counted
from finetune.datasets.dataset import Example, Split
from finetune.errors import InputError

_CHUNK = 1 << 20  # bytes
_FAULTS: tuple[type[Exception], ...] = (EOFError, OSError, igzip_lib.IsalError, tarfile.TarError)  # type: ignore[assignment]


def md5(path: Path) -> str:
    """The MD5 of a file as 32 hex digits, read in chunks.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    total = hashlib.md5(usedforsecurity=False)
    with (
        _readable(path),
        path.open("rb") as file,
        counted(f"md5 of {path.name}", path.stat().st_size, "B") as advance,
    ):
        while chunk := file.read(_CHUNK):
            total.update(chunk)
            advance(file.tell())
    return total.hexdigest()


def read_file(path: Path) -> bytes:
    """A small file that lies beside the archives.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    with _readable(path):
        return path.read_bytes()


def read_members(archive: Path, names: Collection[str]) -> dict[str, bytes]:
    """The small members `names`, all of them; reads no further than the last.

    Raises:
        InputError: the archive is absent or truncated, or lacks a member.
    """
    found: dict[str, bytes] = {}
    for name, data in _files(archive, names.__contains__):
        found[name] = data
        if len(found) == len(names):
            return found
    missing = next(name for name in names if name not in found)
    raise InputError(f"{archive}: {missing}: no such member, but the official layout has it; get the archive again")


def stream_members(archive: Path, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the members `names`, each exactly once, in the archive's order; reads to the archive's end.

    A ".jpg" that is not among `names` is an error: no official archive has one that its metadata do not list.

    Raises:
        InputError: the archive is absent or truncated, lacks a member, or has one twice or too many.
    """
    waiting = set(names)
    for name, data in _files(archive, lambda name: name in names or name.lower().endswith(".jpg")):
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


def labelled_images(
    archive: Path, rows: Iterable[tuple[str, Split, int]], source: str
) -> tuple[int, Iterator[Example]]:
    """How many images `rows` list as (member, split, label from 0), and the images in the archive's order.

    `source` names the metadata that the rows come from, for messages.

    Raises:
        InputError: a member is listed twice (at once); as `stream_members` (while streaming).
    """
    listed: dict[str, tuple[Split, int]] = {}
    for member, split, label in rows:
        if member in listed:
            raise InputError(f"{source}: lists {member} twice, expected once; get the archive again")
        listed[member] = split, label
    return len(listed), _labelled_images(archive, listed)


def check_label(label: int, classes: int, where: str) -> int:
    """`label`, counted from 0, unless there are too few `classes` for it: then InputError naming `where`."""
    if not 0 <= label < classes:
        raise InputError(f"{where}: labelled class {label + 1} of {classes}, counting from 1; get the archive again")
    return label


def as_text(data: bytes, where: str) -> str:
    """UTF-8 text, or InputError naming `where`."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 text ({error}); get the archive again") from None


def _labelled_images(archive: Path, listed: Mapping[str, tuple[Split, int]]) -> Iterator[Example]:
    for member, data in stream_members(archive, listed):
        split, label = listed[member]
        yield Example(split, label, data, f"{archive.name}: {member}")


def _files(archive: Path, keep: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the regular files whose name `keep` accepts; the others are passed over unread."""
    last: list[str] = []  # the member that is being read, for messages
    with (
        _readable(archive, last),
        igzip.open(archive) as unzipped,
        tarfile.open(fileobj=unzipped, mode="r:") as tar,
    ):
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # else all are kept: a gigabyte for a million
            name = _checked_name(archive, member)
            last[:] = [name]
            if member.isreg() and not PurePosixPath(name).name.startswith("._") and keep(name):
                content = tar.extractfile(member)
                assert content is not None  # a regular file has content
                yield name, content.read()
        last.clear()
        while unzipped.read(_CHUNK):
            pass  # gzip checks length and CRC at the very end, where tarfile does not look


def _checked_name(archive: Path, member: tarfile.TarInfo) -> str:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(
            f"{archive}: {member.name}: a path that leaves its folder, expected one inside it; "
            "do not unpack this archive, get the official one"
        )
    if not (member.isreg() or member.isdir()):
        raise InputError(
            f"{archive}: {member.name}: a link or a device, expected only files and folders; "
            "do not unpack this archive, get the official one"
        )
    return str(path)


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
