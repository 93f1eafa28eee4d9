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
from finetune.images import pixels_in


def photograph(height: int, width: int, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_header_tells_how_many_pixels_there_are(kind: str) -> None:
    assert pixels_in(photograph(30, 40, kind)) == 1200


def test_what_is_no_image_has_none() -> None:
    assert pixels_in(b"no image") == pixels_in(b"\xff\xd8\xff") == 0


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
    monkeypatch.setattr(decoding.os, "sched_getaffinity", lambda pid: range(8), raising=False)

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


def test_small_images_go_to_a_thread_many_at_a_time_and_large_ones_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    grouped = decoding._grouped

    def counting(examples: Iterable[Example], size: decoding._Size) -> Iterator[list[Example]]:
        for group in grouped(examples, size):
            groups.append(len(group))
            yield group

    monkeypatch.setattr(decoding, "_grouped", counting)
    monkeypatch.setattr(decoding, "_GROUP", 100_000)
    monkeypatch.setattr(decoding.os, "sched_getaffinity", lambda pid: range(1), raising=False)
    small = [Example("train", 0, np.zeros((10, 10, 3), np.uint8), "a") for _ in range(5000)]
    large = [Example("train", 0, np.zeros((200, 300, 3), np.uint8), "b") for _ in range(50)]
    assert len(list(decoded_images([*small, *large], 1000))) == 5050
    assert groups[0] == 4
    assert max(groups) == 256
    assert groups[-5:] == [1] * 5
