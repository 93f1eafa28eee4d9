"""A thread for what the main one is not to wait for."""

import queue
import signal
import threading
from collections.abc import Callable


class Background:
    """Does one thing after another, in the order in which they came, beside the thread that asks for them.

    What is being done is never cut short by a signal of the process, and keeps no process from ending.
    """

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def do(self, action: Callable[[], None]) -> None:
        """Have it done after what was asked for before; it must not raise."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        self._asked.put(action)

    def wait(self, at_most: float | None = None) -> bool:
        """Whether all that was asked for so far was done within `at_most` seconds; None waits as long as it takes."""
        done = threading.Event()
        self.do(done.set)
        return done.wait(at_most)

    def _work(self) -> None:
        # Python handles a signal in the main thread, which goes on waiting where another one is given it.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            self._asked.get()()
