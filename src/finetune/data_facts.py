"""Store -> what there is to know about a data set before training on it: counts, sizes, duplicates; as text, too."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from finetune import runs
from finetune.store import SPLITS, Split, Store

# What `finetune data show` writes into its folder.
SHEET, AUGMENTED, FACTS = "sheet.png", "augmented.png", "facts.json"
_MOST_CLASSES = 20  # that are listed one by one
_EXTREMES = 5
_EXAMPLES = 5  # pairs of duplicates that are named


def facts(store: Store, title: str, fraction: float = 1.0) -> dict[str, Any]:
    """The facts of a store, JSON-able.

    Args:
        fraction: of each class of train, that trainings take.

    Returns:
        dataset, title, edition, digest, classes (names), short_side (pixels that larger images were shrunk to), bytes
        (of the store), fraction, trained_on (images), duplicates (as the store's meta.json has them, None where it has
        none), and per split: images; per_class: min, median, max and the counts in the order of classes; sizes in
        pixels, as stored: distinct (how many heights x widths), short and long side with min, median, max; original:
        the same of the images before shrinking, None where the store does not tell. A split without images has
        neither.

    Raises:
        InputError: the store is broken.
    """
    meta = store.meta
    return {
        "dataset": meta["dataset"],
        "title": title,
        "edition": meta["edition"],
        "digest": store.digest,
        "classes": list(store.classes),
        "short_side": meta["prepare"]["short_side"],
        "bytes": sum(file.stat().st_size for file in store.path.iterdir()),
        "fraction": fraction,
        "trained_on": len(train_part(store, fraction)),
        "splits": {name: _split(store, name) for name in SPLITS},
        "duplicates": meta.get("duplicates"),
    }


def train_part(store: Store, fraction: float) -> Split:
    """The images that trainings take, as the stage train chooses them."""
    return store.split("train").part(fraction, store.meta["prepare"]["split_seed"])


def folder(root: Path, dataset: str) -> Path:
    """Where the facts and sheets of a data set lie."""
    return root / "sheets" / dataset


def read(root: Path, dataset: str) -> dict[str, Any] | None:
    """The facts that lie beside a data set's sheets; None where nobody has made them.

    Raises:
        InputError: the file is damaged.
    """
    path = folder(root, dataset) / FACTS
    return runs.read_json(path) if path.is_file() else None


def seen_by(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a recipe (as JSON) that decides what the network sees."""
    return {key: recipe[key] for key in ("image_size", "augmentation", "crop_pct")}


def lines(known: Mapping[str, Any], every_class: bool = False) -> Iterator[str]:
    """Facts as text for a terminal: classes, then splits, then duplicates.

    Args:
        every_class: list all classes; otherwise, where there are many, those of the fewest and the most images.
    """
    yield f"{known['title']}, edition {known['edition']}: {size(known)}"
    yield ""
    yield from _columns(_class_rows(known, every_class), left=1)
    yield ""
    yield from _columns(split_rows(known), left=1)
    yield f"  least – median – most; sizes as stored, larger short sides shrunk to {known['short_side']} px"
    if shrunk(known):
        yield "  original: before that"
    if known["fraction"] < 1:
        yield f"  trainings take {known['trained_on']:,} of the training images (fraction {known['fraction']:g})"
    yield ""
    yield duplicates(known)
    for one, other in (known["duplicates"] or {}).get("examples", [])[:_EXAMPLES]:
        yield f"  {printable(one)} = {printable(other)}"


def size(known: Mapping[str, Any]) -> str:
    return f"{len(known['classes'])} classes, {known['bytes'] / 1e6:,.1f} MB as prepared"


def split_rows(known: Mapping[str, Any]) -> list[list[str]]:
    """A row per split under a row of headings: images, images per class, pixels; where images were shrunk, a second
    row has the pixels before that."""
    rows = [["split", "images", "a class", "short side, px", "long side, px", "sizes"]]
    for name, split in known["splits"].items():
        rows.append([name, f"{split['images']:,}", _spread(split["per_class"]), *_size_cells(split["sizes"])])
        if _shrunk(split):
            rows.append([f"{name}, original", "", "", *_size_cells(split["original"])])
    return rows


