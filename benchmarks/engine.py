"""One way of training MobileNetV2 on real images, measured in a process of its own: images per second.

Ways, all at batch 32 with random resized crop and flip, Adam, on 200 classes:

- `ours`: this project's epoch over a prepared store, then steps on batches from there in turn with steps on one that
  lies ready, which says what feeding costs; by its own kernels where there is a C++ compiler, as `finetune calibrate`
  sets them; `ours_bf16` the same under bf16 autocast, for CPUs that have it; `ours_torch` by PyTorch's kernels, in bf16
  where the CPU has it
- `plain`: torch's defaults, ImageFolder and a DataLoader with two workers
- `timm_default`, `timm_best`, `timm_same_allocator`: timm's create_loader, model, optimizer and step as its train.py
  takes them; best: --channels-last --amp --amp-dtype bfloat16, or --channels-last alone on a CPU without bf16; same
  allocator: that, and the process set up as ours is: glibc told to keep memory, OpenMP's threads to sleep as they wait

Run: `python -m benchmarks.engine WAY --size 224 --images FOLDER --store STORE`, which prints JSON.
"""

import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import mobilenet_v2
from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, ToTensor

from benchmarks.command import ONE_OR_MORE, Command
from finetune import kernel_library
from finetune import model as models
from finetune.allocator import keep_freed_memory
from finetune.batches import MEAN, STD, Batches
from finetune.device import Feed, configure, move_to_device
from finetune.optimizers import make_optimizer
from finetune.params import AugmentationParams, TrainingParams
from finetune.processor import cpu_has_bf16
from finetune.step import Step as TrainingStep
from finetune.store import open_store
from finetune.strategies import build_plan
from finetune.training import train_epoch

BATCH, CLASSES = 32, 200  # images, classes
Step = Callable[[Tensor, Tensor], None]


def timed(batches: Iterable[tuple[Tensor, Tensor]], step: Step, steps: int, warm_up: int) -> float:
    """Images per second of `steps` steps, after `warm_up` ones."""
    began = 0.0
    for number, (images, labels) in enumerate(batches):
        if number == warm_up:
            began = time.perf_counter()
        step(images, labels)
        if number == warm_up + steps - 1:
            return steps * BATCH / (time.perf_counter() - began)
    raise click.UsageError(f"too few images: {warm_up + steps} batches of {BATCH} are needed")


@dataclass(frozen=True)
class InTurn(Batches):
    """Every batch of `fed`, and after each the one that lies ready; notes how long each took to be had and trained."""

    fed: Batches
    ready: tuple[Tensor, Tensor]
    seconds: list[tuple[float, float]]  # of one from `fed` and of the ready one; the last pair's end is not seen

    def training_steps(self) -> int:
        return 2 * self.fed.training_steps()

    def training(
        self, augmentation: AugmentationParams, seed: int, epoch: int, *, first: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        began = time.perf_counter()
        for batch in self.fed.training(augmentation, seed, epoch, first=first):
            yield batch
            trained = time.perf_counter()
            yield self.ready
            ended = time.perf_counter()
            self.seconds.append((trained - began, ended - trained))
            began = ended


def ours(size: int, steps: int, warm_up: int, store: Path, precision: str, kernels: str) -> tuple[float, float]:
    """Images per second; and the rate on batches from the store as a fraction of that on one that lies ready."""
    settings = {"image_size": size, "batch_size": BATCH, "epochs": 1, "device": "cpu", "precision": precision}
    settings |= {"cpu_kernels": kernels}
    # As many threads as PyTorch takes by itself, as in the other ways.
    recipe = TrainingParams.model_validate(settings | {"threads": torch.get_num_threads()})
    configure(recipe)
    whole = open_store(store).split("train")
    if len(whole) <= BATCH:
        raise click.UsageError(f"too few images: two batches of {BATCH} are needed")
    model = models.build(CLASSES, 0)
    move_to_device(model, recipe)
    phase = build_plan(model, "same_lr", {}).phases[0]
    step = TrainingStep(model, phase, make_optimizer(model, phase, recipe), recipe)

    def fed(batches: int) -> Batches:
        return Feed(recipe).batches(
            type(whole)(whole.pixels, whole.index[: batches * BATCH], whole.labels[: batches * BATCH])
        )

    train_epoch(step, fed(warm_up), 0, 0, "warm-up")
    measured, paired = fed(steps), fed(steps + 1)
    began = time.perf_counter()
    train_epoch(step, measured, 0, 0, "bench")
    rate = len(measured.split) / (time.perf_counter() - began)
    ready = next(paired.training(recipe.augmentation, 0, 0))
    in_turn = InTurn(**vars(paired), fed=paired, ready=ready, seconds=[])
    train_epoch(step, in_turn, 0, 1, "feeding")
    return rate, fed_at(in_turn.seconds)


def fed_at(seconds: list[tuple[float, float]]) -> float:
    """The rate on batches from the store as a fraction of that on a ready one: the median of the pairs, as a machine's
    rate drifts."""
    return statistics.median(ready / fed for fed, ready in seconds)


def plain(size: int, steps: int, warm_up: int, folder: Path) -> float:
    views = Compose([RandomResizedCrop(size), RandomHorizontalFlip(), ToTensor(), Normalize(MEAN, STD)])
    loader = DataLoader(ImageFolder(str(folder), views), BATCH, shuffle=True, num_workers=2, drop_last=True)
    model = mobilenet_v2(num_classes=CLASSES).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-4)

    def step(images: Tensor, labels: Tensor) -> None:
        loss = cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return timed(loader, step, steps, warm_up)


