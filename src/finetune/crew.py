"""The same work in several processes at once, which begin its measured part together."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from threading import Barrier, BrokenBarrierError
from typing import Any

from finetune.errors import InputError

_LOOK = 0.5  # seconds
_PATIENCE = 600.0  # seconds in which all have come to the measured part


@contextmanager
def crew(members: int, work: Callable[[Any, Callable[[], object]], float]) -> Iterator[Callable[[Any], list[float]]]:
    """Give a function that does `work` on something in `members` processes at once and returns what each gave; with
    one member, in this process.

    Args:
        work: takes the something, and what to call before the measured part; to be pickled.

    Raises:
        InputError: a process was killed. And whatever `work` raises.
    """
    if members == 1:
        yield lambda something: [work(something, lambda: None)]
        return
    context = multiprocessing.get_context("spawn")  # a fork of a process with OpenMP's threads hangs
    barrier = context.Barrier(members, timeout=_PATIENCE)
    pool = ProcessPoolExecutor(members, context, _join, (barrier,))

    def together(something: Any) -> list[float]:
        try:
            futures = [pool.submit(_do, work, something) for _ in range(members)]
            # The pool watches over the processes that there were when something was last asked of it.
            pool.submit(os.getpid)
            while wait(futures, _LOOK).not_done:  # a signal just before a long wait would be handled after it
                pass
            raised = [error for error in (future.exception() for future in futures) if error is not None]
        except BrokenProcessPool as broken:  # so soon that nothing more can be asked
            raised = [broken]
        if any(isinstance(error, BrokenProcessPool) for error in raised):
            raise InputError(
                f"one of {members} processes at once was killed, as happens where memory is short; try fewer at once"
            )
        if raised:
            raise next((error for error in raised if not isinstance(error, BrokenBarrierError)), raised[0])
        return [future.result() for future in futures]

    try:
        yield together
    except BaseException:  # nothing that they do is waited for
        for child in multiprocessing.active_children():
            child.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


class _Member:
    barrier: Barrier | None = None


def _join(barrier: Barrier) -> None:
    end_with_the_parent()
    _Member.barrier = barrier


def end_with_the_parent() -> None:
    """What a process of a pool does first: it leaves Ctrl-C to the parent, which ends it, and ends once that is killed.

    For the pool's processes hold its pipes open for each other, and would wait for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_wait_for_its_end, daemon=True).start()


def _wait_for_its_end() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _do(work: Callable[[Any, Callable[[], object]], float], something: Any) -> float:
    assert _Member.barrier is not None
    try:
        return work(something, _Member.barrier.wait)
    except BaseException:
        _Member.barrier.abort()  # else the others would wait for it
        raise
