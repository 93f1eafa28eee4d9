"""The fastest settings of this machine."""

import os
from dataclasses import asdict
from pathlib import Path

import click

from finetune.cli import check_dataset, cli, load, reads_params
from finetune.errors import InputError


@cli.command()
@click.argument("dataset", required=False)
@click.option("--batch", "batches", type=click.IntRange(min=2), multiple=True, help="Sizes to try. [default: as it is]")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--dry-run", is_flag=True, help="Measure and print; leave params.yaml as it is.")
@reads_params
def calibrate(
    dataset: str | None,
    batches: tuple[int, ...],
    rounds: int,
    dry_run: bool,
    params_file: Path,
    overrides: tuple[str, ...],
) -> None:
    """Measure precision, memory format, threads and batch size, and write the fastest into params.yaml.

    On the prepared DATASET (default: the study's first), at its image size, by the baseline's recipe. The numbers of
    runs depend on these settings: changing them trains anew.
    """
    from finetune import calibration
    from finetune.store import open_store
    from finetune.strategies import build_plan

    params, layout = load(params_file, overrides)
    name = dataset or params.study.datasets[0]
    check_dataset(params, name)
    baseline = params.study.baseline
    recipe = params.training_for(name, baseline)
    plan, options = params.plan_for(baseline), params.strategies[baseline].options
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = sorted({1, max(1, cores // 2), cores})
    tried = calibration.settings(threads, batches or (recipe.batch_size,))
    measured = calibration.measure(
        open_store(layout.store(name)), recipe, lambda model: build_plan(model, plan, options), tried, rounds
    )
    click.echo(f"{name}, {recipe.image_size} px, {baseline}, {cores} cores, medians of {rounds} rounds in turn:")
    for one in measured:
        values = "  ".join(f"{key} {value}" for key, value in asdict(one.setting).items())
        click.echo(f"{one.rate:9.1f} images/s  ({min(one.rates):.1f} to {max(one.rates):.1f})  {values}")
    if dry_run:
        return
    overriding = {
        f"{kind}.{owner}.training.{key}"
        for kind, owner, own in (
            ("datasets", name, params.datasets[name].training),
            ("strategies", baseline, params.strategies[baseline].training),
        )
        for key in own.keys() & asdict(measured[0].setting).keys()
    }
    if overriding:
        raise InputError(
            f"{params_file}: {min(overriding)} stands over `training`, so what is written there would have no effect; "
            "remove it, or write the values above by hand"
        )
    calibration.write(params_file, measured[0].setting)
    click.echo(f"{params_file}: training has the first of these now; `git diff {params_file}` shows what changed")
