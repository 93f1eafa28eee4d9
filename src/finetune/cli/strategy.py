"""What strategies there are, and what each trains."""

import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finetune.cli import check_dataset, cli, load, reads_params
from finetune.errors import InputError

if TYPE_CHECKING:
    from finetune.catalogue import Strategy
    from finetune.params import Params
    from finetune.study import Layout

_MOST_NAMED = 3  # groups in a row of `list`
_CLASSES = click.IntRange(min=2)


@cli.group()
def strategy() -> None:
    """What strategies there are, and what each trains."""


@strategy.command("list")
@click.option("--classes", type=_CLASSES, default=100, show_default=True, help="Of the network's head.")
@click.option(
    "--variants", is_flag=True, help="Also the variants of params.yaml, with the recipe of the first data set."
)
@reads_params
def list_(classes: int, variants: bool, params_file: Path, overrides: tuple[str, ...]) -> None:
    """Every plan: how many parameters it trains in any of its phases, its groups, its paper, and what it is."""
    from finetune import catalogue, recipe_words

    found = catalogue.plans(classes)
    rows = [("plan", "trainable", "share", "groups", "paper", "what it is")]
    rows += [(one.name, *_trained(one), _groups(one), one.paper or "–", one.line) for one in found]
    for line in _fitting(rows, 4):
        click.echo(line)
    if variants:
        params, _ = load(params_file, overrides)
        rows = [("variant", "trainable", "share", "groups", "plan", "own settings")]
        for one in catalogue.variants(params, params.study.datasets[0], classes):
            own = params.strategies[one.name]
            settings = recipe_words.own_settings(own.options, own.training)
            rows.append((one.name, *_trained(one), _groups(one), one.plan, settings or "–"))
        click.echo()
        for line in _fitting(rows, 5):
            click.echo(line)


@strategy.command("show")
@click.argument("name")
@click.option("--dataset", help="Whose recipe it has.  [default: the study's first]")
@click.option("--classes", type=_CLASSES, help="Of the network's head.  [default: the data set's]")
@click.option(
    "--picture",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png",
    help="Also draw the network's blocks, coloured by learning rate.",
)
@reads_params
def show(
    name: str,
    dataset: str | None,
    classes: int | None,
    picture: Path | None,
    params_file: Path,
    overrides: tuple[str, ...],
) -> None:
    """What NAME, a variant in params.yaml or else a plan as it comes, trains: its audit by phase and group."""
    if picture is not None and picture.suffix != ".png":
        raise InputError(f"--picture: found {picture}, expected the name of a .png")
    from finetune import audit_picture, audits, catalogue

    params, layout = load(params_file, overrides)
    dataset = dataset or params.study.datasets[0]
    check_dataset(params, dataset)
    one = catalogue.described(params, name, dataset, classes or _classes_of(params, layout, dataset))
    for line in _lines(one, dataset):
        click.echo(line)
    if picture is not None:
        phases = audits.phases_of({"phases": one.phases}, one.audit)
        moved, of_all = audits.trained(one.audit)
        title = f"{name}: trains {moved:,} of {of_all:,} parameters"
        audit_picture.draw(audits.by_block(one.audit, one.recipe.lr, phases), title, picture)
        click.echo(f"\n{picture}: drawn")


def _fitting(rows: Sequence[Sequence[str]], first: int) -> list[str]:
    """Aligned lines; on a terminal that is too narrow for them, all but the `first` columns go beneath those."""
    from finetune.tables import aligned

    lines = aligned(rows, right=(1, 2))
    columns = shutil.get_terminal_size().columns
    if not sys.stdout.isatty() or max(map(len, lines)) <= columns:
        return lines
    above = aligned([row[:first] for row in rows], right=(1, 2))
    beneath = (": ".join(row[first:]) for row in rows)
    indented = (textwrap.fill(text, columns, initial_indent="  ", subsequent_indent="  ") for text in beneath)
    return [line for pair in zip(above, indented, strict=True) for line in pair]


def _classes_of(params: "Params", layout: "Layout", dataset: str) -> int:
    """Those of the prepared store, else those that the data set declares."""
    from finetune import runs, study

    if (meta := layout.store(dataset) / "meta.json").is_file():
        return len(runs.read_json(meta)["classes"])
    declared = study.dataset_of(params, dataset).classes
    if declared is None:
        raise InputError(
            f"{dataset}: how many classes it has is found when it is prepared; give --classes, or make its store with "
            f"`dvc repro -s prepare@{dataset}`"
        )
    return declared


