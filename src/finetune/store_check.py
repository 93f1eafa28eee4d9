"""Whether a store still holds the bytes that were written."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from finetune.counting import counted
from finetune.errors import InputError
from finetune.store import APART, FILES, Store, again, broken, hashes, seal
from finetune.store_writer import content_hash


def check(store: Store) -> int:
    """Read every byte of a store.

    Returns:
        How many images were read.

    Raises:
        InputError: bytes were changed, are missing, or are too many; names the file, and the image where it is one.
    """
    written: dict[str, str] = store.meta["files"]
    if seal(store.meta) != store.meta["seal"]:
        raise _changed(store, "meta.json")
    try:
        found = hashes(store.path)
    except OSError as error:
        raise broken(store, error) from None
    for name in sorted(written.keys() | found.keys()):
        if written.get(name) != found.get(name):
            raise _changed(store, name)
    pieces = [_images(store, name) for name in FILES]
    if store.meta["format"] != APART:  # one file has all
        both = np.concatenate([index for index, _ in pieces]), np.concatenate([hashes for _, hashes in pieces])
        order = np.argsort(both[0][:, 0], kind="stable")
        pieces = [(both[0][order], both[1][order])]
    done = 0
    with counted(f"check {store.path.name}", sum(len(index) for index, _ in pieces), "images") as advance:
        for name, (index, written_hashes) in zip(FILES, pieces, strict=False):
            for _ in _each(store, store.pixel_file(name), index, written_hashes):
                advance(done := done + 1)
    return done


def _images(store: Store, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Index and hashes of the images of an official split."""
    return store.array(f"{name}.index"), store.array(f"{name}.content")


def _changed(store: Store, name: str) -> InputError:
    return InputError(
        f"{store.path / name}: is not as it was written, or is missing; the disk may be failing: make the store again "
        f"with {again(store)}"
    )


def _each(store: Store, file: Path, index: np.ndarray, hashes: np.ndarray) -> Iterator[None]:
    """Check one pixel file, image by image."""
    end = int(index[-1, 0] + index[-1, 1] * index[-1, 2] * 3) if len(index) else 0
    try:
        size = file.stat().st_size
    except OSError as error:
        raise broken(store, error) from None
    if size != end:
        raise InputError(f"{file}: found {size} bytes, expected {end}; make the store again with {again(store)}")
    with file.open("rb") as pixels:
        for row, (_, height, width) in enumerate(index):
            image = np.frombuffer(pixels.read(height * width * 3), np.uint8).reshape(height, width, 3)
            if content_hash(image) != hashes[row].tobytes():
                raise InputError(
                    f"{file}: the bytes of image {row} are not those that were written; the disk may be failing: make "
                    f"the store again with {again(store)}"
                )
            yield None
