"""A toy network under a plan that adds a penalty to the loss: one forward pass, or a training that may be stopped."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models import MobileNetV2

from finetune.batches import Batches
from finetune.checkpoint import Pace
from finetune.device import autocast
from finetune.interruption import Interrupted
from finetune.model import build
from finetune.recipe import AugmentationParams, TrainingParams
from finetune.step import set_modes
from finetune.store import open_store
from finetune.strategies import build_plan
from finetune.strategies.plan import Penalty, Phase, Plan
from finetune.study import Layout
from finetune.training import Listener, Progress, fit

RECIPE = TrainingParams(
    image_size=32,
    epochs=2,
    batch_size=10,
    lr=1e-3,
    crop_pct=1.0,
    augmentation=AugmentationParams(name="pad_crop"),
    threads=1,
    device="cpu",
)


def network() -> MobileNetV2:
    """Three classes, random weights, and running statistics that are those of no batch."""
    return build(3, seed=3).to(memory_format=torch.channels_last)


def images(count: int, seed: int = 0) -> Tensor:
    """N x 3 x 64 x 64, channels_last."""
    drawn = torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    return drawn.contiguous(memory_format=torch.channels_last)


def with_running_statistics(plan: Plan) -> Plan:
    """The plan with all BatchNorm layers `affine_only`."""
    phases = [replace(p, groups=tuple(replace(g, batchnorm="affine_only") for g in p.groups)) for p in plan.phases]
    return replace(plan, phases=tuple(phases))


@contextmanager
def entered(model: MobileNetV2, plan: Plan) -> Iterator[tuple[Phase, Penalty]]:
    """The plan's one phase and its penalty, as `fit` enters it, with the network in the phase's modes."""
    (phase,) = plan.phases
    assert phase.penalty is not None
    with phase.penalty(model) as penalty:
        set_modes(model, phase)
        yield phase, penalty


def value_of(penalty: Penalty, model: MobileNetV2, batch: Tensor, precision: str = "fp32") -> Tensor:
    """The penalty of a batch that the network has just seen, as a training step has it."""
    with autocast(batch.device, precision):
        model(batch)
    return penalty(batch)


def jolt(model: MobileNetV2, size: float = 0.01) -> dict[str, Tensor]:
    """Move every parameter by normal noise of standard deviation `size`; returns by how much each."""
    generator = torch.Generator().manual_seed(1)
    moves = {name: size * torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(moves[name])
    return moves


def train(
    inputs: Path,
    work: Path,
    name: str,
    options: dict[str, Any] | None = None,
    *,
    stop: tuple[int, int] | None = None,
    **changes: Any,
) -> Progress:
    """Train the toy of 27 images in steps of 10, 10 and 7, from the checkpoint in `work` if there is one.

    Args:
        stop: the epoch and step, from 1, after which Interrupted is raised.
        changes: of the recipe.
    """
    work.mkdir(exist_ok=True)
    recipe = RECIPE.model_copy(update=changes)
    store = open_store(Layout(inputs).store("toy"))
    place = (recipe.image_size, recipe.batch_size, torch.device("cpu"), torch.channels_last, 1.0)

    def stopped(*at: int) -> None:
        if at[:2] == stop:
            raise Interrupted(15)

    model = network()
    return fit(
        model,
        build_plan(model, name, options or {}),
        recipe,
        Batches(store.split("train"), *place),
        Batches(store.split("val"), *place),
        3,
        name=f"toy/{name}/3",
        work=work,
        fingerprint="f",
        listeners=(Listener(step=stopped),),
        pace=Pace(seconds=1000),
    )


def same(first: Progress, second: Progress) -> bool:
    """Rows and kept weights, bit for bit."""
    one, two = first.kept_state, second.kept_state
    return first.rows == second.rows and all(torch.equal(one[name], two[name]) for name in one | two)
