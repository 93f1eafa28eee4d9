"""Atomic save and load of a run's state, with the run's fingerprint, and how often that is worth its time."""

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from finetune.interruption import held

FILE = "checkpoint.pt"


@dataclass(frozen=True)
class Pace:
    """How often to save: `seconds` apart, and farther where that would take more than `share` of the time."""

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
        self._last, self._took = time.monotonic(), 0.0
        self.at = state.at  # how far what is saved is

    def when_due(self) -> None:
        """Save if the last time is long enough ago; a signal waits for the end."""
        apart = max(self._pace.seconds, self._took * (1 / self._pace.share - 1))
        if time.monotonic() - self._last >= apart:
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
