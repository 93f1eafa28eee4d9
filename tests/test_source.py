"""Archives that are read once: the MD5 of what came by, in whatever order."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest

from finetune.datasets import _source
from finetune.datasets._source import Archives, Source

CONTENT = np.random.default_rng(0).integers(0, 256, 10_000).astype(np.uint8).tobytes()
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_source, "_CHUNK", 100)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "a.tar").write_bytes(CONTENT)
    return tmp_path / "a.tar"


class Counting:
    """Counts the bytes that are read of a file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = 0
        real = Path.open
        counter = self

        class Raw(io.FileIO):
            def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
                data = super().read(-1 if size is None else size) or b""
                counter.bytes += len(data)
                return data

            def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
                count = super().readinto(buffer) or 0
                counter.bytes += count
                return count

        def opened(path: Path, mode: str = "r", buffering: int = -1, **more: object) -> object:
            return Raw(path) if buffering == 0 else real(path, mode, buffering, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(Path, "open", opened)


def test_a_file_that_nobody_reads_is_read_for_its_md5(path: Path) -> None:
    assert Source(path).md5() == MD5


def test_a_file_that_was_read_through_is_not_read_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counting, source = Counting(monkeypatch), Source(path)
    with source.open() as file:
        assert file.read() == CONTENT
    assert source.md5() == MD5
    assert counting.bytes == len(CONTENT)


def test_of_a_file_that_was_read_in_part_the_rest_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counting, source = Counting(monkeypatch), Source(path)
    with source.open() as file:
        assert file.read(1234) == CONTENT[:1234]
    assert 1234 <= source.hashed() < 1234 + 100  # as it is buffered
    assert source.md5() == MD5
    assert counting.bytes == len(CONTENT)


def test_bytes_that_are_skipped_are_hashed_in_passing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counting, source = Counting(monkeypatch), Source(path)
    with source.open() as file:
        for start in (50, 3000, 3050, 9990):
            file.seek(start)
            assert file.read(10) == CONTENT[start : start + 10]
    assert source.md5() == MD5
    assert counting.bytes == len(CONTENT)


def test_any_order_gives_the_same_md5(path: Path) -> None:
    source, generator = Source(path), np.random.default_rng(1)
    for _ in range(5):  # opened again and again
        with source.open() as file:
            for start, size in generator.integers(0, 3000, (20, 2)).tolist():
                file.seek(3 * start)
                assert file.read(size) == CONTENT[3 * start : 3 * start + size]
    assert source.md5() == source.md5() == MD5


def test_the_end_may_be_read_first(path: Path) -> None:
    source = Source(path)
    with source.open() as file:
        file.seek(-5, io.SEEK_END)
        assert file.read() == CONTENT[-5:]
        file.seek(0)
        assert file.read(5) == CONTENT[:5]
    assert source.md5() == MD5


def test_archives_tell_their_share_of_all_bytes(path: Path) -> None:
    (path.parent / "b.tar").write_bytes(bytes(30_000))
    archives = Archives(path.parent, ("a.tar", "b.tar"))
    assert archives.share() == 0
    with archives["a.tar"].open() as file:
        file.read(4000)
        assert archives.share() == pytest.approx(0.1, abs=0.003)
    assert archives.md5() == {"a.tar": MD5, "b.tar": hashlib.md5(bytes(30_000)).hexdigest()}
    assert archives.share() == 1
