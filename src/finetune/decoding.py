"""Examples -> pixels as a store has them, on all cores, in order, in bounded memory."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

import numpy as np

from finetune.datasets import Example
from finetune.images import decode, shape_in, shrink
from finetune.processor import cores
from finetune.store_writer import content_hash

_GROUP = 1 << 20  # bytes of pixels, stored, that a thread makes at a time: enough that handing over costs little
_MOST, _MOST_BYTES = 256, 1 << 20  # images, bytes as they come: at most so many at a time
_AHEAD = 3  # groups for each thread
_PIXELS = 16_000_000  # decoded at a time, or a single larger image: some 8 bytes of memory for each


class Image(NamedTuple):
    pixels: np.ndarray  # uint8, height x width x 3, as stored
    facts: tuple[bytes, bytes, tuple[int, int]]  # hashes of the pixels as stored and as decoded; height, width decoded


class _Room:
    """Lets threads decode as long as the pixels under way are few; a single image may be as large as it is."""

    def __init__(self, pixels: int) -> None:
        self._free, self._all, self._changed = pixels, pixels, threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        pixels = min(pixels, self._all)
        with self._changed:
            self._changed.wait_for(lambda: pixels <= self._free)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


def decoded_images(examples: Iterable[Example], short_side: int) -> Iterator[tuple[Example, Image]]:
    """Decode, shrink and hash in a pool of threads, in order, few images at a time.

    The decoder, the resizing and the hash let go of the interpreter lock.
    """
    room = _Room(_PIXELS)

    def image_of(example: Example, pixels: int) -> Image:
        encoded = example.image
        with room.taken(pixels):
            whole = encoded if isinstance(encoded, np.ndarray) else decode(encoded, example.member)
            whole = np.ascontiguousarray(whole)
            stored = np.ascontiguousarray(shrink(whole, short_side))
            decoded = content_hash(whole)
            content = decoded if stored.shape == whole.shape else content_hash(stored)
            return Image(stored, (content, decoded, (whole.shape[0], whole.shape[1])))

    def work(group: list[tuple[Example, int]]) -> list[tuple[Example, Image]]:
        return [(Example(one.split, one.label, b"", one.member), image_of(one, pixels)) for one, pixels in group]

    threads = min(32, cores())
    with ThreadPoolExecutor(threads) as pool:
        groups = _grouped(examples, short_side)
        waiting: deque[Future[list[tuple[Example, Image]]]] = deque(
            pool.submit(work, group) for group in islice(groups, _AHEAD * threads)
        )
        while waiting:
            done = waiting.popleft().result()
            waiting.extend(pool.submit(work, group) for group in islice(groups, 1))
            yield from done


def _grouped(examples: Iterable[Example], short_side: int) -> Iterator[list[tuple[Example, int]]]:
    """Examples, each with the pixels that are to be decoded, as many together as a thread is given at a time."""
    group: list[tuple[Example, int]] = []
    coming, stored = 0, 0.0  # bytes
    for example in examples:
        image = example.image
        if isinstance(image, np.ndarray):
            (height, width), pixels, size = image.shape[:2], 0, image.nbytes
        else:
            height, width = shape_in(image)
            pixels, size = height * width, len(image)
        group.append((example, pixels))
        coming += size
        stored += 3 * height * width * min(1.0, short_side / max(1, min(height, width))) ** 2
        if len(group) >= _MOST or coming > _MOST_BYTES or stored >= _GROUP:
            yield group
            group, coming, stored = [], 0, 0.0
    if group:
        yield group
