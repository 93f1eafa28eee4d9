"""One trainer in a work area at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from finetune.errors import InputError

PATIENCE = 15.0  # seconds that a trainer whose DVC was killed may take to notice, save and end


def lock_of(work: Path) -> Path:
    """The lock of work area `work`, beside it."""
    return work.with_name(f"{work.name}.lock")


@contextmanager
def locked(work: Path) -> Iterator[Path]:
    """Hold the work area `work` (made if need be). The lock dies with its process.

    Waits a little for another holder, which may be one that is about to end, as its DVC was killed.

    Raises:
        InputError: another process trains this run.
    """
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_of(work))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{work}: another process is training this very run; waiting {PATIENCE:.0f} s for its end", flush=True)
        try:
            lock.acquire(timeout=PATIENCE, poll_interval=0.1)
        except Timeout:
            raise InputError(
                f"{work}: another process is training this very run; wait for it to finish, or stop it first"
            ) from None
    try:
        work.mkdir(parents=True, exist_ok=True)  # whoever held it may have taken it away
        yield work
    finally:
        lock.release()
