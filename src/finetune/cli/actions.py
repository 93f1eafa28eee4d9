"""What is not a stage: tracking, the registry, prediction, the sample edition, one run, the MLflow UI."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import click

from finetune import interruption
from finetune.cli import BEGAN, check_dataset, cli, load, reads_params, which_run
from finetune.errors import InputError
from finetune.imports import uncollected


@cli.command()
@reads_params
def track(params_file: Path, overrides: tuple[str, ...]) -> None:
    """Send to the tracking server what it lacks of the study's runs."""
    from finetune import tracking

    params, layout = load(params_file, overrides)
    tracking.track(params, layout, say=click.echo)


@cli.command()
@reads_params
def register(params_file: Path, overrides: tuple[str, ...]) -> None:
    """Make each data set's winner a version of <dataset>-classifier, alias champion."""
    from finetune import comparison, registry

    params, layout = load(params_file, overrides)
    registry.register(comparison.read(layout.comparison), layout, params, say=click.echo)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path("data"))
@click.option(
    "--backbone",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also pretrain the sample backbone on the upstream set and write it here; takes some ten minutes.",
)
def sample(folder: Path, backbone: Path | None) -> None:
    """Draw the sample edition into FOLDER (default: data)."""
    from finetune import samples

    samples.draw(folder)
    click.echo(f"{folder}: the sample edition of five data sets")
    if backbone is not None:
        with interruption.handled():
            from finetune.pretraining import pretrain

            accuracy = pretrain(backbone)
        click.echo(f"{backbone}: {100 * accuracy:.1f} % top-1 on held-out upstream images")


@cli.command()
@which_run
@reads_params
def run(
    dataset: str, strategy: str, seed: int, device: str | None, params_file: Path, overrides: tuple[str, ...]
) -> None:
    """Train, evaluate and track one run outside DVC, as `mlflow run -e train` does.

    Pulls and prepares what is missing; writes under .finetune/runs/. Interrupted, it is gone on with by the same
    command.
    """
    with interruption.handled():
        with uncollected():
            from finetune import runs, workflow
            from finetune import study as studies
            from finetune.device import resolve_device

        params, _ = load(params_file, _several(overrides))
        studies.check_run(params, dataset, strategy)
        resolve_device(device or params.training_for(dataset, strategy).device)  # before anything is pulled
        one = studies.Run(dataset, strategy, seed)
        layout, place = workflow.run_alone(params, one, device, BEGAN)
    test = runs.read_json(layout.evaluation(one) / runs.METRICS)["test"]
    click.echo(f"{place}: test top-1 {100 * test['acc']:.2f} % of {test['images']} images")


def _several(texts: Iterable[str]) -> tuple[str, ...]:
    """Several KEY=VALUE in a text, as a parameter of `mlflow run` has them; a value may hold spaces: `[14, 15]`."""
    return tuple(word for text in texts for word in re.split(r"\s+(?=[\w.-]+=)", text.strip()) if word)


@cli.command()
@click.argument("dataset")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--alias", default="champion", show_default=True, help="Of <dataset>-classifier in the registry.")
@click.option("--top", type=click.IntRange(min=1), default=1, show_default=True, help="Labels per image.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per image.")
@reads_params
def predict(
    dataset: str,
    images: tuple[Path, ...],
    alias: str,
    top: int,
    as_json: bool,
    params_file: Path,
    overrides: tuple[str, ...],
) -> None:
    """Classify IMAGES with the registry's model for DATASET."""
    from finetune import registry

    params, _ = load(params_file, overrides)
    check_dataset(params, dataset)
    files = []
    for path in images:
        try:
            files.append(path.read_bytes())
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; name an image file") from None
    found = registry.champion(dataset, alias)
    for path, answers in zip(images, found.classifier.predict(files, top, [str(p) for p in images]), strict=True):
        if as_json:
            listed = [{"label": a.label, "probability": round(a.probability, 6)} for a in answers]
            click.echo(json.dumps({"image": str(path), "model": f"{found.name}/{found.version}", "top": listed}))
        else:
            click.echo(f"{path}: " + ", ".join(f"{a.label} {100 * a.probability:.1f} %" for a in answers))


@cli.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@reads_params
def ui(host: str, port: int, params_file: Path, overrides: tuple[str, ...]) -> None:
    """Serve the MLflow UI on loopback; prints the address of the study's comparison."""
    from finetune import user_interface

    params, _ = load(params_file, overrides)
    user_interface.serve(params, host, port, say=click.echo)
