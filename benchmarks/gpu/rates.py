"""Images per second of the project's own training epoch on a stretch of a real store."""

import dataclasses
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune import model as models
from finetune.batches import Batches, DeviceBatches
from finetune.device import Feed, configure, move_to_device
from finetune.optimizers import make_optimizer
from finetune.params import AugmentationParams, TrainingParams
from finetune.step import Step
from finetune.store import Split, open_store
from finetune.strategies import build_plan
from finetune.training import train_epoch

IMAGES, TINY_IMAGES = 16384, 16  # of a stretch that is timed


@dataclasses.dataclass(frozen=True)
class Fixed(Batches):
    """One batch, over and over: training without feeding."""

    ready: tuple[Tensor, Tensor]

    def training(
        self, augmentation: AugmentationParams, seed: int, epoch: int, *, first: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(first, self.training_steps()):
            yield self.ready


def fixed(batches: Batches, augmentation: AugmentationParams) -> Batches:
    """As many batches, all of them the first, which is made now."""
    return Fixed(**_fields(batches), ready=next(batches.training(augmentation, 0, 0)))


class Trained:
    """A network that is trained by a recipe as `finetune train` does it, all of its parameters at one rate."""

    def __init__(self, store: Path, recipe: TrainingParams) -> None:
        self.recipe = recipe
        if recipe.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        configure(recipe)
        opened = open_store(store)
        model = models.build(len(opened.classes), 0)
        move_to_device(model, recipe)
        phase = build_plan(model, "same_lr", {}).phases[0]
        self._step = Step(model, phase, make_optimizer(model, phase, recipe), recipe)
        self._split, self._feed = opened.split("train"), Feed(recipe)

    def batches(self, images: int, streamed: bool = False) -> Batches:
        """Whole batches of about so many images; `streamed` to the device whether they fit into its memory or not."""
        whole = max(1, images // self.recipe.batch_size) * self.recipe.batch_size
        fed = self._feed.batches(_some(self._split, whole))
        if not streamed:
            return fed
        return DeviceBatches(**_fields(fed), resident=None, exact=self.recipe.precision == "fp32")

    def rate(self, batches: Batches, epoch: int) -> float:
        """Images per second of an epoch."""
        self.wait()
        began = time.perf_counter()
        self.epoch(batches, epoch)
        self.wait()
        return batches.training_steps() * self.recipe.batch_size / (time.perf_counter() - began)

    def epoch(self, batches: Batches, epoch: int) -> None:
        train_epoch(self._step, batches, 0, epoch, "benchmark")

    def wait(self) -> None:
        """For the device."""
        if self.recipe.device == "cuda":
            torch.cuda.synchronize()


def measured(store: Path, recipe: TrainingParams, images: int, streamed: bool = False) -> dict[str, Any]:
    """Rates of a recipe, fed and on a batch that lies ready, in turn; medians of three."""
    trained = Trained(store, recipe)
    began = time.perf_counter()
    trained.rate(trained.batches(4 * recipe.batch_size, streamed), 0)
    warm_up = time.perf_counter() - began
    batches = trained.batches(images, streamed)
    ready_batch = fixed(batches, recipe.augmentation)
    pairs = [(trained.rate(batches, epoch), trained.rate(ready_batch, epoch)) for epoch in (1, 2, 3)]
    fed, ready = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "images_per_second": round(fed, 1),
        "on_a_ready_batch": round(ready, 1),
        "feeding": round(statistics.median(a / b for a, b in pairs), 3),
        "warm_up_seconds": round(warm_up, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if recipe.device == "cuda" else None,
    }


def profile(store: Path, recipe: TrainingParams) -> str:
    """A table of the kernels of a few training steps, slowest first."""
    trained = Trained(store, recipe)
    batches = trained.batches(6 * recipe.batch_size)
    trained.epoch(batches, 0)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if recipe.device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as seen:
        trained.epoch(batches, 1)
        trained.wait()
    key = "self_device_time_total" if recipe.device == "cuda" else "self_cpu_time_total"
    return seen.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=70)


def _some(split: Split, images: int) -> Split:
    """The first images of a split, over and over where it has too few."""
    rows = torch.arange(images).numpy() % len(split)
    return Split(split.pixels, split.index[rows], split.labels[rows])


def _fields(batches: Batches) -> dict[str, Any]:
    """Those that all batches have."""
    return {field.name: getattr(batches, field.name) for field in dataclasses.fields(Batches)}
