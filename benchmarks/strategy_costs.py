"""What a study's strategies cost: seconds a step and bytes kept for the backward pass, side by side in one process.

    python -m benchmarks.strategy_costs studies/catalogue.yaml cifar10

Every strategy's own network, plan and recipe, on one batch of noise that lies ready. Each round takes one step of every
strategy's every phase; a strategy's seconds are the medians of its phases, by their shares of the epochs. What an epoch
does beside its steps is left out: auto-RGN's measuring, a solved head, features that are kept.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import click
import torch

from benchmarks.command import ONE_OR_MORE, Command
from finetune.accounting import activation_bytes
from finetune.device import configure, memory_format, move_to_device
from finetune.errors import InputError
from finetune.optimizers import make_optimizer
from finetune.params import Params, load
from finetune.recipe import TrainingParams
from finetune.step import Step, set_modes
from finetune.strategies import build_model, build_plan
from finetune.strategies.adjustments import adjusted
from finetune.strategies.plan import Phase, trainable
from finetune.study import check_run, dataset_of


class Costs:
    """One strategy, ready to take steps."""

    def __init__(self, plan: str, options: dict[str, object], recipe: TrainingParams, classes: int) -> None:
        def build() -> torch.nn.Module:
            return build_model(classes, 0, plan, options)

        self.recipe, self.model = recipe, build()
        worked_out = adjusted(self.model, build_plan(self.model, plan, options), recipe, plan)
        if worked_out.begin:
            worked_out.begin(self.model)
        move_to_device(self.model, recipe)
        self.phases = [phase for phase in worked_out.phases if phase.solve is None]
        self.kept = activation_bytes(build, worked_out.phases, recipe, recipe.batch_size)
        moving = {
            name
            for phase in worked_out.phases
            for names in trainable(self.model, phase.groups).values()
            for name in names
        }
        self.trained = sum(p.numel() for name, p in self.model.named_parameters() if name in moving)
        images = torch.rand(recipe.batch_size, 3, recipe.image_size, recipe.image_size)
        self.batch = images.contiguous(memory_format=memory_format(recipe)), torch.arange(recipe.batch_size) % classes
        self.seconds: list[list[float]] = [[] for _ in self.phases]

    def step(self, phase: Phase) -> float:
        """Seconds of the second of two steps; the first makes the optimizer's state."""
        optimizer = make_optimizer(self.model, phase, self.recipe)
        set_modes(self.model, phase)
        with ExitStack() as entered:
            penalty = entered.enter_context(phase.penalty(self.model)) if phase.penalty else None
            step = Step(self.model, phase, optimizer, self.recipe, penalty=penalty)
            for number in range(2):
                began = time.perf_counter()
                step([self.batch], 0, 0, number, 2)
            return time.perf_counter() - began

    def a_step(self) -> float:
        """Seconds, over the phases by their shares; nan where a head is solved at once."""
        whole = sum(phase.share for phase in self.phases)
        medians = [statistics.median(seconds) for seconds in self.seconds]
        return sum(m * p.share for m, p in zip(medians, self.phases, strict=True)) / whole if whole else float("nan")


def classes_of(params: Params, dataset: str) -> int:
    """How many classes a data set has.

    Raises:
        InputError: there is no such data set, or only its images tell how many classes it has.
    """
    classes = dataset_of(params, dataset).classes
    if classes is None:
        raise InputError(f"{dataset}: its classes are known from its images alone; name another data set")
    return classes


def measured(make: dict[str, Callable[[], Costs]], rounds: int) -> dict[str, Costs]:
    """Each round builds every strategy anew, so that no two networks lie in memory at once."""
    found: dict[str, Costs] = {}
    for turn in range(rounds):
        for name, build in make.items():
            costs = build()
            for phase, seconds in zip(costs.phases, costs.seconds, strict=True):
                seconds.append(costs.step(phase))
            if name in found:
                for all_rounds, this_round in zip(found[name].seconds, costs.seconds, strict=True):
                    all_rounds.extend(this_round)
            else:
                found[name] = costs
            del costs.model, costs.batch
        print(f"round {turn + 1}/{rounds}", flush=True)
    return found


@click.command(cls=Command)
@click.argument("study", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("dataset")
@click.option("--rounds", default=5, type=ONE_OR_MORE, show_default=True)
def main(study: Path, dataset: str, rounds: int) -> None:
    """Measure the strategies of STUDY, a params.yaml, under the recipe of DATASET."""
    params = load(study)
    check_run(params, dataset, params.study.baseline)
    classes = classes_of(params, dataset)
    make: dict[str, Callable[[], Costs]] = {}
    for name in params.study.strategies:
        plan = params.plan_for(name)
        recipe = params.training_for(dataset, name)
        options = params.strategies[name].options
        make[name] = lambda plan=plan, options=options, recipe=recipe: Costs(plan, options, recipe, classes)  # type: ignore[misc]
    configure(params.training_for(dataset, params.study.baseline))
    found = measured(make, rounds)
    base = found[params.study.baseline]
    print("\n| strategy | trained, million | kept, MB | of the baseline's | seconds a step | of the baseline's |")
    print("| --- | --: | --: | --: | --: | --: |")
    for name, costs in found.items():
        took = f"{costs.a_step():.3f} | {costs.a_step() / base.a_step():.2f}" if costs.phases else "– | –"
        kept = f"{costs.kept / 1e6:.1f} | {costs.kept / base.kept:.2f}"
        print(f"| `{name}` | {costs.trained / 1e6:.2f} | {kept} | {took} |")


if __name__ == "__main__":
    main()
