"""Where a run stands: all that the rest of its training depends on, between any two steps."""

import resource
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models import MobileNetV2

from finetune.averaging import Averaged

Row = dict[str, float | int | None]  # one epoch, keyed as the columns of curves.csv


@dataclass
class Part:
    """How far the epoch under way is: what its steps gave, and where the random numbers stand."""

    losses: list[Tensor] = field(default_factory=list)  # per step: the mean loss times the images
    correct: list[Tensor] = field(default_factory=list)  # per step: images
    images: int = 0
    generators: list[Tensor] = field(default_factory=list)  # states, for dropout: the CPU's, the GPU's if it is used

    def content(self, device: torch.device) -> dict[str, Any]:
        if not self.losses:
            return {}
        generators = [torch.get_rng_state()]
        if device.type == "cuda":
            generators.append(torch.cuda.get_rng_state(device))
        numbers = {"losses": torch.stack(self.losses), "correct": torch.stack(self.correct), "images": self.images}
        return {**numbers, "generators": generators}

    @classmethod
    def of(cls, saved: dict[str, Any], device: torch.device) -> "Part":
        if not saved:
            return cls()
        losses, correct = (list(saved[name].to(device).unbind()) for name in ("losses", "correct"))
        return cls(losses, correct, saved["images"], saved["generators"])

    def restore_generators(self, device: torch.device) -> None:
        torch.set_rng_state(self.generators[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(self.generators[1], device)


@dataclass
class Progress:
    """What a run's finished epochs gave."""

    epoch: int = 0  # epochs done
    rows: list[Row] = field(default_factory=list)
    kept: int = 0  # the epoch whose weights are kept, from 1
    kept_state: dict[str, Tensor] = field(default_factory=dict)
    phase_seconds: dict[str, float] = field(default_factory=dict)  # by the clock's phase, over all attempts
    peak_memory: int = 0  # bytes: that of the earlier attempt that had most

    @property
    def train_seconds(self) -> float:
        """Of the training steps alone, over all attempts."""
        return self.phase_seconds["data"] + self.phase_seconds["compute"]

    @property
    def seconds(self) -> float:
        """Of training and validation, over all attempts."""
        return self.train_seconds + self.phase_seconds["evaluation"]


class State:
    """Network, averaged weights, optimizer and progress of a run, as they were saved or as they are at first."""

    def __init__(
        self, model: MobileNetV2, device: torch.device, saved: dict[str, Any] | None, ema: float = 0.0
    ) -> None:
        """Takes the network to where it was when `saved` (of `content`) was saved; None: to begin with.

        Args:
            ema: the decay of the averaged weights; 0: there are none.
        """
        self.model = model
        self.resumed = saved is not None
        self.progress, self.part = Progress(), Part()
        self.optimizer: torch.optim.Optimizer | None = None
        self._device = device
        self._saved_optimizer = None
        if saved is not None:
            model.load_state_dict(saved["model"])
            self.progress, self.part = Progress(**saved["progress"]), Part.of(saved["part"], device)
            self._saved_optimizer = saved["optimizer"]
        self.averaged = Averaged(model, ema, saved["averaged"] if saved else None) if ema else None

    @property
    def at(self) -> tuple[int, int]:
        """Epochs done, and steps of the next."""
        return self.progress.epoch, len(self.part.losses)

    def begin_phase(self, optimizer: torch.optim.Optimizer, first: int) -> torch.optim.Optimizer:
        """Train with `optimizer` from epoch `first` on; it is taken to where it was, if the phase had begun."""
        if self._saved_optimizer is not None and self.at > (first, 0):
            optimizer.load_state_dict(self._saved_optimizer)
        self.optimizer, self._saved_optimizer = optimizer, None
        return optimizer

    def end_epoch(self, row: Row, selection: str) -> None:
        """Note an epoch's numbers and, where it is the one to keep so far, the weights."""
        progress = self.progress
        progress.rows.append(row)
        progress.epoch += 1
        self.part = Part()
        if selection == "last" or progress.kept == 0 or _better(row, progress.rows[progress.kept - 1]):
            progress.kept = progress.epoch
            weights = (self.averaged or self.model).state_dict()
            progress.kept_state = {k: v.detach().cpu().clone() for k, v in weights.items()}

    def content(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        assert self.optimizer is not None
        peak = max(self.progress.peak_memory, peak_memory(self._device.type))
        return {
            "progress": vars(self.progress) | {"peak_memory": peak},
            "part": self.part.content(self._device),
            "model": self.averaged.network() if self.averaged else self.model.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged else {},
            "optimizer": self.optimizer.state_dict(),
        }


def peak_memory(device: str) -> int:
    """Bytes that this process had at most so far: allocated on the GPU, else resident."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    with suppress(OSError, StopIteration):
        status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # on Linux a child begins with its parent's
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes elsewhere


def _better(row: Row, best: Row) -> bool:
    return (row["val/acc"], -row["val/loss"]) > (best["val/acc"], -best["val/loss"])  # type: ignore[operator]
