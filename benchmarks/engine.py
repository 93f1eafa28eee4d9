"""One way of training MobileNetV2 on real images, measured in a process of its own: images per second.

Ways, all at batch 32 with random resized crop and flip, Adam, on 200 classes:

- `ours`: this project's epoch over a prepared store; `ours_bf16` the same under bf16 autocast, for CPUs that have it
- `ours_resident`, `ours_bf16_resident`: the same step on one fixed batch that lies ready, which says what feeding costs
- `plain`: torch's defaults, ImageFolder and a DataLoader with two workers
- `timm_default`, `timm_best`, `timm_same_allocator`: timm's create_loader, model, optimizer and step as its train.py
  takes them; best: --channels-last --amp --amp-dtype bfloat16, or --channels-last alone on a CPU without bf16; same
  allocator: that, and the process set up as ours is: glibc told to keep memory, OpenMP's threads to sleep as they wait

Run: `python -m benchmarks.engine WAY --size 224 --images FOLDER --store STORE`, which prints JSON.
"""

import importlib.util
import json
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path

import click
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import mobilenet_v2
from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, RandomResizedCrop, ToTensor

from benchmarks.gpu.rates import fixed
from finetune import model as models
from finetune.allocator import keep_freed_memory
from finetune.batches import MEAN, STD, Batches
from finetune.device import configure, move_to_device
from finetune.optimizers import make_optimizer
from finetune.params import TrainingParams
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


def ours(size: int, steps: int, warm_up: int, store: Path, precision: str, resident: bool) -> float:
    settings = {"image_size": size, "batch_size": BATCH, "epochs": 1, "device": "cpu", "precision": precision}
    # As many threads as PyTorch takes by itself, as in the other ways.
    recipe = TrainingParams.model_validate(settings | {"threads": torch.get_num_threads()})
    configure(recipe)
    whole = open_store(store).split("train")
    split = type(whole)(whole.pixels, whole.index[: steps * BATCH], whole.labels[: steps * BATCH])
    model = models.build(CLASSES, 0)
    move_to_device(model, recipe)
    phase = build_plan(model, "same_lr", {}).phases[0]
    optimizer = make_optimizer(model, phase, recipe)
    feed = Batches(split, size, BATCH, torch.device("cpu"), torch.channels_last, 0.875)
    feed = fixed(feed, recipe.augmentation) if resident else feed
    few = Batches(
        type(whole)(whole.pixels, whole.index[: warm_up * BATCH], whole.labels[: warm_up * BATCH]),
        size, BATCH, torch.device("cpu"), torch.channels_last, 0.875,
    )  # fmt: skip
    train_epoch(TrainingStep(model, phase, optimizer, recipe), few, 0, 0, "warm-up")
    began = time.perf_counter()
    train_epoch(TrainingStep(model, phase, optimizer, recipe), feed, 0, 0, "bench")
    return len(split) / (time.perf_counter() - began)


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
    "ours_resident",
    "ours_bf16",
    "ours_bf16_resident",
    "plain",
    "timm_default",
    "timm_best",
    "timm_same_allocator",
)


def timms_best_flags() -> str:
    """Of its train.py on this CPU."""
    return "--channels-last --amp --amp-dtype bfloat16" if cpu_has_bf16() else "--channels-last"


def sensible() -> tuple[str, ...]:
    """The ways worth measuring here: bf16 only where the CPU has instructions for it, timm where it is installed."""
    ways = WAYS if cpu_has_bf16() else tuple(way for way in WAYS if "bf16" not in way)
    return ways if importlib.util.find_spec("timm") else tuple(way for way in ways if not way.startswith("timm"))


@click.command()
@click.argument("way", type=click.Choice(WAYS))
@click.option("--size", default=224, show_default=True, help="Pixels.")
@click.option("--steps", default=8, show_default=True, help="That are timed, of 32 images.")
@click.option("--warm-up", default=4, type=click.IntRange(min=1), show_default=True, help="Steps before them.")
@click.option("--images", "folder", required=True, type=click.Path(exists=True, path_type=Path), help="Class folders.")
@click.option("--store", required=True, type=click.Path(exists=True, path_type=Path), help="The same, prepared.")
def main(way: str, size: int, steps: int, warm_up: int, folder: Path, store: Path) -> None:
    """Measure one WAY and print it as JSON."""
    if way == "plain":
        rate = plain(size, steps, warm_up, folder)
    elif way.startswith("timm"):
        if way == "timm_same_allocator":
            keep_freed_memory()
        rate = with_timm(size, steps, warm_up, folder, best=way != "timm_default")
    else:
        rate = ours(size, steps, warm_up, store, "bf16" if "bf16" in way else "fp32", way.endswith("_resident"))
    print(json.dumps({"way": way, "size": size, "images_per_second": round(rate, 2)}))


if __name__ == "__main__":
    main()
