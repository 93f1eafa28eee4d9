"""Where a store is made: under a lock that dies with its process, in a folder aside; and what killed makers left."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

_LEFT = re.compile(r"\.(.+)\.(aside|(new|old)\.\d+)")  # the last two are of `runs.move_into_place`


def aside(place: Path) -> Path:
    """The folder in which the store at `place` is made."""
    return place.with_name(f".{place.name}.aside")


@contextmanager
def alone(place: Path) -> Iterator[None]:
    """Hold the lock of the store at `place`, waiting for it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock(place)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{place}: another process is preparing it; waits for that", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def clear_abandoned(folder: Path) -> list[Path]:
    """Delete what killed makers of any store in `folder` left, which is what has a lock that nobody holds.

    Returns:
        What was deleted.
    """
    cleared = []
    for left in sorted(folder.glob(".*")):
        if (name := _LEFT.fullmatch(left.name)) and left.is_dir():
            try:
                with _lock(folder / name[1]).acquire(timeout=0):
                    shutil.rmtree(left, ignore_errors=True)
                    cleared.append(left)
            except Timeout:
                pass  # somebody is at work there
    return cleared


def _lock(place: Path) -> FileLock:
    return FileLock(place.with_name(f".{place.name}.lock"))
