"""The study in params.yaml, and those under studies/."""

from pathlib import Path

import click

from finetune.cli import cli, load, reads_params
from finetune.errors import InputError


@cli.group()
def study() -> None:
    """The study in params.yaml as a whole, and those under studies/."""


@study.command("show")
@reads_params
def show(params_file: Path, overrides: tuple[str, ...]) -> None:
    """List the study's runs and which of them are finished."""
    from finetune import agreement, runs
    from finetune import study as studies

    params, layout = load(params_file, overrides)
    agreement.check(params, layout.root)
    listed = studies.runs(params)
    click.echo(f"study {params.study.name}, edition {params.study.edition}: {len(listed)} runs")
    for run in listed:
        trained = (layout.run(run) / runs.MODEL).is_file()
        evaluated = (layout.evaluation(run) / runs.METRICS).is_file()
        state = "evaluated" if trained and evaluated else "trained" if trained else "to do"
        click.echo(f"  {run.name:50} {state}")


@study.command("run")
@reads_params
def run_study(params_file: Path, overrides: tuple[str, ...]) -> None:
    """The whole study: dvc repro, track, register; then the table."""
    from finetune import workflow

    if params_file != Path("params.yaml") or overrides:
        raise InputError(
            "study run: DVC reads params.yaml; put your values there, or try them with `dvc exp run -S KEY=VALUE`"
        )
    params, layout = load(params_file)
    workflow.run_study(params, layout, say=click.echo)


@study.command("use")
@click.argument("name")
def use(name: str) -> None:
    """Put studies/NAME.yaml in place as params.yaml, and studies/NAME.data.yaml as data.dvc.

    What data.dvc lists comes to data/ from DVC's cache or the out's remote. Never over edits that neither git nor
    studies/ has, nor over data that DVC's cache lacks.
    """
    from finetune import agreement, editions

    params, layout = load(editions.file_of(Path(), name))  # a study that is not valid is not put in place
    agreement.check(params, layout.root)
    editions.use(Path(), name, say=click.echo)


@study.command("new")
@click.argument("name")
@click.option("--from", "origin", metavar="STUDY", help="Start from a study under studies/, not from params.yaml.")
def new(name: str, origin: str | None) -> None:
    """Start a study of one's own: studies/NAME.yaml and studies/NAME.data.yaml."""
    from finetune import editions

    editions.new(Path(), name, origin, say=click.echo)
