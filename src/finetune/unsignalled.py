"""Threads that are given no signals of the process, stretches in which the main one handles none, and waits in which it
does."""

import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import AnyStr

_LOOK = 0.5  # seconds
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def start_unsignalled(target: Callable[..., None], *given: object) -> None:
    """Run `target` in a daemon thread that no signal of the process goes to.

    Python handles signals in the main thread, which waits on where another thread was given one.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # a new thread inherits it
    try:
        threading.Thread(target=target, args=given, daemon=True).start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def signals_later(dropped: bool = False) -> Iterator[None]:
    """Within, the signals that end this process are noted alone, and handled at the end, so that nothing which has to
    be ended with the process is lost between its start and its name.

    They are not blocked: a child would be started with them blocked. Where the process handles none, and in threads
    other than the main one, where Python handles none, nothing changes.

    Args:
        dropped: they are not handled at the end either, as the process is ending already.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: handler for number in _ENDING if callable(handler := signal.getsignal(number))}
    noted: list[int] = []
    within = True

    def note(number: int, frame: FrameType | None) -> None:
        if within:
            noted.append(number)
        else:  # one that came as the handlers were put back, of which the first may have raised
            handlers[signal.Signals(number)](number, frame)

    try:
        for number in handlers:
            signal.signal(number, note)
        yield
    finally:
        within = False
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for each in () if dropped else noted:
            signal.raise_signal(each)


def communicated(process: subprocess.Popen[AnyStr]) -> tuple[AnyStr, AnyStr]:
    """What a process says until it has ended; in short waits, as Python handles a signal that comes just before a long
    one only after it."""
    while True:
        try:
            return process.communicate(timeout=_LOOK)
        except subprocess.TimeoutExpired:
            continue
