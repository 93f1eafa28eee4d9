"""Bringing data."""

from pathlib import Path

import click

from finetune.cli import cli, reads_params


@cli.command()
@click.argument("names", nargs=-1, required=True, metavar="DATASET... | all")
@click.option(
    "--from",
    "origin",
    metavar="FILE|FOLDER|URL",
    help="Bring what is there instead: one archive, or those of a folder (a URL of a folder ends in /).",
)
@click.option("--edition", default="official", show_default=True, help="Whose checksums the archives must have.")
@reads_params
def fetch(
    names: tuple[str, ...], origin: str | None, edition: str, params_file: Path, overrides: tuple[str, ...]
) -> None:
    """Bring the archives of each DATASET into data/DATASET/.

    What broke off or was stopped is resumed, checksums are verified, and what is there and right is left alone.
    """
    from finetune import datasets, params, study
    from finetune import fetch as fetching

    loaded = params.load(params_file, overrides)
    chosen = dict.fromkeys(name for given in names for name in (datasets.names() if given == "all" else [given]))
    wanted = []
    for name in chosen:
        own = loaded.datasets.get(name)
        folder = study.Layout(Path()).archives(name)
        wanted += fetching.wanted(study.dataset_of(loaded, name), edition, folder, own.sources if own else {})
    if origin is not None:
        wanted = fetching.bring_from(wanted, origin, say=click.echo)
    fetching.fetch(wanted, say=click.echo)
