"""Which precision, memory format, kernels, threads and batch size train fastest here: measured, then written down.

Training itself never chooses: its numbers depend on these settings, so they stand in params.yaml.
"""

import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.models import MobileNetV2

from finetune.averaging import Averaged
from finetune.counting import counted
from finetune.crew import crew
from finetune.device import Feed, configure, move_to_device, resolve_device
from finetune.errors import InputError
from finetune.optimizers import make_optimizer
from finetune.params import TrainingParams
from finetune.params_edit import put
from finetune.processor import cpu_has_bf16
from finetune.step import Step
from finetune.store import Split, Store, open_store
from finetune.strategies import build_model, build_plan, check_options
from finetune.strategies.adjustments import adjusted
from finetune.strategies.plan import Plan
from finetune.training import train_epoch

_STEPS = 2  # that are timed, after one that is not


@dataclass(frozen=True)
class Setting:
    """What is tried; named as the keys of `training`."""

    precision: str
    memory_format: str
    cpu_kernels: str
    threads: int
    batch_size: int


@dataclass(frozen=True)
class Measured:
    setting: Setting
    rates: tuple[float, ...]  # images per second, of all trainings together, of each round
    at_once: int = 1  # trainings

    @property
    def rate(self) -> float:
        """The median, in images per second."""
        return statistics.median(self.rates)


def settings(threads: Sequence[int], batch_sizes: Sequence[int], native: bool) -> list[Setting]:
    """Every combination; bf16 only where this CPU has instructions for it.

    Args:
        native: whether this project's kernels are tried, too; they are for channels_last.
    """
    precisions = ("fp32", "bf16") if cpu_has_bf16() else ("fp32",)
    layers = [("channels_last", "torch"), *([("channels_last", "native")] if native else []), ("contiguous", "torch")]
    return [
        Setting(precision, *layer, count, size)
        for precision, layer, count, size in product(precisions, layers, threads, batch_sizes)
    ]


def other_sizes(setting: Setting, store: Store) -> list[Setting]:
    """The same with half and with twice the batch size, where there are two images a batch and two batches."""
    halved, doubled = setting.batch_size // 2, setting.batch_size * 2
    return [
        replace(setting, batch_size=size) for size in (halved, doubled) if 2 <= size <= len(store.split("train")) / 2
    ]


@dataclass(frozen=True)
class Strategy:
    """Whose training is measured: a variant of a plan, as params.yaml has it."""

    name: str
    plan: str
    options: Mapping[str, Any]

    def model(self, classes: int) -> MobileNetV2:
        """The network that it trains, with what the plan adds; before any weights are loaded."""
        return build_model(classes, 0, self.plan, self.options)

    def plan_of(self, model: MobileNetV2, recipe: TrainingParams) -> Plan:
        """As training adjusts it to the recipe."""
        where = f"params.yaml: strategies.{self.name}"
        return adjusted(model, build_plan(model, self.plan, self.options), recipe, where)


def check(recipe: TrainingParams, strategy: Strategy) -> None:
    """Work the strategy out, before anything is measured.

    Raises:
        InputError: the recipe is for a GPU; an option is not the plan's; recipe and plan exclude each other; or nothing
            is trained step by step.
    """
    if recipe.device != "cpu" and resolve_device(recipe.device) == "cuda":
        raise InputError(
            f"calibrate: measures a CPU, found training.device {recipe.device}, which is cuda here; `python -m "
            "benchmarks.gpu sweep` measures a GPU, --set training.device=cpu has this measure the CPU"
        )
    check_options(strategy.name, strategy.plan, strategy.options)
    with torch.device("meta"):
        phase = strategy.plan_of(strategy.model(2), recipe).phases[-1]
    if phase.solve is not None:
        raise InputError(
            f"calibrate: strategy '{strategy.name}' solves its head at once, so there are no steps to be measured; "
            "name another baseline, as with --set study.baseline=NAME"
        )


def measure(
    store: Store,
    recipe: TrainingParams,
    strategy: Strategy,
    tried: Sequence[Setting],
    rounds: int,
    at_once: Callable[[int], int] = lambda threads: 1,
) -> list[Measured]:
    """Train a few steps of a strategy under each setting, in turn, `rounds` times; the fastest comes first.

    The steps are of the strategy's last phase, in which most is trained, without torch.compile. Features that training
    would cache are computed anew, as computing them is what takes the time there.

    Args:
        at_once: how many trainings of so many threads each run side by side, each in a process of its own.

    Raises:
        InputError: as `check`; the store has fewer images than two batches; or one of several processes was killed.
    """
    check(recipe, strategy)
    split = store.split("train")
    if len(split) < 2 * max(setting.batch_size for setting in tried):
        raise InputError(f"{store.path}: {len(split)} training images are too few for two batches; try a smaller batch")
    rates: dict[Setting, list[float]] = {setting: [] for setting in tried}
    done = 0

    def beside(setting: Setting) -> int:
        return at_once(setting.threads)

    with counted("calibrate", rounds * len(tried), "trials") as advance:
        for _ in range(rounds):
            for members, several in groupby(sorted(tried, key=beside), key=beside):
                with crew(members, partial(_rate, store.path, recipe, strategy)) as rates_of:
                    for setting in several:
                        rates[setting].append(sum(rates_of(setting)))
                        advance(done := done + 1)
    found = [Measured(setting, tuple(values), beside(setting)) for setting, values in rates.items()]
    return sorted(found, key=lambda one: -one.rate)


def _rate(
    path: Path, recipe: TrainingParams, strategy: Strategy, setting: Setting, ready: Callable[[], object]
) -> float:
    """Images per second of a few steps, begun once all that run beside are `ready`."""
    store = open_store(path)
    split, classes = store.split("train"), len(store.classes)
    own = recipe.model_copy(update={**asdict(setting), "device": "cpu", "compile": "none"})
    configure(own)
    model = strategy.model(classes)
    plan = strategy.plan_of(model, own)
    if plan.begin is not None:
        plan.begin(model)
    # What is measured anew as an epoch begins would weigh more in a few steps than in an epoch.
    phase = replace(plan.phases[-1], scales=None)
    move_to_device(model, own)
    with phase.penalty(model) if phase.penalty else nullcontext() as penalty:
        averaged = Averaged(model, own.ema) if own.ema else None
        step = Step(model, phase, make_optimizer(model, phase, own), own, penalty=penalty, averaged=averaged)

        def epoch(steps: int) -> None:
            rows = np.arange(steps * own.batch_size) % len(split)
            part = Split(split.pixels, split.index[rows], split.labels[rows])
            train_epoch(step, Feed(own).batches(part), 0, 0, "calibrate")

        epoch(1)
        ready()
        began = time.perf_counter()
        epoch(_STEPS)
        return _STEPS * own.batch_size / (time.perf_counter() - began)


def write(params_file: Path, setting: Setting, keys: Collection[str]) -> None:
    """Put `keys` of a setting under `training` in params.yaml, where nothing else changes.

    Raises:
        InputError: as `params_edit.put`.
    """
    put(params_file, "training", {key: value for key, value in asdict(setting).items() if key in keys})
