"""The command line: one command per stage and action; reads params.yaml and wires everything.

Heavy imports happen inside the commands, so that `finetune --help` is instant.
"""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from finetune.errors import InputError


class _Group(click.Group):
    """Bad input is one sentence on stderr and exit code 2; SIGTERM unwinds as an exit, so that runs end honestly."""

    def invoke(self, ctx: click.Context) -> Any:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            return super().invoke(ctx)
        except InputError as error:
            click.echo(f"finetune: {error}", err=True)
            ctx.exit(2)


def reads_params(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options --params and --set."""
    command = click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, e.g. training.lr=1e-3."
    )(command)
    return click.option(
        "--params",
        "params_file",
        type=click.Path(path_type=Path),
        default=Path("params.yaml"),
        show_default=True,
        help="The study's parameters.",
    )(command)


def which_run(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that name a run, and the device."""
    for option in (
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Default: training.device."),
        click.option("--seed", type=int, default=0, show_default=True),
        click.option("--strategy", required=True, help="A name under strategies in params.yaml."),
        click.option("--dataset", required=True, help="A name under datasets in params.yaml."),
    ):
        command = option(command)
    return command


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="finetune")
def cli() -> None:
    """Fine-tuning studies: data sets x strategies x seeds, through DVC and MLflow.

    The stages run through `dvc repro`; `finetune study run` runs them all, then tracks and registers.
    """


@cli.command()
@click.argument("dataset")
@reads_params
def prepare(dataset: str, params_file: Path, overrides: tuple[str, ...]) -> None:
    """Archives of DATASET -> its store (stage prepare)."""
    from finetune import datasets
    from finetune.prepare import prepare as make_store

    params, layout = _load(params_file, overrides)
    _check_dataset(params, dataset)
    store = make_store(
        datasets.load(dataset),
        params.study.edition,
        params.prepare_for(dataset),
        layout.archives(dataset),
        layout.store(dataset),
    )
    counts = ", ".join(f"{count} {split}" for split, count in store.meta["counts"].items())
    click.echo(f"{store.path}: {counts} images, {len(store.classes)} classes")


@cli.command()
@reads_params
def backbone(params_file: Path, overrides: tuple[str, ...]) -> None:
    """Bring the pretrained weights that params.yaml names (stage backbone)."""
    from finetune.model import prepare_backbone

    params, layout = _load(params_file, overrides)
    sample = layout.root / "samples" / "backbone.safetensors"
    prepare_backbone(params.backbone.source, params.backbone.weights, sample, layout.backbone)
    click.echo(f"{layout.backbone}: weights of {params.backbone.source}")


@cli.command()
@click.argument("strategy")
@reads_params
def plan(strategy: str, params_file: Path, overrides: tuple[str, ...]) -> None:
    """Note which plan STRATEGY is a variant of, and that plan's source (stage plan).

    DVC cannot look up the plan of a variant, so trainings depend on this note: a change in a plan's file retrains
    the variants of that plan, and a new plan's file retrains nothing.
    """
    from finetune import runs, strategies, study

    params, layout = _load(params_file, overrides)
    study.check_run(params, next(iter(params.datasets)), strategy)
    name = params.plan_for(strategy)
    strategies.check_name(name, strategy)
    note = {"plan": name, "sha256": strategies.source_digest(name)}
    runs.write_json(layout.root / "plans" / f"{strategy}.json", note)


@cli.command()
@which_run
@click.option("--tracking", type=click.Choice(["auto", "off"]), default="auto", show_default=True)
@reads_params
def train(
    dataset: str,
    strategy: str,
    seed: int,
    device: str | None,
    tracking: str,
    params_file: Path,
    overrides: tuple[str, ...],
) -> None:
    """Train one run (stage train): live in MLflow unless --tracking off."""
    from finetune import stages, study

    params, layout = _load(params_file, overrides)
    study.check_run(params, dataset, strategy)
    resolved = stages.resolve(params, layout, study.Run(dataset, strategy, seed), device)
    place = _train(params, layout, resolved, tracking)
    click.echo(f"{place}: finished")


