"""Bringing data, and knowing it."""

import json
from pathlib import Path

import click

from finetune.cli import check_dataset, cli, load, reads_params


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


@cli.group()
def data() -> None:
    """What there is to know about a data set."""


@data.command("show")
@click.argument("name")
@click.option("--augmented", is_flag=True, help="Also draw what the network will see, as the data set's recipe says.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to write sheet.png, augmented.png and facts.json.  [default: sheets/NAME]",
)
@click.option("--classes", is_flag=True, help="Print every class, however many.")
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
@reads_params
def show(
    name: str,
    augmented: bool,
    out: Path | None,
    classes: bool,
    as_json: bool,
    params_file: Path,
    overrides: tuple[str, ...],
) -> None:
    """Count the images of the prepared data set NAME and draw a sheet of them (stage sheet)."""
    from finetune import data_facts, sheets, study
    from finetune.store import open_store

    params, layout = load(params_file, overrides)
    check_dataset(params, name)
    store = open_store(layout.store(name))
    folder = out or data_facts.folder(layout.root, name)
    recipe = sheets.recipe_of(params, name) if augmented else None
    facts = sheets.write(store, study.dataset_of(params, name).title, folder, recipe, params.datasets[name].fraction)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for line in data_facts.lines(facts, classes):
        click.echo(line)
    drawn = [data_facts.SHEET, *([data_facts.AUGMENTED] if augmented else []), data_facts.FACTS]
    click.echo(f"{folder}: {', '.join(drawn)}")
