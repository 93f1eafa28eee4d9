"""Where a training step's memory goes on a CPU: what is kept for the backward pass, all tensors alive at once, and how
far the process grows, each strategy in a process of its own.

    python -m benchmarks.step_memory studies/catalogue.yaml cifar10 same_lr bias_only --set training.precision=fp32
"""

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.command import Command
from benchmarks.strategy_costs import Costs, classes_of
from finetune.device import configure
from finetune.errors import InputError
from finetune.params import load
from finetune.study import check_run

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident(kind: str = "VmRSS") -> int:
    """Bytes of this process in memory now, or the most since `forget_peak` (VmHWM)."""
    found = re.search(rf"^{kind}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def forget_peak() -> None:
    _RESET.write_text("5")


def most_alive(changes: Iterable[int]) -> int:
    """The highest sum of the first so many changes; bytes."""
    alive = most = 0
    for change in changes:
        alive += change
        most = max(most, alive)
    return most


def measured(study: Path, overrides: tuple[str, ...], dataset: str, strategy: str) -> tuple[int, ...]:
    """Bytes: kept for the backward pass; in memory before the first step; the tensors of a step alive at once, beyond
    what was there before it; how far the process grew over three steps. Nothing where a head is solved at once."""
    params = load(study, overrides)
    recipe = params.training_for(dataset, strategy)
    configure(recipe)
    costs = Costs(params.plan_for(strategy), params.strategies[strategy].options, recipe, classes_of(params, dataset))
    if not costs.phases:
        return ()
    phase = costs.phases[-1]
    before = resident()
    forget_peak()
    costs.step(phase)
    with torch.profiler.profile(profile_memory=True) as seen:
        costs.step(phase)
    assert seen.profiler is not None and seen.profiler.kineto_results is not None
    events: list[Any] = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return costs.kept, before, most_alive(event.nbytes() for event in events), resident("VmHWM") - before


@click.command(cls=Command)
@click.argument("study", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("dataset")
@click.argument("strategies", nargs=-1)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the params.")
@click.option("--alone", is_flag=True, hidden=True)
def main(study: Path, dataset: str, strategies: tuple[str, ...], overrides: tuple[str, ...], alone: bool) -> None:
    """Measure STRATEGIES of STUDY, a params.yaml, under the recipe of DATASET; all of them where none is named."""
    if alone:
        print(*measured(study, overrides, dataset, strategies[0]))
        return
    params = load(study, overrides)
    chosen = strategies or params.study.strategies
    for strategy in chosen:
        check_run(params, dataset, strategy)
    classes_of(params, dataset)
    print("| strategy | kept, MB | tensors alive at once, MB | growth of the process, MB | before the step, MB |")
    print("| --- | --: | --: | --: | --: |", flush=True)
    settings = [word for setting in overrides for word in ("--set", setting)]
    for strategy in chosen:
        words = [sys.executable, "-m", "benchmarks.step_memory", str(study), dataset, strategy, *settings, "--alone"]
        found = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
        if found.returncode < 0:
            raise InputError(f"{strategy}: its process was ended by signal {-found.returncode}")
        if found.returncode:
            sys.exit(found.returncode)  # it has said why
        megabytes = [int(number) / 1e6 for number in found.stdout.splitlines()[-1].split()]
        if megabytes:
            kept, before, alive, grown = megabytes
            print(f"| `{strategy}` | {kept:.1f} | {alive:.0f} | {grown:.0f} | {before:.0f} |", flush=True)
        else:
            print(f"| `{strategy}` | – | – | – | – |", flush=True)


if __name__ == "__main__":
    main()