def with_timm(size: int, steps: int, warm_up: int, folder: Path, best: bool) -> float:
    from timm import create_model
    from timm.data import create_dataset, create_loader
    from timm.optim import create_optimizer_v2

    torch.manual_seed(42)
    model = create_model("mobilenetv2_100", pretrained=False, num_classes=CLASSES).train()
    if best:
        model.to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, "adam", lr=1e-3, weight_decay=1e-4)
    loader = create_loader(
        create_dataset("", root=str(folder), split="train"),
        input_size=(3, size, size),
        batch_size=BATCH,
        is_training=True,
        num_workers=4,  # train.py's default
        color_jitter=0.0,
        interpolation="bilinear",
        device=torch.device("cpu"),
    )

    def step(images: Tensor, labels: Tensor) -> None:
        if best:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16) if best and cpu_has_bf16() else nullcontext():
            loss = cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return timed(loader, step, steps, warm_up)


WAYS = (
    "ours",
    "ours_bf16",
    "ours_torch",
    "plain",
    "timm_default",
    "timm_best",
    "timm_same_allocator",
)


def timms_best_flags() -> str:
    """Of its train.py on this CPU."""
    return "--channels-last --amp --amp-dtype bfloat16" if cpu_has_bf16() else "--channels-last"


def sensible() -> tuple[str, ...]:
    """The ways worth measuring here: bf16 only where the CPU has instructions for it, PyTorch's kernels where there are
    ours beside them, timm where it is installed."""
    ways = WAYS if cpu_has_bf16() else tuple(way for way in WAYS if "bf16" not in way)
    ways = ways if kernel_library.available() else tuple(way for way in ways if way != "ours_torch")
    return ways if importlib.util.find_spec("timm") else tuple(way for way in ways if not way.startswith("timm"))


@click.command(cls=Command)
@click.argument("way", type=click.Choice(WAYS))
@click.option("--size", default=224, type=ONE_OR_MORE, show_default=True, help="Pixels.")
@click.option("--steps", default=8, type=ONE_OR_MORE, show_default=True, help="That are timed, of 32 images.")
@click.option("--warm-up", default=4, type=ONE_OR_MORE, show_default=True, help="Steps before them.")
@click.option("--images", "folder", required=True, type=click.Path(exists=True, path_type=Path), help="Class folders.")
@click.option("--store", required=True, type=click.Path(exists=True, path_type=Path), help="The same, prepared.")
def main(way: str, size: int, steps: int, warm_up: int, folder: Path, store: Path) -> None:
    """Measure one WAY and print it as JSON."""
    found: dict[str, Any] = {"way": way, "size": size}
    if way == "plain":
        rate = plain(size, steps, warm_up, folder)
    elif way.startswith("timm"):
        if way == "timm_same_allocator":
            keep_freed_memory()
        rate = with_timm(size, steps, warm_up, folder, best=way != "timm_default")
    else:
        low = way == "ours_bf16" or (way == "ours_torch" and cpu_has_bf16())
        kernels = "native" if way != "ours_torch" and kernel_library.available() else "torch"
        rate, feed_ratio = ours(size, steps, warm_up, store, "bf16" if low else "fp32", kernels)
        found["feed_ratio"] = round(feed_ratio, 4)
    print(json.dumps(found | {"images_per_second": round(rate, 2)}))


if __name__ == "__main__":
    main()
