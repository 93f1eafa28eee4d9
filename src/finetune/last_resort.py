"""The end of a process that is told to end, and whose main thread does not come to it in time: Python handles a signal
between two of its own operations, and a single one of PyTorch's, such as a backward pass, may take longer than that.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

from finetune.unsignalled import start_unsignalled

WARNING = 6.5  # seconds from the signal until what is registered is called
LIMIT = 9.5  # seconds from the signal until the process exits: whoever sent it may send SIGKILL after 10


class LastResort:
    """Within, a thread hears of signals as they come, which the main thread may not, and exits in its stead."""

    def __init__(self, numbers: Collection[int], over: Callable[[], bool]) -> None:
        """To be entered by the main thread.

        Args:
            numbers: of the signals that end the process.
            over: whether the process is about to end by itself, which then is waited for.
        """
        self._numbers, self._over = numbers, over
        self._called: list[Callable[[], None]] = []
        self._left = threading.Event()

    @contextmanager
    def calling(self, action: Callable[[], None]) -> Iterator[None]:
        """Within, `action` is called before the process exits, by another thread, with three seconds for it."""
        self._called.append(action)
        try:
            yield
        finally:
            self._called.remove(action)

    def __enter__(self) -> "LastResort":
        heard, self._told = os.pipe()
        os.set_blocking(self._told, False)  # as Python requires, which writes to it
        self._before = signal.set_wakeup_fd(self._told, warn_on_full_buffer=False)
        start_unsignalled(self._watch, heard)
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._left.set()
        signal.set_wakeup_fd(self._before)
        os.close(self._told)

    def _watch(self, heard: int) -> None:
        with open(heard, "rb", buffering=0) as pipe:
            while told := pipe.read(1):  # to its end, as Python complains where nobody takes what it writes
                if told[0] in self._numbers:
                    self._end_in_time(told[0])

    def _end_in_time(self, number: int) -> None:
        if self._left.wait(WARNING) or self._over():
            return
        for action in tuple(self._called):
            threading.Thread(target=action, daemon=True).start()
        if self._left.wait(LIMIT - WARNING) or self._over():
            return
        saying = threading.Thread(target=_say, args=(number,), daemon=True)
        saying.start()
        saying.join(0.3)  # a terminal may be stopped
        os._exit(128 + number)


def _say(number: int) -> None:
    with suppress(OSError, ValueError):  # whoever listened may be gone
        print(
            f"finetune: what was under way did not end within {LIMIT:g} s of {signal.Signals(number).name}; the same "
            "command goes on from what is saved",
            file=sys.stderr,
            flush=True,
        )
