"""What `training.lean_backward` costs in time: seconds a step without and with it, in turn, and their ratio.

python -m benchmarks.lean_backward --image-size 96 --batch-size 64 --precision fp32
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import click
import torch
from torch.nn.functional import cross_entropy

from benchmarks.command import ONE_OR_MORE, Command
from finetune.accounting import activation_bytes
from finetune.device import autocast, configure, memory_format, move_to_device
from finetune.optimizers import make_optimizer
from finetune.recipe import TrainingParams
from finetune.step import set_modes
from finetune.strategies import build_model, build_plan

CLASSES = 10
PLANS = {
    "last_layer": {},
    "last_blocks": {"blocks": 3},
    "bias_only": {},
    "lite_residual": {},
    "norm_only": {},
    "same_lr": {},
}


def step_of(plan: str, recipe: TrainingParams) -> tuple[Callable[[], None], int]:
    """A training step of `plan` on one batch of noise, and the bytes that it keeps for the backward pass."""
    build = partial(build_model, CLASSES, 0, plan, PLANS[plan])
    model = build()
    phase = build_plan(model, plan, PLANS[plan]).phases[-1]
    move_to_device(model, recipe)
    optimizer = make_optimizer(model, phase, recipe)
    set_modes(model, phase)
    images = torch.rand(recipe.batch_size, 3, recipe.image_size, recipe.image_size)
    images = images.contiguous(memory_format=memory_format(recipe))
    labels = torch.arange(recipe.batch_size) % CLASSES

    def step() -> None:
        optimizer.zero_grad()
        with autocast(images.device, recipe.precision):
            loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return step, activation_bytes(build, [phase], recipe, recipe.batch_size)


@click.command(cls=Command)
@click.option("--image-size", default=96, type=ONE_OR_MORE, show_default=True)
@click.option("--batch-size", default=64, type=ONE_OR_MORE, show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
@click.option("--threads", default=1, type=ONE_OR_MORE, show_default=True)
@click.option("--rounds", default=5, type=ONE_OR_MORE, show_default=True)
def main(image_size: int, batch_size: int, precision: str, threads: int, rounds: int) -> None:
    """Medians of several rounds in turn, after one that warms up."""
    plain = TrainingParams.model_validate(
        {
            "image_size": image_size,
            "batch_size": batch_size,
            "precision": precision,
            "threads": threads,
            "device": "cpu",
        }
    )
    recipes = {"plain": plain, "lean": plain.model_copy(update={"lean_backward": True})}
    configure(plain)
    print(f"{image_size} px, batches of {batch_size}, {precision}, {threads} threads; seconds a step, MB kept")
    for plan in PLANS:
        steps = {name: step_of(plan, recipe) for name, recipe in recipes.items()}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(rounds + 1):
            for name, (step, _) in steps.items():
                began = time.perf_counter()
                step()
                if turn:
                    seconds[name].append(time.perf_counter() - began)
        medians = {name: statistics.median(found) for name, found in seconds.items()}
        told = ", ".join(f"{name} {medians[name]:.3f} s {steps[name][1] / 1e6:.1f} MB" for name in steps)
        print(f"{plan}: {told}; lean takes {medians['lean'] / medians['plain']:.2f} x", flush=True)


if __name__ == "__main__":
    main()
