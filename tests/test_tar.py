"""Headers of a .tar, read fast where they are plain; contents; paths that stay inside."""

import io
import tarfile
from pathlib import Path

import pytest

from finetune.datasets._tar import Info, content, inside


def packed(path: Path, members: dict[str, bytes], form: int) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def contents(path: Path) -> dict[str, bytes]:
    found = {}
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:", tarinfo=Info) as tar:
        while (member := tar.next()) is not None:
            if member.isreg():
                found[member.name] = content(tar, member)
    return found


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_and_length_of_names_is_read(form: int, tmp_path: Path) -> None:
    names = ["a", "é", "x" * 99, "y" * 100, "folder/" * 20 + "z"]
    names += [] if form == tarfile.USTAR_FORMAT else ["w" * 300]
    members = {name: name.encode() * (i + 1) for i, name in enumerate(names)}
    assert contents(packed(tmp_path / "a.tar", members, form)) == members


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024])
def test_sizes_around_a_block_are_read(size: int, tmp_path: Path) -> None:
    members = {"a": b"a" * size, "b": b"b"}
    assert contents(packed(tmp_path / "a.tar", members, tarfile.USTAR_FORMAT)) == members


def test_a_header_whose_checksum_is_wrong_is_not_taken(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.tar", {"a": b"1", "b": b"2"}, tarfile.USTAR_FORMAT)
    damaged = bytearray(path.read_bytes())
    damaged[1024] ^= 1  # the second name
    path.write_bytes(damaged)
    assert contents(path) == {"a": b"1"}  # tarfile ends there; whoever reads looks for the end's mark


def test_a_size_that_is_no_octal_number_is_read(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.tar", {"a": b"abc"}, tarfile.GNU_FORMAT)
    changed = bytearray(path.read_bytes())
    changed[124:136] = b"\x80" + (3).to_bytes(11, "big")  # GNU's way, for 8 GiB and more
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed[:512])
    path.write_bytes(changed)
    assert contents(path) == {"a": b"abc"}


def test_a_sparse_file_is_read_with_its_holes(tmp_path: Path) -> None:
    header = tarfile.TarInfo("a")
    header.size = 4
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[156:157] = tarfile.GNUTYPE_SPARSE
    block[386:410] = b"%011o\0%011o\0" % (512, 4)  # four bytes, 512 on
    block[483:495] = b"%011o\0" % 516  # bytes in all
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "a.tar").write_bytes(bytes(block) + b"data".ljust(512, b"\0") + bytes(1024))
    assert contents(tmp_path / "a.tar") == {"a": bytes(512) + b"data"}


def test_a_content_that_is_cut_off_is_noticed(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.tar", {"a": b"a" * 1000}, tarfile.USTAR_FORMAT)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(tarfile.ReadError, match="unexpected end of data"):
        contents(path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.jpg", "a/b.jpg"),
        ("./a//b/./c", "a/b/c"),
        ("a/", "a"),
        ("./", ""),
        ("..a/b", "..a/b"),
        ("/a", None),
        ("../a", None),
        ("a/../b", None),
        ("a/..", None),
    ],
)
def test_a_path_is_inside_or_leaves(name: str, expected: str | None) -> None:
    assert inside(name) == expected
