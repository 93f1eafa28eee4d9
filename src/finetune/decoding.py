"""Examples -> pixels as a store has them, on all cores, in order, in bounded memory."""

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np

from finetune.datasets import Contents, Example
from finetune.images import decode, pixels_in, shrink
from finetune.store_writer import content_hash

_GROUP, _GROUP_BYTES = 4, 1 << 20  # images, encoded bytes: what a thread takes at a time
_PIXELS = 16_000_000  # decoded at a time, or a single larger image: some 8 bytes of memory for each


@dataclass(frozen=True)
class Image:
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


def decoded_images(contents: Contents, short_side: int) -> Iterator[tuple[Example, Image]]:
    """Decode, shrink and hash in a pool of threads, in order, few images at a time.

    The decoder, the resizing and the hash let go of the interpreter lock.
    """
    room = _Room(_PIXELS)

    def image_of(example: Example) -> Image:
        encoded = example.image
        with room.taken(0 if isinstance(encoded, np.ndarray) else pixels_in(encoded)):
            whole = encoded if isinstance(encoded, np.ndarray) else decode(encoded, example.member)
            whole = np.ascontiguousarray(whole)
            stored = np.ascontiguousarray(shrink(whole, short_side))
            decoded = content_hash(whole)
            content = decoded if stored.shape == whole.shape else content_hash(stored)
            return Image(stored, (content, decoded, (whole.shape[0], whole.shape[1])))

    def work(group: list[Example]) -> list[tuple[Example, Image]]:
        return [(Example(one.split, one.label, b"", one.member), image_of(one)) for one in group]

    threads = min(32, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        groups = _grouped(contents.examples)
        waiting: deque[Future[list[tuple[Example, Image]]]] = deque(
            pool.submit(work, group) for group in islice(groups, 4 * threads)
        )
        while waiting:
            yield from waiting.popleft().result()
            waiting.extend(pool.submit(work, group) for group in islice(groups, 1))


def _grouped(examples: Iterable[Example]) -> Iterator[list[Example]]:
    group: list[Example] = []
    for example in examples:
        group.append(example)
        if len(group) == _GROUP or sum(len(e.image) for e in group) > _GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group
