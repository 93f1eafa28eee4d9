"""No step of a training on a GPU waits for it: on a GPU without values, which a machine without one can have.

PyTorch's fake tensors refuse what would have to read a value, and every copy from the host is seen. The backward pass
alone needs a GPU: `python -m benchmarks.gpu check` trains an epoch where PyTorch forbids to wait.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from finetune import batches, resampling
from finetune.averaging import Averaged
from finetune.batches import DeviceBatches
from finetune.mixing import mixed
from finetune.optimizers import make_optimizer
from finetune.params import AugmentationParams, TrainingParams
from finetune.step import Step, set_modes
from finetune.strategies import build_model, build_plan
from operations import Operations
from small_splits import NONE, PAD_CROP, RESIZED_CROP, oblong, split_of

GPU = torch.device("cuda", 0)


class Copies(Operations):
    """Fails where a copy from the host would wait: one that is not told not to, or not of pinned memory."""

    def note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu":
            device, told = torch.device(kwargs.get("device") or "cpu"), kwargs.get("non_blocking", False)
        elif func is torch.ops.aten.copy_.default and args[1].device.type == "cpu":
            device, told = args[0].device, args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        else:
            return
        if device.type == "cuda":
            self.seen.append(str(func))
            whence = args[0] if "_to_copy" in str(func) else args[1]
            assert told and getattr(whence, "pinned", False), f"{func} waits for the GPU"


def pinned(tensor: Tensor) -> Tensor:
    tensor.pinned = True  # type: ignore[attr-defined]
    return tensor


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU without values; nothing that is kept for one outlives it, nor stems from another."""
    kept = (batches.statistics, resampling._counted)
    monkeypatch.setattr(Tensor, "pin_memory", pinned)
    for function in kept:
        function.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield
    for function in kept:
        function.cache_clear()


def batches_of(way: str, layout: torch.memory_format = torch.channels_last) -> DeviceBatches:
    split = split_of(oblong(40))
    pixels = torch.empty(len(split.pixels), dtype=torch.uint8, device=GPU) if way == "resident" else None
    return DeviceBatches(split, 32, 8, GPU, layout, 0.875, pixels, False)


@pytest.mark.parametrize("way", ["resident", "streamed"])
@pytest.mark.parametrize("augmentation", [RESIZED_CROP, PAD_CROP, NONE])
def test_no_batch_waits_for_the_gpu(augmentation: AugmentationParams, way: str) -> None:
    epoch = batches_of(way).training(augmentation, 0, 0)
    next(epoch)  # mean and standard deviation are sent, once
    with Copies() as copies:
        rest = list(epoch)
    assert len(rest) == 4
    assert all(images.device == labels.device == GPU for images, labels in rest)
    assert len(copies.seen) == (0 if way == "resident" else 3 * 4)  # pixels, and two tables of views


@pytest.mark.parametrize("recipe", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_mixing_does_not_wait_for_the_gpu(recipe: dict[str, float]) -> None:
    images, labels = torch.empty(8, 3, 32, 32, device=GPU), torch.empty(8, dtype=torch.int64, device=GPU)
    with Copies() as copies:
        for step in range(4):
            mixed(images, labels, TrainingParams.model_validate(recipe), 0, 0, step)
    assert len(copies.seen) == 4, "a permutation a step"


@pytest.mark.parametrize("strategy", ["same_lr", "l2_sp", "delta", "spottune", "lite_residual"])
def test_no_step_waits_for_the_gpu(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = TrainingParams.model_validate(
        {
            "batch_size": 8,
            "image_size": 32,
            "device": "cuda",
            "mixup": 0.4,
            "cutmix": 1.0,
            "label_smoothing": 0.1,
        }
    )
    with torch.device(GPU):
        model = build_model(5, 0, strategy, {})
    phase = build_plan(model, strategy, {}).phases[0]
    moving = make_optimizer(model, phase, recipe)
    set_modes(model, phase)

    def backward(loss: Tensor) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None

    monkeypatch.setattr(Tensor, "backward", backward)
    with phase.penalty(model) if phase.penalty else nullcontext() as penalty:
        step = Step(model, phase, moving, recipe, penalty=penalty, averaged=Averaged(model, 0.9))
        epoch = batches_of("resident").training(recipe.augmentation, 0, 0)
        step((next(epoch),), 0, 0, 0, 5)
        with Copies() as copies:
            for number, batch in enumerate(islice(epoch, 2), 1):
                step((batch,), 0, 0, number, 5)
    assert len(copies.seen) == 2, "a permutation a step"


@pytest.mark.parametrize(
    "waiting",
    [
        lambda: torch.tensor([1.0], device=GPU),
        lambda: torch.from_numpy(np.arange(3)).to(GPU),
        lambda: torch.from_numpy(np.arange(3)).to(GPU, non_blocking=True),  # not pinned
        lambda: torch.empty(3, device=GPU).copy_(torch.from_numpy(np.arange(3))),
    ],
)
def test_what_waits_would_be_seen(waiting: Callable[[], Tensor]) -> None:
    with Copies(), pytest.raises(AssertionError, match="waits for the GPU"):
        waiting()


def test_what_reads_a_value_would_be_seen() -> None:
    values = torch.empty(3, device=GPU)
    for read in (lambda: float(values[0]), lambda: values[values > 0]):
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            read()
