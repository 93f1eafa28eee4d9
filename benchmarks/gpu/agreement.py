"""Whether a device gives what the CPU gives: the same views, and the same losses and gradients from the same batches.

Everything is fp32 without TF32, with dropout off, since the two devices' generators draw different masks.
"""

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.models import MobileNetV2

from finetune import model as models
from finetune.batches import STD, Batches, DeviceBatches
from finetune.device import configure, move_to_device, upload
from finetune.optimizers import make_optimizer
from finetune.params import AugmentationParams, TrainingParams
from finetune.step import set_modes
from finetune.store import Split, open_store
from finetune.strategies import build_plan

LEVELS = 1.01  # of 255, by which a pixel of a view may differ: both round, one of them twice
FIRST_LOSS = 1e-5  # relative; the same weights
GRADIENTS = 1e-2  # relative, in the Euclidean norm over all; float32 itself is off by 1.5e-3 from float64 on CIFAR-10
DEPTHWISE = ("torch", "triton")  # on a CPU both are torch's
LATER_LOSSES = 2e-2  # relative; Adam divides by the gradient's size, so that rounding grows from step to step


def compare(store: Path, backbone: Path, device: torch.device, tiny: bool) -> dict[str, Any]:
    """Differences between `device` and the CPU on the first batches of a store's training split."""
    split = open_store(store).split("train")
    classes = len(open_store(store).classes)
    size, batch, steps = (32, 8, 2) if tiny else (224, 64, 5)
    views = {name: _views(split, device, name, size, batch) for name in ("random_resized_crop", "pad_crop", "none")}
    host = Batches(split, size, batch, torch.device("cpu"), torch.channels_last, 0.875)
    first = list(islice(host.training(AugmentationParams(), 0, 0), steps))
    expected = _train(backbone, classes, first, torch.device("cpu"), "torch")
    kernels = {name: _apart(_train(backbone, classes, first, device, name), expected) for name in DEPTHWISE}
    agree = max(views.values()) <= LEVELS and all(found["agree"] for found in kernels.values())
    print(f"views differ by at most {max(views.values()):.2f} of 255")
    for name, found in kernels.items():
        losses = ", ".join(f"{r:.1e}" for r in found["losses"])
        print(f"depthwise {name}: losses differ by {losses} step by step, gradients by {found['gradients']:.1e}")
    return {"levels": views, "cpu_losses": expected[0], "depthwise": kernels, "agree": agree}


def _apart(found: tuple[list[float], Tensor], expected: tuple[list[float], Tensor]) -> dict[str, Any]:
    losses = [abs(a - b) / abs(b) for a, b in zip(found[0], expected[0], strict=True)]
    gradients = float((found[1] - expected[1]).norm() / expected[1].norm())
    agree = losses[0] <= FIRST_LOSS and gradients <= GRADIENTS and max(losses) <= LATER_LOSSES
    return {"losses": losses, "gradients": gradients, "agree": agree}


def _views(split: Split, device: torch.device, augmentation: str, size: int, batch: int) -> float:
    """The largest difference of a pixel between the CPU's views and the device's, resident and streamed, in levels."""
    common = (split, size, batch)
    host = Batches(*common, torch.device("cpu"), torch.channels_last, 0.875)
    recipe = AugmentationParams.model_validate({"name": augmentation})
    expected = list(islice(host.training(recipe, 0, 0), 2))
    worst = 0.0
    for resident in (upload(split, device), None):
        batches = DeviceBatches(*common, device, torch.channels_last, 0.875, resident, True)
        for (here, labels), (there, same) in zip(expected, batches.training(recipe, 0, 0), strict=False):
            assert torch.equal(labels, same.cpu())
            worst = max(worst, float(((here - there.cpu()).abs() * torch.tensor(STD).view(1, 3, 1, 1) * 255).max()))
    return worst


def _train(
    backbone: Path, classes: int, batches: list[tuple[Tensor, Tensor]], device: torch.device, kernels: str
) -> tuple[list[float], Tensor]:
    """The loss of each step, and the first batch's gradients in evaluation mode as one vector, on the CPU."""
    recipe = TrainingParams.model_validate({"device": device.type, "precision": "fp32", "depthwise": kernels})
    configure(recipe)
    model = _network(backbone, classes)
    move_to_device(model, recipe)
    phase = build_plan(model, "same_lr", {}).phases[0]
    optimizer = make_optimizer(model, phase, recipe)
    model.eval()  # with batch statistics float32 gradients are off by 3e-2 and more on every device
    cross_entropy(model(batches[0][0].to(device)), batches[0][1].to(device)).backward()
    gradients = torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])
    set_modes(model, phase)
    losses: list[float] = []
    for images, labels in batches:
        loss = cross_entropy(model(images.to(device)), labels.to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses, gradients


def _network(backbone: Path, classes: int) -> MobileNetV2:
    model = models.build(classes, 0)
    models.load_backbone(model, backbone)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model
