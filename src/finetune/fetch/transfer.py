"""How far files are on their way, and how a terminal or a log shows it.

The threads that bring files only note how far they are; one thread shows it, so that nothing is interleaved.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tqdm import tqdm

_EVERY = 5.0  # seconds between two lines in a log


@dataclass(eq=False)
class Transfer:
    """How far one file is; written by the thread that brings it."""

    name: str
    total: int | None = None  # bytes of the whole file, where known
    done: int = 0  # bytes of it that are here
    kept: int = 0  # bytes of it that were here when `since` was
    since: float = field(default_factory=time.time)  # seconds of the clock
    state: str = ""  # what is going on, in a word or two; empty: not begun

    def begin(self, state: str, total: int | None, kept: int = 0) -> None:
        """A new errand with this file, of which `kept` bytes need not be moved; rate and time left start anew."""
        self.total, self.done, self.kept, self.since, self.state = total, kept, kept, time.time(), state

    def rate(self) -> float:
        """Bytes per second."""
        return (self.done - self.kept) / max(time.time() - self.since, 1e-3)

    def line(self) -> str:
        """For a log: state, and, once bytes move, share, rate and time left."""
        if self.done == self.kept:
            return f"{self.name}: {self.state}"
        share = f"{size(self.done)} of {size(self.total)}" if self.total else size(self.done)
        rate = self.rate()
        left = f", {tqdm.format_interval((self.total - self.done) / rate)} left" if self.total and rate else ""
        return f"{self.name}: {self.state}, {share}, {size(rate)}/s{left}"


class Display(Protocol):
    """Shows transfers."""

    def say(self, line: str) -> None:
        """Print a line that stays."""

    def show(self, active: Sequence[Transfer]) -> None: ...

    def close(self) -> None: ...


def display(say: Callable[[str], None]) -> Display:
    """Bars where stderr is a terminal, else flushed lines through `say` every few seconds."""
    return _Bars(say) if sys.stderr.isatty() else _Lines(say)


def size(count: float) -> str:
    """A number of bytes as people read it."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


class _Lines:
    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._next = time.monotonic() + _EVERY

    def say(self, line: str) -> None:
        self._say(line)
        sys.stdout.flush()

    def show(self, active: Sequence[Transfer]) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _EVERY
            for transfer in active:
                self.say(transfer.line())

    def close(self) -> None:
        pass


class _Bars:
    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._bars: dict[Transfer, Any] = {}

    def say(self, line: str) -> None:
        with tqdm.external_write_mode():
            self._say(line)

    def show(self, active: Sequence[Transfer]) -> None:
        for gone in self._bars.keys() - set(active):
            self._bars.pop(gone).close()
            print(end="\r", file=sys.stderr, flush=True)  # tqdm leaves the cursor where the bar ended
        for transfer in active:
            if transfer not in self._bars:
                self._bars[transfer] = tqdm(
                    desc=transfer.name, unit="B", unit_scale=True, leave=False, dynamic_ncols=True
                )
            bar = self._bars[transfer]
            bar.total, bar.n, bar.initial, bar.start_t = transfer.total, transfer.done, transfer.kept, transfer.since
            bar.set_postfix_str(transfer.state)

    def close(self) -> None:
        self.show(())
