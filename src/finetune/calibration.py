"""Which precision, memory format, threads and batch size train fastest on this machine: measured, then written down.

Training itself never chooses: its numbers depend on these settings, so they stand in params.yaml.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ruamel.yaml import YAML

from finetune import model as models
from finetune.batches import Batches
from finetune.counting import counted
from finetune.device import configure, memory_format, move_to_device
from finetune.errors import InputError
from finetune.optimizers import make_optimizer
from finetune.params import TrainingParams
from finetune.store import Split, Store
from finetune.strategies.plan import Plan
from finetune.training import Step, train_epoch

_STEPS = 2  # that are timed, after one that is not


@dataclass(frozen=True)
class Setting:
    """What is tried; named as the keys of `training`."""

    precision: str
    memory_format: str
    threads: int
    batch_size: int


@dataclass(frozen=True)
class Measured:
    setting: Setting
    rates: tuple[float, ...]  # images per second, of each round

    @property
    def rate(self) -> float:
        """The median, in images per second."""
        return statistics.median(self.rates)


def settings(threads: Sequence[int], batch_sizes: Sequence[int]) -> list[Setting]:
    """Every combination."""
    return [
        Setting(*values) for values in product(("fp32", "bf16"), ("channels_last", "contiguous"), threads, batch_sizes)
    ]


def measure(
    store: Store,
    recipe: TrainingParams,
    plan: Callable[[Any], Plan],
    tried: Sequence[Setting],
    rounds: int,
) -> list[Measured]:
    """Train a few steps of the recipe under each setting, in turn, `rounds` times; the fastest comes first.

    Args:
        plan: network -> the plan to train by.

    Raises:
        InputError: the recipe is for a GPU, or the store has fewer images than two batches.
    """
    if recipe.device == "cuda":
        raise InputError(
            "calibrate: measures a CPU, found training.device cuda; `python -m benchmarks.gpu sweep` measures a GPU"
        )
    split = store.split("train")
    if len(split) < 2 * max(setting.batch_size for setting in tried):
        raise InputError(f"{store.path}: {len(split)} training images are too few for two batches; try a smaller batch")
    rates: dict[Setting, list[float]] = {setting: [] for setting in tried}
    done = 0
    with counted("calibrate", rounds * len(tried), "trials") as advance:
        for _ in range(rounds):
            for setting in tried:
                rates[setting].append(_rate(split, len(store.classes), recipe, plan, setting))
                advance(done := done + 1)
    found = [Measured(setting, tuple(values)) for setting, values in rates.items()]
    return sorted(found, key=lambda one: -one.rate)


def _rate(split: Split, classes: int, recipe: TrainingParams, plan: Callable[[Any], Plan], setting: Setting) -> float:
    own = recipe.model_copy(update={**asdict(setting), "device": "cpu", "compile": "none"})
    configure(own)
    model = models.build(classes, 0)
    phase = plan(model).phases[-1]
    move_to_device(model, own)
    optimizer = make_optimizer(model, phase, own)

    def epoch(steps: int) -> None:
        rows = np.arange(steps * own.batch_size) % len(split)
        part = Split(split.pixels, split.index[rows], split.labels[rows])
        batches = Batches(part, own.image_size, own.batch_size, torch.device("cpu"), memory_format(own), own.crop_pct)
        train_epoch(Step(model, phase, optimizer, own), batches, 0, 0, "calibrate")

    epoch(1)
    began = time.perf_counter()
    epoch(_STEPS)
    return _STEPS * own.batch_size / (time.perf_counter() - began)


def write(params_file: Path, setting: Setting) -> None:
    """Put a setting under `training` in params.yaml, whose comments and other values stay; atomically.

    Raises:
        InputError: the file cannot be written.
    """
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    content = yaml.load(params_file.read_text(encoding="utf-8"))
    section = content.setdefault("training", {}) if content.get("training") is not None else {}
    content["training"] = section
    for key, value in asdict(setting).items():
        section[key] = value
    aside = params_file.with_name(f".{params_file.name}.aside")
    try:
        with aside.open("w", encoding="utf-8") as file:
            yaml.dump(content, file)
        aside.replace(params_file)
    except OSError as error:
        raise InputError(f"{params_file}: cannot be written ({error.strerror}); make it writable") from None
    finally:
        aside.unlink(missing_ok=True)
