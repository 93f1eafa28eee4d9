"""The stores that `prepare` made."""

from pathlib import Path

import click

from finetune.cli import check_dataset, cli, load, reads_params


@cli.group()
def store() -> None:
    """The stores of decoded images."""


@store.command()
@click.argument("names", nargs=-1, metavar="[DATASET]...")
@reads_params
def check(names: tuple[str, ...], params_file: Path, overrides: tuple[str, ...]) -> None:
    """Read every byte of the store of each DATASET (default: all of the study) and refuse what was changed.

    What a killed prepare left beside the stores is deleted first.
    """
    from finetune.aside import clear_abandoned
    from finetune.store import open_store
    from finetune.store_check import check as check_store

    params, layout = load(params_file, overrides)
    for left in clear_abandoned(layout.store("any").parent):
        click.echo(f"{left}: was left by a killed prepare, deleted")
    for name in names or params.study.datasets:
        check_dataset(params, name)
        opened = open_store(layout.store(name))
        click.echo(f"{opened.path}: {check_store(opened):,} images as they were written")
