"""Ending a training that is told to: by SIGTERM, Ctrl-C or SIGHUP, or because what started it is gone.

A run's state is saved only between the stretches in which it changes (a step, the end of an epoch): within `held`, a
signal waits for the end of the stretch. Elsewhere it takes effect at once, as `Interrupted`. Where the main thread does
not come to either, `last_resort` ends the process.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import FrameType

from finetune.last_resort import LastResort
from finetune.starter import Starter, find
from finetune.unsignalled import start_unsignalled

PATIENCE = 6.0  # seconds from the signal in which the step must end and the checkpoint be saved
_AGAIN = 21.0  # seconds; the command line takes no signal for so long after one
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupted(SystemExit):
    """The process is to end, with exit code 128 + the signal's number as shells have it (143, 130, 129)."""

    def __init__(self, number: int, torn: bool = False) -> None:
        """`torn`: what was under way did not end in time, so that the run's state is half changed."""
        super().__init__(128 + number)
        self.signal = signal.Signals(number).name
        self.torn = torn


class _Now:
    """What the process is about; there is one, as signals go to the process."""

    received: int | None = None
    held = False
    over = False
    starter: Starter | None = None
    resort: LastResort | None = None


@contextmanager
def handled() -> Iterator[None]:
    """Within, the signals that end a process raise `Interrupted` when it is safe; to be entered by the main thread.

    Signals that whoever started the process has it ignore (`nohup`, `&` in scripts) stay ignored.
    """
    before = {number: signal.getsignal(number) for number in _ENDING}
    ours = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    _Now.received, _Now.held, _Now.over = None, False, False
    alarm = signal.signal(signal.SIGALRM, _out_of_time)
    for number in ours:
        signal.signal(number, _receive)
    try:
        with LastResort(tuple(ours), lambda: _Now.over) as _Now.resort:
            end_with_starter()
            yield
    finally:
        _Now.resort = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        if _Now.received is None:  # else the process is ending, and no second signal shall hinder it
            for number, old in (ours | {signal.SIGALRM: alarm}).items():
                signal.signal(number, old)


def at_worst(action: Callable[[], None]) -> AbstractContextManager[None]:
    """Within, `action` is called, by another thread, before the process exits as the main one does not come to it."""
    return nullcontext() if _Now.resort is None else _Now.resort.calling(action)


class held:
    """Within, the run's state changes: an interruption waits for the end, and for `PATIENCE` seconds at most."""

    def __init__(self, last: bool = False) -> None:
        """`last`: the process is ending already; nothing more is waited for."""
        self._last = last

    def __enter__(self) -> None:
        if not self._last:
            check()
        _Now.held = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        _Now.held = False
        if kind is None and not self._last:
            check()


@contextmanager
def finishing() -> Iterator[None]:
    """Within, the training is whole and about to end by itself: an interruption would only lose it."""
    _Now.over = True
    try:
        yield
    finally:
        _Now.over = False


def check() -> None:
    """Raise `Interrupted` if a signal waits, or what started this process is gone."""
    if _Now.received is None and _Now.starter is not None and _Now.starter.left():
        _Now.received = signal.SIGTERM
    if _Now.received is not None:
        raise Interrupted(_Now.received)


def end_with_starter() -> None:
    """Have this process end as by SIGTERM once what started it is gone, as it would work on unseen, beside whatever the
    next one starts.

    Raises:
        Interrupted: it is gone already.
    """
    if _Now.starter is not None:
        return
    found = find()
    if found is None:
        return
    if found.gone() or found.adopted():
        with suppress(OSError):  # whoever listened may be gone
            print("finetune: what started this process is gone; it ends before it begins", file=sys.stderr, flush=True)
        _Now.received = signal.SIGTERM
        raise Interrupted(signal.SIGTERM)
    _Now.starter = found
    start_unsignalled(_watch, found)


def _watch(found: Starter) -> None:
    while not found.gone():
        time.sleep(0.5)
    while _Now.received is None:
        os.kill(os.getpid(), signal.SIGTERM)
        # Python drops an exit that is raised within a weak reference's callback. In a training, whose signals are
        # noted, `check` and `last_resort` see to that.
        time.sleep(_AGAIN)


def _receive(number: int, _: FrameType | None) -> None:
    if _Now.received is not None:
        return  # it is ending already
    _Now.received = number
    if _Now.over:
        return
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    if not _Now.held:
        raise Interrupted(number)


def _out_of_time(*_: object) -> None:
    if _Now.held and _Now.received is not None:
        raise Interrupted(_Now.received, torn=True)
