"""Whether a store still holds the bytes that were written."""

from collections.abc import Iterator

import numpy as np

from finetune.counting import counted
from finetune.errors import InputError
from finetune.store import FILES, Store, again, broken, hashes, seal
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
    indexes = {name: store.array(f"{name}.index") for name in FILES}
    done = 0
    with counted(f"check {store.path.name}", sum(map(len, indexes.values())), "images") as advance:
        for name, index in indexes.items():
            for _ in _each(store, name, index):
                advance(done := done + 1)
    return done


def _changed(store: Store, name: str) -> InputError:
    return InputError(
        f"{store.path / name}: is not as it was written, or is missing; the disk may be failing: make the store again "
        f"with {again(store)}"
    )


def _each(store: Store, name: str, index: np.ndarray) -> Iterator[None]:
    """Check one pixel file, image by image."""
    file, hashes = store.path / f"{name}.u8", store.array(f"{name}.content")
    end = int(index[-1, 0] + index[-1, 1] * index[-1, 2] * 3) if len(index) else 0
    if (size := file.stat().st_size) != end:
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
