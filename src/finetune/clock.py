"""Where a run's seconds go: each belongs to one phase, and those of all attempts are added up.

Those of an attempt that was killed (SIGKILL) since its last checkpoint are lost with what it did in them.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Self, TypeVar

PHASES = ("start", "data", "compute", "evaluation", "saving")

T = TypeVar("T")


class Clock:
    """Adds up seconds by phase. One phase runs at a time: one that is entered within another interrupts that one.

    `start` is what comes before the first batch is asked for; `data` is the time in which the training loop waits for
    its next batch; `compute` is the rest of the training passes: forward, backward, step. A GPU works on while the host
    goes ahead: there `data` is the host's time, and `compute` the rest of the passes' wall time, whatever the GPU did
    in it. The clock never waits for the device.
    """

    def __init__(self, began: float | None = None) -> None:
        """`began`: when `start` began, of time.monotonic(); None for now."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._running: str | None = "start"
        self._since = time.monotonic() if began is None else began

    def go_on(self, seconds: dict[str, float]) -> Self:
        """Leave `start`, and go on from earlier attempts' seconds, in the very mapping given: checkpoints keep it."""
        self._switch(None)
        for phase, own in self.seconds.items():
            seconds[phase] = seconds.get(phase, 0.0) + own
        self.seconds = seconds
        return self

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens within belongs to `name`; afterwards the phase that it interrupted runs on."""
        interrupted = self._switch(name)
        try:
            yield
        finally:
            self._switch(interrupted)

    def waits(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """The same items; the time until each is there belongs to `name`."""
        iterator = iter(items)
        while True:
            with self.phase(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def _switch(self, name: str | None) -> str | None:
        now, before = time.monotonic(), self._running
        if before is not None:
            self.seconds[before] += now - self._since
        self._running, self._since = name, now
        return before
