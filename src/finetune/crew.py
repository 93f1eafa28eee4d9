"""The same work in several processes at once, which begin its measured part together."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Barrier
from typing import Any

_PATIENCE = 600.0  # seconds in which all have come to the measured part


@contextmanager
def crew(members: int, work: Callable[[Any, Callable[[], object]], float]) -> Iterator[Callable[[Any], list[float]]]:
    """Give what has each of `members` processes do `work` on something and returns what each gave; one is this process.

    Args:
        work: takes the something, and what to call before the measured part; to be pickled.

    Raises whatever `work` raises.
    """
    if members == 1:
        yield lambda something: [work(something, lambda: None)]
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with OpenMP's threads hangs
    barrier = context.Barrier(members, timeout=_PATIENCE)
    with context.Pool(members, _join, (barrier,)) as pool:
        yield lambda something: pool.starmap(_do, [(work, something)] * members, chunksize=1)


class _Member:
    barrier: Barrier | None = None


def _join(barrier: Barrier) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits, and it ends these
    _Member.barrier = barrier


def _do(work: Callable[[Any, Callable[[], object]], float], something: Any) -> float:
    assert _Member.barrier is not None
    try:
        return work(something, _Member.barrier.wait)
    except BaseException:
        _Member.barrier.abort()  # else the others would wait for it
        raise
