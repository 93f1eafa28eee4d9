"""What both ways of reading a .tar share: a path that stays inside, and a member's content."""

import tarfile
from typing import IO, Self, cast


class Info(tarfile.TarInfo):
    """Reads the header of a regular file with a short name, as most are, in half the time; only its name and size."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if len(buf) == tarfile.BLOCKSIZE and buf[156:157] == tarfile.REGTYPE and not buf[345]:  # no prefix of the name
            try:
                size, checksum = (int(bytes(field).rstrip(b" \0"), 8) for field in (buf[124:136], buf[148:156]))
            except ValueError:  # a size of 8 GiB and more is not written in octal digits
                return super().frombuf(buf, encoding, errors)
            if sum(buf) - sum(buf[148:156]) + 8 * ord(" ") == checksum:
                member = cls(bytes(buf[:100]).partition(b"\0")[0].decode(encoding, errors))
                member.size = size
                return member
        return super().frombuf(buf, encoding, errors)


def inside(name: str) -> str | None:
    """A member's path without "./" and the like; empty for the folder itself, None where it leaves that."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts:
        return None
    return "/".join(part for part in parts if part not in ("", "."))


def content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The content of the regular file that `tar.next()` has just given.

    Raises:
        tarfile.ReadError: it is cut off.
    """
    if member.issparse():
        return cast(IO[bytes], tar.extractfile(member)).read()
    data: bytes = tar.fileobj.read(member.size)  # which stands right there
    if len(data) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    return data
