"""Threads that are given no signals of the process."""

import signal
import threading
from collections.abc import Callable


def start_unsignalled(target: Callable[..., None], *given: object) -> None:
    """Run `target` in a daemon thread that no signal of the process goes to.

    Python handles signals in the main thread, which waits on where another thread was given one.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # a new thread inherits it
    try:
        threading.Thread(target=target, args=given, daemon=True).start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
