"""Accumulated gradients: several batches make the one step of a large one, with all that is added to their losses."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import MobileNetV2

from finetune.model import BLOCKS
from finetune.optimizers import make_optimizer
from finetune.recipe import OptimizerParams, ScheduleParams
from finetune.step import Step
from finetune.strategies.plan import Group, Phase, tensors_of
from finetune.training import Listener, Row, train_epoch
from trained_plan import images, network, recipe

HEAD = "classifier.1.weight"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def everything(model: MobileNetV2) -> Phase:
    """All at one rate, without batch statistics, which are those of the batches."""
    return Phase((Group("all", tensors_of(model, BLOCKS), batchnorm="affine_only"),))


def pull(model: MobileNetV2) -> Tensor:
    """A penalty that is the same whatever images are seen; its gradient at a weight w of the head is 20 w."""
    return 10 * model.classifier[1].weight.square().sum()


def head_after_a_step(
    inputs: Path, batch_size: int, accumulation: int, penalty: Callable[[MobileNetV2], Tensor] | None = None
) -> tuple[Tensor, Row]:
    """How the head's weight moves in an epoch of 12 images, by plain gradient descent; and the epoch's numbers."""
    model = network(inputs)
    model.classifier[0].p = 0.0
    before = model.state_dict()[HEAD].clone()
    plain = OptimizerParams(name="sgd", momentum=0.0, nesterov=False)
    own = recipe(batch_size=batch_size, accumulation=accumulation, optimizer=plain, lr=0.1, weight_decay=0.0)
    phase, train = everything(model), replace(images(inputs), batch_size=batch_size)
    optimizer = make_optimizer(model, phase, own)
    added = (lambda images: penalty(model)) if penalty else None
    row = train_epoch(Step(model, phase, optimizer, own, penalty=added), train, 0, 0, "toy")
    return model.state_dict()[HEAD] - before, row


@pytest.mark.parametrize(("batch_size", "accumulation"), [(6, 2), (8, 2), (5, 3)])
@pytest.mark.parametrize("penalty", [None, pull], ids=["alone", "penalised"])
def test_gradients_of_several_batches_make_the_step_of_a_large_one(
    toy_inputs: Path, batch_size: int, accumulation: int, penalty: Callable[[MobileNetV2], Tensor] | None
) -> None:
    # 12 images in batches of 6 and 6, of 8 and 4, of 5, 5 and 2: an image counts as much as any, the penalty once.
    large, of_large = head_after_a_step(toy_inputs, 12, 1, penalty)
    small, of_small = head_after_a_step(toy_inputs, batch_size, accumulation, penalty)
    assert large.abs().max() > 0.1  # far above what the comparison lets pass
    assert torch.allclose(small, large, rtol=1e-3, atol=1e-6)
    assert of_small["train/loss"] == pytest.approx(of_large["train/loss"], rel=1e-5)


def test_a_penalty_moves_the_head_by_its_gradient_once(toy_inputs: Path) -> None:
    weight = network(toy_inputs).state_dict()[HEAD]
    moves = [head_after_a_step(toy_inputs, 5, 3, penalty)[0] for penalty in (pull, None)]
    assert torch.allclose(moves[0] - moves[1], -0.1 * 20 * weight, rtol=1e-3, atol=1e-6)


def test_a_schedule_counts_the_optimizers_steps_not_the_batches(toy_inputs: Path) -> None:
    # 12 images in batches of 5, 5 and 2, two a step: 2 steps in each of 2 epochs, the second of the last batch alone.
    model = network(toy_inputs)
    own = recipe(batch_size=5, accumulation=2, lr=0.1, schedule=ScheduleParams(name="cosine", warmup_epochs=1))
    phase, rates = everything(model), list[tuple[Any, ...]]()
    optimizer = make_optimizer(model, phase, own)
    listener = Listener(step=lambda *at: rates.append((*at, optimizer.param_groups[0]["lr"])))
    train, step = replace(images(toy_inputs), batch_size=5), Step(model, phase, optimizer, own)
    for epoch in range(2):
        train_epoch(step, train, 0, epoch, "toy", (listener,))
    assert [at[:3] for at in rates] == [(1, 1, 2), (1, 2, 2), (2, 1, 2), (2, 2, 2)]
    # (1 + cos(k 45 degrees)) / 2 at step k; the warm-up is 2 steps long, so the first is at a half.
    assert [at[3] for at in rates] == pytest.approx([0.1 * m for m in (0.5, 0.8535534, 0.5, 0.1464466)])
