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
    from finetune.errors import InputError, suggest

    loaded = params.load(params_file, overrides)
    chosen = dict.fromkeys(name for given in names for name in (datasets.names() if given == "all" else [given]))
    known = {*datasets.names(), *(name for name, entry in loaded.datasets.items() if entry.reader)}
    for name in chosen:
        if name not in known:
            raise InputError(
                f"data set '{name}' is neither official nor one's own in {params_file}; {suggest(name, known)}"
            )
    alone = origin if len(chosen) == 1 else None  # what one file is to be of several sets, its name must say
    wanted = []
    for name in chosen:
        own = loaded.datasets.get(name)
        folder = study.Layout(Path()).archives(name)
        wanted += fetching.wanted(study.dataset_of(loaded, name), edition, folder, own.sources if own else {}, alone)
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
    help="Where to write sheet.png, augmented.png and facts.json.  [default: sheets/NAME; with --set: nowhere]",
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
    title, fraction = study.dataset_of(params, name).title, params.datasets[name].fraction
    folder = out or data_facts.folder(layout.root, name)
    drawn = [data_facts.SHEET, *([data_facts.AUGMENTED] if augmented else []), data_facts.FACTS]
    only_shown = out is None and bool(overrides)  # the folder is DVC's, of params.yaml as it stands
    if only_shown:
        facts = data_facts.facts(store, title, fraction)
        last = f"{folder}: left as it is, as --set was given; --out FOLDER writes {', '.join(drawn)}"
    else:
        recipe = sheets.recipe_of(params, name) if augmented else None
        facts = sheets.write(store, title, folder, recipe, fraction)
        last = f"{folder}: {', '.join(drawn)}"
    for line in [json.dumps(facts, indent=2)] if as_json else data_facts.lines(facts, classes):
        click.echo(line)
    if only_shown or not as_json:
        click.echo(last, err=as_json)
