"""A thread for what the main one is not to wait for."""

import queue
import signal
import threading
from collections.abc import Callable
from contextlib import suppress


class Background:
    """Does one thing after another, in the order in which they came, beside the thread that asks for them.

    What is being done is never cut short by a signal of the process, and keeps no process from ending.
    """

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def do(self, action: Callable[[], None]) -> None:
        """Have it done after what was asked for before; what it raises is lost."""
        if self._thread is None:
            self._thread = self._begun()
        self._asked.put(action)

    def wait(self, at_most: float | None = None) -> bool:
        """Whether all that was asked for so far was done within `at_most` seconds; None waits as long as it takes."""
        done = threading.Event()
        self.do(done.set)
        return done.wait(at_most)

    def _begun(self) -> threading.Thread:
        thread = threading.Thread(target=self._work, daemon=True)
        # Python handles a signal in the main thread, which would wait on where the new one was given it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return thread

    def _work(self) -> None:
        while True:
            action = self._asked.get()
            with suppress(BaseException):  # else whoever waits would wait for ever
                action()
