"""A plan trained on a few images of the toy data set, and what moved."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models import MobileNetV2

from finetune.batches import Batches
from finetune.model import build, load_backbone
from finetune.params import AugmentationParams, TrainingParams
from finetune.store import Split, open_store
from finetune.strategies import build_plan
from finetune.strategies.adjustments import adjusted
from finetune.strategies.plan import batchnorm_layers
from finetune.study import Layout
from finetune.training import Progress, fit

NONE = AugmentationParams(name="none")


def recipe(**changes: Any) -> TrainingParams:
    """Two epochs of two steps."""
    common = {"image_size": 32, "epochs": 2, "batch_size": 6, "lr": 1e-2, "augmentation": NONE, "device": "cpu"}
    return TrainingParams(**{"crop_pct": 1.0, "threads": 1, **common, **changes})


def images(inputs: Path, split: str = "train") -> Batches:
    """12 training images, or 6 of another split, in batches of 6."""
    whole = open_store(Layout(inputs).store("toy")).split(split)
    count = 12 if split == "train" else 6
    part = Split(whole.pixels, whole.index[:count], whole.labels[:count])
    return Batches(part, 32, 6, torch.device("cpu"), torch.channels_last, 1.0)


@torch.no_grad()
def network(inputs: Path) -> MobileNetV2:
    """The backbone's random weights, with the running statistics that they have on the images."""
    model = build(3, seed=3)
    load_backbone(model, Layout(inputs).backbone)
    model.to(memory_format=torch.channels_last).train()
    for layer in batchnorm_layers(model).values():
        layer.momentum = 1.0  # type: ignore[assignment]
    model.features(next(iter(images(inputs).evaluation()))[0])
    for layer in batchnorm_layers(model).values():
        layer.momentum = 0.1  # type: ignore[assignment]
    return model


def trained(inputs: Path, work: Path, plan: str, settings: TrainingParams, **options: Any) -> tuple[Any, Progress]:
    """The network after a run, as it was in the last epoch, and what the run gave."""
    torch.set_num_threads(1)
    model = network(inputs)
    work.mkdir(exist_ok=True)
    worked_out = adjusted(model, build_plan(model, plan, options), settings)
    common: dict[str, Any] = {"name": plan, "work": work, "fingerprint": "f"}
    progress = fit(model, worked_out, settings, images(inputs), images(inputs, "val"), 1, **common)
    return model, progress


def moved(inputs: Path, model: MobileNetV2) -> set[str]:
    """The names of parameters and buffers that are not what a run starts from."""
    start: dict[str, Tensor] = network(inputs).state_dict()
    return {name for name, tensor in model.state_dict().items() if not torch.equal(start[name], tensor)}