def _lines(one: "Strategy", dataset: str) -> Iterable[str]:
    from finetune import audits, recipe_words
    from finetune.tables import aligned

    yield f"{one.name}: {one.line}"
    options = recipe_words.own_settings(one.options, {})
    yield f"plan {one.plan}{options and f' ({options})'}, from {one.initialisation} weights"
    if one.paper:
        yield one.paper
    recipe = one.recipe
    if solved := all("solve" in phase["adds"] for phase in one.phases):  # no steps, no rates, no batches
        words = [recipe_words.solver(), f"weight decay {recipe.weight_decay:g}", recipe_words.epochs(recipe.epochs)]
    else:
        words = [recipe_words.optimizer(recipe.optimizer), f"lr {recipe.lr:g}"]
        words += [f"schedule {recipe_words.schedule(recipe.schedule)}", f"weight decay {recipe.weight_decay:g}"]
        words += [recipe_words.epochs(recipe.epochs), f"batches of {recipe.batch_size}"]
    words += [f"augmentation {recipe.augmentation.name}", *recipe_words.extras(recipe, solved)]
    yield f"recipe of {dataset}: {'; '.join(words)}"
    rows = audits.by_group(one.audit, recipe.lr)
    for number, phase in enumerate(one.phases):
        first, last = phase["epochs"]
        own = [row for row in rows if row["phase"] == number]
        moved, of_all = (sum(row[key] for row in own) for key in ("moved", "parameters"))
        epochs = f"epoch{'s' if last > first else ''} {first}{f' to {last}' if last > first else ''}"
        added = {"penalty": "a penalty is added to the loss", "solve": "the head is solved for at once"}
        added |= {"scales": "LR scales are measured anew each epoch"}
        yield ""
        yield "; ".join(
            [f"phase {number + 1} of {len(one.phases)}, {epochs}", *(added[what] for what in phase["adds"])]
        )
        head = ("group", "blocks", "tensors", "parameters", "trained", "LR scale", "LR", "decay", "BatchNorm")
        unknown = "measured" if "scales" in phase["adds"] else "–"
        yield from aligned([head, *(_cells(row, recipe.lr, unknown) for row in own)], right=range(2, 8))
        yield f"{moved:,} parameters trained, {of_all - moved:,} frozen"
    if len(one.phases) > 1:
        moved, of_all = audits.trained(one.audit)
        yield f"\nin any phase: {moved:,} parameters trained; {of_all - moved:,} frozen throughout"


def _cells(row: Mapping[str, Any], lr: float, unknown: str) -> Sequence[str]:
    """A group's row; `unknown` stands for a rate that is not known beforehand."""
    blocks, counts = _spans(row["blocks"]), [f"{row[key]:,}" for key in ("tensors", "parameters")]
    if not row["moved"]:
        return row["group"], blocks, *counts, "frozen", "–", "–", "–", row["batchnorm"] or "–"
    trained = "all" if row["moved"] == row["parameters"] else f"{row['moved']:,}"
    scale = row["lr_scale"]
    rates = (unknown, unknown) if scale is None else (f"{scale:g}", f"{lr * scale:g}")
    return row["group"], blocks, *counts, trained, *rates, f"{row['weight_decay']:g}", row["batchnorm"] or "–"


def _spans(blocks: Sequence[str]) -> str:
    """features.0, features.1, features.2, classifier -> features.0–2, classifier."""
    spans: list[list[str]] = []
    for block in blocks:
        number = block.removeprefix("features.")
        if spans and number.isdecimal() and spans[-1][-1] == str(int(number) - 1):
            spans[-1].append(number)
        else:
            spans.append([number])
    texts = [span[0] if len(span) == 1 else f"{span[0]}–{span[-1]}" for span in spans]
    return ", ".join(f"features.{text}" if text[0].isdecimal() else text for text in texts)


def _trained(one: "Strategy") -> tuple[str, str]:
    from finetune import audits

    moved, of_all = audits.trained(one.audit)
    return f"{moved:,}", f"{moved / of_all:.1%}"


def _groups(one: "Strategy") -> str:
    names = list(dict.fromkeys(group for phase in one.phases for group in phase["groups"]))
    listed = ", ".join(names) if len(names) <= _MOST_NAMED else f"{len(names)}: {names[0]} … {names[-1]}"
    return listed if len(one.phases) == 1 else f"{listed}; {len(one.phases)} phases"