@cli.command()
@click.argument("dataset")
@click.argument("strategy")
@click.argument("seed", type=int)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Default: the training's.")
@reads_params
def evaluate(
    dataset: str, strategy: str, seed: int, device: str | None, params_file: Path, overrides: tuple[str, ...]
) -> None:
    """Predict the test split with a trained run (stage evaluate)."""
    from finetune import runs, stages, study

    params, layout = _load(params_file, overrides)
    study.check_run(params, dataset, strategy)
    place = stages.evaluate(layout, study.Run(dataset, strategy, seed), device)
    test = runs.read_json(place / runs.METRICS)["test"]
    click.echo(f"{place}: test top-1 {100 * test['acc']:.2f} % of {test['images']} images")


@cli.command()
@reads_params
def compare(params_file: Path, overrides: tuple[str, ...]) -> None:
    """Every run of the study -> comparison/ (stage compare), and the table."""
    from finetune import comparison

    params, layout = _load(params_file, overrides)
    result = comparison.compare(params, layout)
    comparison.write(result, layout.comparison)
    click.echo(comparison.table(result))


@cli.command()
@reads_params
def report(params_file: Path, overrides: tuple[str, ...]) -> None:
    """The comparison and the curves -> report/ (stage report)."""
    from finetune import report as reports
    from finetune import runs

    params, layout = _load(params_file, overrides)
    reports.write(params, runs.read_json(layout.comparison / "comparison.json"), layout)
    click.echo(f"{layout.report / 'report.md'}")


@cli.command()
@reads_params
def track(params_file: Path, overrides: tuple[str, ...]) -> None:
    """Send to the tracking server what it lacks of the study's runs."""
    from finetune import tracking

    params, layout = _load(params_file, overrides)
    tracking.track(params, layout, say=click.echo)


@cli.command()
@reads_params
def register(params_file: Path, overrides: tuple[str, ...]) -> None:
    """Make each data set's winner a version of <dataset>-classifier, alias champion."""
    from finetune import registry, runs

    params, layout = _load(params_file, overrides)
    registry.register(runs.read_json(layout.comparison / "comparison.json"), layout, params, say=click.echo)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path("data"))
def sample(folder: Path) -> None:
    """Draw the sample edition into FOLDER (default: data)."""
    from finetune import samples

    samples.draw(folder)
    click.echo(f"{folder}: the sample edition of five data sets")


@cli.group()
def study() -> None:
    """The study in params.yaml as a whole."""


@study.command("show")
@reads_params
def show(params_file: Path, overrides: tuple[str, ...]) -> None:
    """List the study's runs and which of them are finished."""
    from finetune import runs
    from finetune import study as studies

    params, layout = _load(params_file, overrides)
    listed = studies.runs(params)
    click.echo(f"study {params.study.name}, edition {params.study.edition}: {len(listed)} runs")
    for run in listed:
        trained = (layout.run(run) / runs.MODEL).is_file()
        evaluated = (layout.evaluation(run) / runs.METRICS).is_file()
        state = "evaluated" if trained and evaluated else "trained" if trained else "to do"
        click.echo(f"  {run.name:50} {state}")


def _load(params_file: Path, overrides: tuple[str, ...] = ()) -> tuple[Any, Any]:
    """params.yaml, and the layout of the current folder, in which DVC runs its stages."""
    from finetune import params, study

    return params.load(params_file, overrides), study.Layout(Path())


def _check_dataset(params: Any, dataset: str) -> None:
    from finetune import study

    study.check_run(params, dataset, next(iter(params.strategies)))


def _train(params: Any, layout: Any, resolved: Any, tracking: str) -> Path:
    """Train, telling the tracking server as it goes when `tracking` is auto and MLflow is installed."""
    import importlib.util

    from finetune import stages
    from finetune.training import Listener

    if tracking == "off" or importlib.util.find_spec("mlflow") is None:
        return stages.train(resolved, layout)
    from finetune.tracking import Live

    with Live(params) as live:
        live.started(stages.run_record(resolved))
        listener = Listener(resumed=lambda rows: [live.epoch(row) for row in rows] and None, epoch=live.epoch)
        place = stages.train(resolved, layout, (listener,))
        live.finished()
    return place
