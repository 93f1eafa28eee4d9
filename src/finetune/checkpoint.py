"""Atomic save and load of a run's state, with the run's fingerprint, and how often that is worth its time."""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from finetune.interruption import held

FILE = "checkpoint.pt"
DISK = 150e6  # bytes per second, as a hard disk writes: by it the first save is judged, before any was measured


@dataclass(frozen=True)
class Pace:
    """How often to save: `seconds` apart, and farther where all saves would take more than `share` of the time.

    The time is that since this attempt began to train, validation and saves included: at every save that is made
    because it is due, between two steps or after an epoch, the seconds of all of them so far are at most this share of
    it, if this one takes as long as the last. The first is taken to take as long as its bytes do on a slow disk. One
    that takes longer is made up for before the next. The share does not bound what must be written whatever it takes:
    the state of a training that a signal ends, and the files of the finished run.
    """

    seconds: float = 10.0
    share: float = 0.02


class Savable(Protocol):
    """What a `Saver` saves."""

    @property
    def at(self) -> tuple[int, int]:
        """Grows as there is more to save."""
        ...

    def content(self) -> dict[str, Any]: ...


class Saver:
    """Saves one run's state when it is due."""

    def __init__(
        self,
        work: Path,
        fingerprint: str,
        state: Savable,
        pace: Pace,
        timed: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """
        Args:
            state: as it lies in `work` already, or as it is made anew each time.
            timed: the context in which saving is counted.
        """
        self._work, self._fingerprint, self._state, self._pace, self._timed = work, fingerprint, state, pace, timed
        self._began = self._last = time.monotonic()
        self._took: float | None = None  # seconds: the last save; before the first, what it may take
        self._spent = 0.0  # seconds of all saves
        self.at = state.at  # how far what is saved is

    def when_due(self) -> None:
        """Save if `Pace` allows it; a signal waits for the end."""
        now = time.monotonic()
        if now - self._last < self._pace.seconds:
            return
        if self._took is None:
            self._took = size(self._state.content()) / DISK
        if self._spent + self._took <= self._pace.share * (now - self._began + self._took):
            with held():
                self._save()

    def at_last(self) -> None:
        """Save what is not saved yet, before the process ends."""
        if self._state.at != self.at:
            with held(last=True):
                self._save()

    def _save(self) -> None:
        began = time.monotonic()
        with self._timed():
            save(self._work, self._fingerprint, self._state.content())
        self.at = self._state.at
        self._last = time.monotonic()
        self._took = self._last - began
        self._spent += self._took


def size(content: Any) -> int:
    """Bytes of all tensors in `content`, however deep."""
    if isinstance(content, Tensor):
        return content.nbytes
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return sum(map(size, inner))


def save(work: Path, fingerprint: str, content: dict[str, Any]) -> None:
    """Write the checkpoint of the run in work area `work`: whole or not at all, also when the power fails."""
    aside = work / f".{FILE}"
    with aside.open("wb") as file:
        torch.save({"fingerprint": fingerprint, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(work / FILE)


def load(work: Path, fingerprint: str) -> dict[str, Any] | None:
    """The last checkpoint in `work`; None when there is none, it is another run's, or it cannot be read, which is
    said on stdout."""
    path = work / FILE
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # of damaged bytes torch's reader makes errors of many kinds
        content = None
    if isinstance(content, dict) and content.get("fingerprint") == fingerprint:
        return content
    fault = "of a training with other settings" if isinstance(content, dict) else "damaged"
    print(f"{path}: is {fault}; the training starts afresh", flush=True)
    return None
