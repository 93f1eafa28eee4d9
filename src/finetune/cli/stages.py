"""One command per stage of dvc.yaml."""

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from finetune import interruption
from finetune.cli import BEGAN, SEED, check_dataset, cli, load, reads_params, which_run
from finetune.imports import uncollected

if TYPE_CHECKING:
    from finetune.params import Params
    from finetune.resolved import Prepared
    from finetune.study import Layout

_PATIENCE = 6.0  # seconds for the server's last answers, as signals wait for them and the process is to end within 10


@cli.command()
@click.argument("dataset")
@reads_params
def prepare(dataset: str, params_file: Path, overrides: tuple[str, ...]) -> None:
    """Archives of DATASET -> its store (stage prepare)."""
    from finetune import study
    from finetune.prepare import prepare as make_store

    params, layout = load(params_file, overrides)
    check_dataset(params, dataset)
    store = make_store(
        study.dataset_of(params, dataset),
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

    params, layout = load(params_file, overrides)
    sample = layout.root / "samples" / "backbone.safetensors"
    prepare_backbone(params.backbone.source, params.backbone.weights, sample, layout.backbone)
    click.echo(f"{layout.backbone}: weights of {params.backbone.source}")


@cli.command()
@click.argument("strategy")
@reads_params
def plan(strategy: str, params_file: Path, overrides: tuple[str, ...]) -> None:
    """Note which plan STRATEGY is a variant of, and that plan's source (stage plan).

    DVC cannot look up the plan of a variant, so trainings depend on this note: a change in a plan's file retrains
    the variants of that plan, and a new plan's file retrains nothing. The study's strategies are checked against its
    recipes, too, all of them: DVC may train the variants of one note before it makes the next.
    """
    from finetune import agreement, runs, strategies, study

    params, layout = load(params_file, overrides)
    study.check_run(params, next(iter(params.datasets)), strategy)
    name = params.plan_for(strategy)
    strategies.check_name(name, strategy)
    agreement.check(params, layout.root)
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
    with interruption.handled():
        with uncollected():
            from finetune import agreement, resolved, study

        params, layout = load(params_file, overrides)
        study.check_run(params, dataset, strategy)
        agreement.check_run(params, layout.root, dataset, strategy)
        prepared = resolved.resolve(params, layout, study.Run(dataset, strategy, seed), device)
        place = train_run(params, layout, prepared, tracking)
    with suppress(OSError):  # whoever listened may be gone; the run is whole
        click.echo(f"{place}: finished")


@cli.command()
@click.argument("dataset")
@click.argument("strategy")
@click.argument("seed", type=SEED)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Default: the training's.")
@reads_params
def evaluate(
    dataset: str, strategy: str, seed: int, device: str | None, params_file: Path, overrides: tuple[str, ...]
) -> None:
    """Predict the test split with a trained run (stage evaluate)."""
    with uncollected():
        from finetune import kept_runs, runs, stages, study

    params, layout = load(params_file, overrides)
    study.check_run(params, dataset, strategy)
    run = study.Run(dataset, strategy, seed)
    place = stages.evaluate(layout, run, device)
    # DVC runs this stage after it has noted the training, so that is not lost any more.
    kept_runs.forget(runs.read_json(layout.run(run) / runs.RUN)["run_key"])
    test = runs.read_json(place / runs.METRICS)["test"]
    click.echo(f"{place}: test top-1 {100 * test['acc']:.2f} % of {test['images']} images")


@cli.command()
@reads_params
def compare(params_file: Path, overrides: tuple[str, ...]) -> None:
    """Every run of the study -> comparison/ (stage compare), and the table."""
    from finetune import comparison

    params, layout = load(params_file, overrides)
    result = comparison.compare(params, layout)
    comparison.write(result, layout.comparison)
    click.echo(comparison.table(result))


@cli.command()
@reads_params
def report(params_file: Path, overrides: tuple[str, ...]) -> None:
    """The comparison and the curves -> report/ (stage report)."""
    from finetune import comparison
    from finetune import report as reports

    params, layout = load(params_file, overrides)
    reports.write(params, comparison.read(layout.comparison), layout)
    click.echo(f"{layout.report / 'report.md'}")


def train_run(params: "Params", layout: "Layout", prepared: "Prepared", tracking: str) -> Path:
    """Train, telling the tracking server as it goes when `tracking` is auto and MLflow is installed."""
    import importlib.util

    from finetune import stages
    from finetune.training import Listener

    keep = "DVC_STAGE" in os.environ
    if tracking == "off" or importlib.util.find_spec("mlflow") is None:
        return stages.train(prepared, layout, began=BEGAN, keep=keep)
    from finetune.live import Live

    with Live(params) as live:
        listener = Listener(started=live.started, resumed=live.resumed, epoch=live.epoch)
        place = stages.train(prepared, layout, (listener,), began=BEGAN, keep=keep)
        interruption.check()  # a signal that came as the run moved into place: nothing is waited for
        live.caught_up()
        with interruption.finishing():
            live.finished(at_most=_PATIENCE)
    return place
