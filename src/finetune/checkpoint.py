"""Atomic save and load of a run's state, with the run's fingerprint, and how often that is worth its time."""

import io
import os
import time
import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from torch import Tensor

from finetune import cpu_kernels
from finetune.errors import InputError
from finetune.interruption import held
from finetune.processor import cpu_has_bf16, cpu_name

FILE = "checkpoint.pt"
_SUM = 4  # bytes of a CRC-32 at the file's end
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
        device: str = "cpu",
    ) -> None:
        """
        Args:
            device: where the run trains: cpu or cuda.
            state: what to save; how far it is now counts as saved.
            timed: the context in which saving is counted.
        """
        self._work, self._fingerprint, self._state, self._pace, self._timed = work, fingerprint, state, pace, timed
        self._device = device
        self._began = self._last = time.monotonic()
        self._took: float | None = None  # seconds: the last save; before the first, what it may take
        self._spent = 0.0  # seconds of all saves
        self.at = state.at  # how far what is saved is

    def when_due(self) -> None:
        """Save if `Pace` allows it; a signal waits for the end. One that cannot be written is said, and tried again."""
        now = time.monotonic()
        if now - self._last < self._pace.seconds:
            return
        if self._took is None:
            self._took = size(self._state.content()) / DISK
        if self._spent + self._took <= self._pace.share * (now - self._began + self._took):
            with held():
                try:
                    self._save()
                except OSError as error:
                    self._say(error, "the training goes on without")

    def at_last(self) -> None:
        """Save what is not saved yet, before the process ends; that it cannot be written is said."""
        if self._state.at != self.at:
            with held(last=True):
                try:
                    self._save()
                except OSError as error:
                    self._say(error, "the one before is kept, if there was one")

    def _save(self) -> None:
        began = time.monotonic()
        try:
            with self._timed():
                save(self._work, self._fingerprint, self._state.content(), self._device)
            self.at = self._state.at
        finally:
            self._last = time.monotonic()
            self._took = self._last - began
            self._spent += self._took

    def _say(self, error: OSError, what: str) -> None:
        with suppress(OSError):  # whoever listened may be gone
            why = error.strerror or error
            print(f"{self._work / FILE}: the checkpoint cannot be written ({why}); {what}", flush=True)


def size(content: Any) -> int:
    """Bytes of all tensors in `content`, however deep."""
    if isinstance(content, Tensor):
        return content.nbytes
    inner = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return sum(map(size, inner))


def save(work: Path, fingerprint: str, content: dict[str, Any], device: str = "cpu") -> None:
    """Write the checkpoint of the run in work area `work`: whole or not at all, also when the power fails.

    Raises:
        OSError: it cannot be written; the one before stays, and nothing is left of it.
    """
    aside = work / f".{FILE}"
    try:
        buffer = io.BytesIO()  # first, for the sum of its bytes
        torch.save({"fingerprint": fingerprint, "made_by": _maker(device), **content}, buffer)
        with aside.open("wb") as file:
            _write(file, buffer.getbuffer())
            file.write(_sum(buffer.getbuffer()))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(work / FILE)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def load(work: Path, fingerprint: str, device: str = "cpu") -> dict[str, Any] | None:
    """The last checkpoint in `work`; None when there is none, it is another run's, or it is damaged, which is said on
    stdout. So is that another PyTorch, processor or compiler of this project's kernels made it: then bits may differ.

    Raises:
        InputError: the file is there and cannot be read.
    """
    path = work / FILE
    if not path.is_file():
        return None
    try:
        whole = memoryview(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); mend that, or delete it to begin anew") from None
    data, content = whole[:-_SUM], None
    if whole[-_SUM:] == _sum(data):
        with suppress(Exception):  # torch's reader makes errors of many kinds
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    if isinstance(content, dict) and content.get("fingerprint") == fingerprint:
        if (made_by := content.pop("made_by", None)) != (now := _maker(device)):
            print(f"{path}: was made by {made_by}, and goes on with {now}; bits may differ", flush=True)
        return content
    fault = "of a training with other settings" if isinstance(content, dict) else "damaged"
    print(f"{path}: is {fault}; the training starts afresh", flush=True)
    return None


def _write(file: BinaryIO, data: memoryview) -> None:
    file.write(data)


def _sum(data: memoryview) -> bytes:
    return zlib.crc32(data).to_bytes(_SUM, "big")


def _maker(device: str) -> str:
    """What the bits of a training depend on beside its settings, in words."""
    if device == "cuda":
        return f"torch {torch.__version__} on {torch.cuda.get_device_name()}"
    low = ", bf16" if cpu_has_bf16() else ""
    kernels = f", kernels by {compiler}" if (compiler := cpu_kernels.compiler_in_use()) else ""
    return f"torch {torch.__version__} on {cpu_name()}, {torch.backends.cpu.get_cpu_capability()}{low}{kernels}"
