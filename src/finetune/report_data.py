"""The report's section on the data: facts of each data set, and the sheets that were drawn of it."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune import data_facts
from finetune.study import Layout
from finetune.tables import markdown

_ALTERNATIVES = {data_facts.SHEET: "training images of {}", data_facts.AUGMENTED: "what the network sees of {}"}


def section(comparison: Mapping[str, Any], layout: Layout, folder: Path) -> str:
    """The section as Markdown; the sheets are copied into the report's `folder`.

    Of a data set without facts, or with those of other images than the comparison is of, it says how to make them.

    Raises:
        InputError: a data set's facts are damaged.
    """
    rows, head, notes, pictures, shrunk = [], [], [], [], False
    for dataset, of_set in comparison["datasets"].items():
        known, title = data_facts.read(layout.root, dataset), of_set["title"]
        if known is None or not _of_these_images(known, of_set):
            notes.append(f"- {title}: not looked at yet; {_how(dataset)}.")
            continue
        head, *splits = data_facts.split_rows(known)
        rows += [[title, *row] for row in splits]
        shrunk |= data_facts.shrunk(known)
        taken = known["trained_on"]
        part = f" Trained on {taken:,} of the training images." if known["fraction"] < 1 else ""
        notes.append(f"- {title}: {data_facts.size(known)}.{part} {data_facts.duplicates(known)}")
        pictures += [f"#### {title}", *_sheets(dataset, title, layout, folder)]
    parts = ["## Data"]
    if rows:
        parts += [
            markdown(("Data set", *head), rows, words=2),
            "Images a class and sides are given as least – median – most; sizes: how many different heights × widths. "
            "Images are as stored: those whose short side is longer than `prepare.short_side` were shrunk to it"
            + ("; original: before that." if shrunk else "."),
        ]
    return "\n\n".join([*parts, "\n".join(notes), *pictures])


def _of_these_images(known: Mapping[str, Any], of_set: Mapping[str, Any]) -> bool:
    if of_set.get("store_digest") not in (None, known["digest"]):  # comparisons of earlier versions have none
        return False
    counts = {split: found["images"] for split, found in known["splits"].items()} | {"train": known["trained_on"]}
    return all(counts[split] == images for split, images in of_set["images"].items())


def _sheets(dataset: str, title: str, layout: Layout, folder: Path) -> list[str]:
    """The Markdown of a data set's sheets."""
    shown = []
    for name, words in _ALTERNATIVES.items():
        sheet = data_facts.folder(layout.root, dataset) / name
        if sheet.is_file():
            copy = f"data-{dataset}-{name}"
            shutil.copyfile(sheet, folder / copy)
            shown.append(f"![{words.format(title)}]({copy})")
        else:
            shown.append(f"No picture of {words.format(title)}; {_how(dataset)}.")
    return shown


def _how(dataset: str) -> str:
    return f"`finetune data show {dataset} --augmented` makes it, and `finetune report` shows it then"
