"""Decoding in bounded memory: how much is under way at once."""

import io
import threading
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from PIL import Image

from finetune import decoding
from finetune.datasets import Example
from finetune.decoding import decoded_images
from finetune.images import shape_in


def photograph(height: int, width: int, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_header_tells_height_and_width(kind: str) -> None:
    assert shape_in(photograph(30, 40, kind)) == (30, 40)


def test_what_is_no_image_has_none() -> None:
    assert shape_in(b"no image") == shape_in(b"\xff\xd8\xff") == (0, 0)


def test_large_images_are_decoded_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    under_way, most, lock = 0, 0, threading.Lock()
    decode = decoding.decode

    def counting(data: bytes, where: str) -> np.ndarray:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        try:
            threading.Event().wait(0.01)
            return decode(data, where)
        finally:
            with lock:
                under_way -= 1

    monkeypatch.setattr(decoding, "decode", counting)
    monkeypatch.setattr(decoding, "_PIXELS", 2 * 1200)
    monkeypatch.setattr(decoding, "_MOST", 4)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(8), raising=False)

    def stream() -> Iterator[Example]:
        for i in range(64):
            yield Example("train", 0, photograph(30, 40), f"a.bin: {i}")
        yield Example("train", 0, photograph(300, 400), "a.bin: larger than all that is allowed at once")

    found = [example.member for example, _ in decoded_images(stream(), 16)]
    assert len(found) == 65
    assert found[:2] == ["a.bin: 0", "a.bin: 1"]
    assert most == 2


def test_images_keep_their_size_and_hash_from_before_shrinking() -> None:
    examples = [Example("train", 0, photograph(30, 40), "a"), Example("train", 0, photograph(8, 8), "b")]
    (_, large), (_, small) = decoded_images(examples, 16)
    assert large.pixels.shape == (16, 21, 3)
    content, decoded, size = large.facts
    assert size == (30, 40)
    assert content != decoded
    assert small.facts[0] == small.facts[1]
    assert small.facts[2] == (8, 8)


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each thread was given at a time; 100,000 bytes of stored pixels are enough."""
    found: list[int] = []
    grouped = decoding._grouped

    def counting(examples: Iterable[Example], short_side: int) -> Iterator[list[tuple[Example, int]]]:
        for group in grouped(examples, short_side):
            found.append(len(group))
            yield group

    monkeypatch.setattr(decoding, "_grouped", counting)
    monkeypatch.setattr(decoding, "_GROUP", 100_000)
    return found


def test_small_images_go_to_a_thread_many_at_a_time_and_large_ones_one_by_one(
    groups: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(1), raising=False)
    small = [Example("train", 0, np.zeros((10, 10, 3), np.uint8), "a") for _ in range(5000)]
    large = [Example("train", 0, np.zeros((200, 300, 3), np.uint8), "b") for _ in range(50)]
    assert len(list(decoded_images([*small, *large], 1000))) == 5050
    assert max(groups) == 256
    assert groups[-5:] == [1] * 5


@pytest.mark.parametrize("short_side", [100, 1000])
def test_large_images_behind_tiny_ones_are_weighed_by_their_headers(short_side: int, groups: list[int]) -> None:
    tiny = [Example("train", 0, photograph(8, 8), "a") for _ in range(1000)]
    flat = [Example("train", 0, photograph(200, 300), "b") for _ in range(50)]  # 2 KB each; stored 45,000 or 180,000
    assert len(list(decoded_images([*tiny, *flat], short_side))) == 1050
    assert max(groups) == 256
    assert max(groups[-5:]) == {100: 3, 1000: 1}[short_side]