def shrunk(known: Mapping[str, Any]) -> bool:
    """Whether images were larger than they are stored; False, too, where nobody has noted it."""
    return any(map(_shrunk, known["splits"].values()))


def printable(text: str) -> str:
    """A name that any terminal, font and file takes: the bytes of it that are not UTF-8 as \\xe9."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")


def duplicates(known: Mapping[str, Any]) -> str:
    """One or two sentences: how many images are there twice, and where."""
    found = known["duplicates"]
    if found is None:
        return "Exact duplicates: not counted in this store."
    pairs = list(combinations(SPLITS, 2))
    if not any(
        [*found["within"].values(), *(found.get(f"{one}/{other}") for one, other in pairs), found.get("left_out")]
    ):
        return "No exact duplicates, by pixels."
    within = ", ".join(f"{found['within'].get(name, 0)} within {name}" for name in SPLITS)
    across = "; ".join(f"{found.get(f'{one}/{other}', 0)} of {other} also in {one}" for one, other in pairs)
    text = f"Exact duplicates, by pixels: {within}; {across}."
    if found.get("left_out"):
        text += f" {found['left_out']} of the images given for validation were left out, as train has them too."
    if found.get("conflicting"):
        text += f" Of all images {found['conflicting']} have a twin of another class."
    return text


def _split(store: Store, name: str) -> dict[str, Any]:
    split, file = store.split(name), f"{SPLITS[name]}.original"
    counts = np.bincount(split.labels, minlength=len(store.classes))
    original = None
    if (store.path / f"{file}.npy").is_file():  # stores of earlier versions have none
        original = _sizes(store.array(file)[store.array(f"{name}.rows")])
    return {
        "images": len(split),
        "per_class": _summary(counts) | {"counts": counts.tolist()},
        "sizes": _sizes(split.index[:, 1:]),
        "original": original,
    }


def _sizes(pixels: np.ndarray) -> dict[str, Any] | None:
    """Of images x 2: height, width."""
    if not len(pixels):
        return None
    sides = np.sort(pixels, axis=1)
    distinct = len(np.unique(pixels, axis=0))
    return {"distinct": distinct, "short": _summary(sides[:, 0]), "long": _summary(sides[:, 1])}


def _size_cells(sizes: Mapping[str, Any] | None) -> list[str]:
    return [_spread(sizes["short"]), _spread(sizes["long"]), f"{sizes['distinct']:,}"] if sizes else ["–"] * 3


def _shrunk(split: Mapping[str, Any]) -> bool:
    original = split.get("original")  # facts of earlier versions lack it
    return original is not None and original != split["sizes"]


def _summary(values: np.ndarray) -> dict[str, Any]:
    return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}


def _spread(summary: Mapping[str, Any]) -> str:
    """Least – median – most; the one number where they are the same."""
    low, middle, high = (f"{summary[key]:,.1f}".removesuffix(".0") for key in ("min", "median", "max"))
    return low if low == high else f"{low} – {middle} – {high}"


def _class_rows(known: Mapping[str, Any], every_class: bool) -> list[list[str]]:
    counts = np.array([split["per_class"]["counts"] for split in known["splits"].values()])
    totals, names = counts.sum(0), known["classes"]

    def row(label: int) -> list[str]:
        return [printable(names[label]), *(f"{n:,}" for n in counts[:, label]), f"{totals[label]:,}"]

    rows = [["class", *known["splits"], "in all"]]
    if every_class or len(names) <= _MOST_CLASSES:
        return rows + [row(label) for label in range(len(names))]
    order = np.argsort(-totals, kind="stable").tolist()
    between = len(names) - 2 * _EXTREMES
    rows += [row(label) for label in order[:_EXTREMES]]
    rows += [[f"… {between} between (all: --classes)", *[""] * (len(rows[0]) - 1)]]
    return rows + [row(label) for label in order[-_EXTREMES:]]


def _columns(rows: Sequence[Sequence[str]], left: int) -> Iterator[str]:
    """Rows as aligned text: the first `left` columns to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        yield ("  " + "  ".join(cells)).rstrip()
