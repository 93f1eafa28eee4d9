"""Images per second of the project's own training epoch, setting by setting, and what feeding it costs.

Each setting trains a stretch of a real store twice: as `finetune train` does, and on one batch that lies ready on the
device. The quotient of the two rates says what the data cost.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models import MobileNetV2

from finetune import model as models
from finetune.batches import Batches
from finetune.device import Feed, configure, move_to_device
from finetune.optimizers import make_optimizer
from finetune.params import AugmentationParams, TrainingParams
from finetune.store import Split, open_store
from finetune.strategies import build_plan
from finetune.training import Step, train_epoch

SETTINGS = (  # precision/compile/memory format/batch size/depthwise kernels
    "bf16/reduce-overhead/channels_last/256/torch",
    "bf16/reduce-overhead/channels_last/256/triton",
    "bf16/none/channels_last/256/torch",
    "bf16/none/channels_last/256/triton",
    "bf16/reduce-overhead/channels_last/64/triton",
    "bf16/reduce-overhead/channels_last/64/torch",
    "bf16/none/channels_last/64/torch",
    "bf16/none/contiguous/256/torch",
    "tf32/none/channels_last/256/torch",
    "fp32/none/channels_last/256/torch",
    "bf16/reduce-overhead/channels_last/1024/triton",
    "bf16/default/channels_last/256/triton",
    "tf32/reduce-overhead/channels_last/256/triton",
    "bf16/reduce-overhead/contiguous/256/torch",
    "bf16/reduce-overhead/channels_last/512/triton",
    "bf16/reduce-overhead/channels_last/128/triton",
    "bf16/max-autotune/channels_last/256/triton",
)
TINY_SETTINGS = ("fp32/none/channels_last/8/torch", "bf16/none/contiguous/8/torch")


@dataclasses.dataclass(frozen=True)
class Fixed(Batches):
    """One batch, over and over: training without feeding."""

    ready: tuple[Tensor, Tensor]

    def training(
        self, augmentation: AugmentationParams, seed: int, epoch: int, *, first: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(first, self.training_steps()):
            yield self.ready


def measure(
    store: Path, device: str, tiny: bool, words: list[str], minutes: float, keep: Callable[[list[dict[str, Any]]], None]
) -> None:
    """Give `keep` the rows so far after each setting; a setting that fails has its error in place of figures."""
    rows: list[dict[str, Any]] = []
    keep(rows)
    end = time.monotonic() + 60 * minutes
    for setting in TINY_SETTINGS if tiny else SETTINGS:
        if (words and not any(word in setting for word in words)) or time.monotonic() > end:
            continue
        try:
            row = {"setting": setting} | _rates(store, recipe_of(setting, device, tiny), 64 if tiny else 16384)
        except Exception as error:  # one setting that is out of memory must not lose the others
            row = {"setting": setting, "error": f"{type(error).__name__}: {error}"[:300]}
        torch.compiler.reset()
        if device == "cuda":
            torch.cuda.empty_cache()
        rows.append(row)
        keep(rows)
        print(*(f"{key} {value}" for key, value in row.items()), sep=", ", flush=True)


def recipe_of(setting: str, device: str, tiny: bool) -> TrainingParams:
    """The recipe of a setting, written as in SETTINGS."""
    precision, compiled, memory_format, batch_size, depthwise = setting.split("/")
    return TrainingParams.model_validate(
        {
            "image_size": 32 if tiny else 224,
            "epochs": 1,
            "batch_size": int(batch_size),
            "precision": precision,
            "compile": compiled,
            "memory_format": memory_format,
            "depthwise": depthwise,
            "device": device,
        }
    )


def _rates(store: Path, recipe: TrainingParams, images: int) -> dict[str, Any]:
    model, feed, split = _made(store, recipe)
    phase = build_plan(model, "same_lr", {}).phases[0]
    optimizer = make_optimizer(model, phase, recipe)

    def rate(batches: Batches, epoch: int) -> float:
        _wait(recipe)
        began = time.perf_counter()
        train_epoch(Step(model, phase, optimizer, recipe), batches, 0, epoch, "sweep")
        _wait(recipe)
        return batches.training_steps() * recipe.batch_size / (time.perf_counter() - began)

    began = time.perf_counter()
    rate(feed.batches(_some(split, 4 * recipe.batch_size)), 0)
    warm_up = time.perf_counter() - began
    batches = feed.batches(_some(split, images // recipe.batch_size * recipe.batch_size))
    common = {field.name: getattr(batches, field.name) for field in dataclasses.fields(Batches)}
    fixed = Fixed(**common, ready=next(batches.training(recipe.augmentation, 0, 0)))
    pairs = [(rate(batches, epoch), rate(fixed, epoch)) for epoch in (1, 2, 3)]
    fed, ready = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {
        "images_per_second": round(fed, 1),
        "on_a_ready_batch": round(ready, 1),
        "feeding": round(statistics.median(a / b for a, b in pairs), 3),
        "warm_up_seconds": round(warm_up, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if recipe.device == "cuda" else None,
    }


def profile(store: Path, device: str, tiny: bool, setting: str) -> str:
    """A table of the kernels of a few training steps, slowest first."""
    recipe = recipe_of(TINY_SETTINGS[0] if tiny else setting, device, tiny)
    model, feed, split = _made(store, recipe)
    phase = build_plan(model, "same_lr", {}).phases[0]
    optimizer = make_optimizer(model, phase, recipe)
    batches = feed.batches(_some(split, 6 * recipe.batch_size))
    train_epoch(Step(model, phase, optimizer, recipe), batches, 0, 0, "profile")
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as seen:
        train_epoch(Step(model, phase, optimizer, recipe), batches, 0, 1, "profile")
        _wait(recipe)
    key = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    return seen.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=70)


def _made(store: Path, recipe: TrainingParams) -> tuple[MobileNetV2, Feed, Split]:
    if recipe.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    configure(recipe)
    opened = open_store(store)
    model = models.build(len(opened.classes), 0)
    move_to_device(model, recipe)
    return model, Feed(recipe), opened.split("train")


def _some(split: Split, images: int) -> Split:
    """The first images of a split, over and over where it has too few."""
    rows = torch.arange(max(images, 1)).numpy() % len(split)
    return Split(split.pixels, split.index[rows], split.labels[rows])


def _wait(recipe: TrainingParams) -> None:
    if recipe.device == "cuda":
        torch.cuda.synchronize()
