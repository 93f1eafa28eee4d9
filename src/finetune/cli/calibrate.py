"""The fastest settings of this machine."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from finetune.cli import check_dataset, cli, load, reads_params
from finetune.errors import InputError

if TYPE_CHECKING:
    from finetune.calibration import Measured, Setting
    from finetune.params import Params, TrainingParams


@cli.command()
@click.argument("dataset", required=False)
@click.option(
    "--batch", "batches", type=click.IntRange(min=2), multiple=True, help="Sizes to try and write. [default: as it is]"
)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--alone", is_flag=True, help="One training at a time, as with `mlflow run -e train`.")
@click.option("--dry-run", is_flag=True, help="Measure and print; leave params.yaml as it is.")
@reads_params
def calibrate(
    dataset: str | None,
    batches: tuple[int, ...],
    rounds: int,
    alone: bool,
    dry_run: bool,
    params_file: Path,
    overrides: tuple[str, ...],
) -> None:
    """Measure precision, memory format, kernels, threads and batch size, and write the fastest into params.yaml.

    On the prepared DATASET (default: the study's first), at its image size, by the baseline's recipe. With fewer
    threads than cores, as many trainings at once as `make study` runs, and their rates together. The numbers of runs
    depend on these settings: changing them trains anew. The batch size changes what is learnt: half and twice of it are
    measured, too, at the fastest setting, and not written; of sizes that --batch names, the fastest is.
    """
    from finetune import calibration
    from finetune.processor import cores
    from finetune.side_by_side import jobs
    from finetune.store import open_store

    params, layout = load(params_file, overrides)
    name = dataset or params.study.datasets[0]
    check_dataset(params, name)
    baseline = params.study.baseline
    recipe = params.training_for(name, baseline)
    strategy = calibration.Strategy(baseline, params.plan_for(baseline), params.strategies[baseline].options)
    calibration.check(recipe, strategy)
    written = ["precision", "memory_format", "cpu_kernels", "threads", *(["batch_size"] if batches else [])]
    if not dry_run:
        _check_effect(params, params_file, name, written)
    most = cores()
    threads = sorted({2**n for n in range(most.bit_length()) if 2**n <= most} | {most})
    tried = calibration.settings(threads, batches or (recipe.batch_size,), _native(recipe))
    if not dry_run:
        tried = _writable(tried, params_file, written)
    if {one.precision for one in tried} == {"fp32"}:
        click.echo("bf16 is left out: this CPU has no instructions for it, so it takes longer than fp32")
    at_once = (lambda _: 1) if alone else jobs
    store = open_store(layout.store(name))
    measured = calibration.measure(store, recipe, strategy, tried, rounds, at_once)
    click.echo(f"{name}, {recipe.image_size} px, {baseline}, {most} cores, medians of {rounds} rounds in turn:")
    _print(measured)
    if recipe.compile != "none":
        click.echo(f"without torch.compile, which would take minutes a setting; training.compile is {recipe.compile}")
    fastest = measured[0].setting
    if fastest.cpu_kernels == load(params_file)[0].training.cpu_kernels:  # put there at its default, all trained anew
        written.remove("cpu_kernels")
    if not dry_run:
        calibration.write(params_file, fastest, written)
        values = ", ".join(f"{key} {value}" for key, value in asdict(fastest).items() if key in written)
        click.echo(f"{params_file}: training has {values} now; `git diff {params_file}` shows what changed")
    sizes = [] if batches else calibration.other_sizes(fastest, store)
    if sizes:
        found = calibration.measure(store, recipe, strategy, [fastest, *sizes], rounds, at_once)
        click.echo("the fastest with other batch sizes, in turn; they change what is learnt and are not written:")
        _print(found)
        click.echo("`--batch 32 --batch 64` measures those sizes, and writes the fastest")


def _native(recipe: "TrainingParams") -> bool:
    """Whether this project's kernels are measured, too; says why not."""
    from finetune import cpu_kernels

    try:
        if recipe.compile != "none":
            raise InputError(f"training.compile is {recipe.compile}, which makes kernels of its own")
        cpu_kernels.load()
    except InputError as reason:
        click.echo(f"this project's own kernels are left out: {reason}")
        return False
    return True


def _writable(tried: "list[Setting]", params_file: Path, keys: list[str]) -> "list[Setting]":
    """Those that params.yaml may have; says why not the others.

    Raises:
        InputError: it may have none.
    """
    from finetune import params
    from finetune import params_file as files

    raw, refused, left = files.read(params_file), {}, []
    for setting in tried:
        values = {key: value for key, value in asdict(setting).items() if key in keys}
        try:
            params.parse({**raw, "training": {**(raw.get("training") or {}), **values}}, str(params_file))
            left.append(setting)
        except InputError as error:
            refused[str(error)] = error
    for reason in refused:
        click.echo(f"left out, as it could not be written: {reason}")
    if not left:
        raise next(iter(refused.values()))
    return left


def _print(measured: "list[Measured]") -> None:
    for one in measured:
        values = "  ".join(f"{key} {value}" for key, value in asdict(one.setting).items())
        values += f"  ({one.at_once} trainings at once)" if one.at_once > 1 else ""
        click.echo(f"{one.rate:9.1f} images/s  ({min(one.rates):.1f} to {max(one.rates):.1f})  {values}")


def _check_effect(params: "Params", params_file: Path, dataset: str, keys: list[str]) -> None:
    """Raise InputError where what would be written under `training` had no effect."""
    baseline = params.study.baseline
    for owner, own in (
        (f"datasets.{dataset}", params.datasets[dataset].training),
        (f"strategies.{baseline}", params.strategies[baseline].training),
    ):
        for key in keys:
            if key in own:
                raise InputError(
                    f"{params_file}: {owner}.training.{key} stands over `training`, so what is measured and written "
                    "there would have no effect; remove it, or measure with --dry-run and write the values by hand"
                )
