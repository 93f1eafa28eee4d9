"""A thread for what the main one is not to wait for."""

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from finetune.unsignalled import start_unsignalled

_LOOK = 0.1  # seconds: Python's handling of a signal that came just as a wait began is due only when the wait ends


class Background:
    """Does one thing after another, in the order in which they came, beside the thread that asks for them.

    What is being done is never cut short by a signal of the process, and keeps no process from ending.
    """

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._begun = False

    def do(self, action: Callable[[], None]) -> None:
        """Have it done after what was asked for before; what it raises is lost."""
        if not self._begun:
            start_unsignalled(self._work)
            self._begun = True
        self._asked.put(action)

    def wait(self, at_most: float | None = None) -> bool:
        """Whether all that was asked for so far was done within `at_most` seconds; None waits as long as it takes."""
        done = threading.Event()
        self.do(done.set)
        until = float("inf") if at_most is None else time.monotonic() + at_most
        while not done.wait(min(_LOOK, max(0.0, until - time.monotonic()))):
            if time.monotonic() >= until:
                return False
        return True

    def _work(self) -> None:
        while True:
            action = self._asked.get()
            with suppress(BaseException):  # else whoever waits would wait for ever
                action()
