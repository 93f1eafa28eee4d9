"""Curves, confusion matrix and strategy dots: data in, PNG out, the same bytes for the same data.

A strategy has one colour and marker in every figure; both survive greyscale and the common colour-blindnesses
(Paul Tol, "Colour schemes", SRON/EPS/TN/09-002: high contrast first, then bright).
"""

import math
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

AXIS = {"acc": "top-1 accuracy (%)", "loss": "loss (nats)"}
_COLOURS = ("#004488", "#BB5566", "#DDAA33", "#000000", "#66CCEE", "#228833", "#AA3377", "#BBBBBB")
# As many as share no divisor with the colours: pairs repeat only after 88, and those of one colour are far apart.
_MARKERS = "osD^vP*X>d<"
_FIRST = ("same_lr", "separate_lr", "separate_lr_as_published", "from_scratch")
_LINES: dict[str, tuple[str, Literal["-", "--"]]] = {"train": ("training", "--"), "val": ("validation", "-")}
_MOST_TOGETHER, _IN_A_PART = 8, 6  # strategies whose curves one panel bears; how many it then has
_BEHIND = "#dddddd"
_DPI = 130
_MOST_LABELLED_CLASSES = 30
_MOST_ANNOTATED_CLASSES = 12


class Style(NamedTuple):
    """How a strategy looks."""

    colour: str
    marker: str


def styles(strategies: Sequence[str]) -> dict[str, Style]:
    """The look of each strategy: the four of the original report keep theirs in every study, others follow in order."""
    slot = {name: i for i, name in enumerate(_FIRST) if name in strategies}
    free = (i for i in count() if i not in slot.values())
    slots = {name: slot[name] if name in slot else next(free) for name in strategies}
    return {name: Style(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]) for name, i in slots.items()}


def curves(
    rows: Sequence[Mapping[str, Any]], metric: str, looks: Mapping[str, Style], titles: Mapping[str, str], path: Path
) -> None:
    """Draw `metric` ("acc" | "loss") over epochs: a panel per data set, training dashed, validation solid.

    `rows` are of `comparison["curves"]`: one per data set, strategy, seed and epoch; accuracies are fractions and
    a value may be None. Lines are means over seeds, bands reach from the lowest to the highest seed. More than eight
    strategies on one data set are shared out to several panels.
    """
    names = list(dict.fromkeys(row["dataset"] for row in rows))
    strategies = [name for name in looks if any(row["strategy"] == name for row in rows)]
    assert names, "no figure without data"
    if len(names) == 1 and len(strategies) > _MOST_TOGETHER:
        return _curves_in_parts(rows, metric, {name: looks[name] for name in strategies}, titles[names[0]], path)
    figure, places = panels(len(names), single=(7.0, 4.6), small=(4.4, 3.5))
    splits = set()
    for name, axes in zip(names, places, strict=True):
        for strategy in strategies:
            own = [row for row in rows if (row["dataset"], row["strategy"]) == (name, strategy)]
            splits |= {split for split in _LINES if _curve(axes, own, split, metric, looks[strategy])}
        _over_epochs(axes, metric, titles[name])
    handles = [_strategy_handle(name, looks[name]) for name in strategies]
    legend(figure, handles + [_split_handle(split, "#555555") for split in _LINES if split in splits])
    save(figure, path)
    return None


def _curves_in_parts(
    rows: Sequence[Mapping[str, Any]], metric: str, looks: Mapping[str, Style], title: str, path: Path
) -> None:
    """Draw one data set's curves of many strategies: some in each panel, and behind them the others in grey."""
    from matplotlib.lines import Line2D

    names, n = list(looks), math.ceil(len(looks) / _IN_A_PART)
    figure, places = panels(n, single=(0, 0), small=(4.4, 4.5), shared_y=True)
    own = {name: [row for row in rows if row["strategy"] == name] for name in names}
    behind = "val" if _by_epoch(rows, "val", metric) else "train"
    splits = set()
    for number, axes in enumerate(places):
        part = names[number * len(names) // n : (number + 1) * len(names) // n]
        for name in names:
            if name not in part:
                means = {epoch: np.mean(of_seeds) for epoch, of_seeds in _by_epoch(own[name], behind, metric).items()}
                axes.plot(list(means), list(means.values()), color=_BEHIND, linewidth=1)
        for name in part:
            splits |= {split for split in _LINES if _curve(axes, own[name], split, metric, looks[name])}
        _over_epochs(axes, metric, f"{title}, {number + 1} of {n}")
        axes.legend(
            handles=[_strategy_handle(name, looks[name]) for name in part],
            loc="upper center",
            bbox_to_anchor=(0.5, -0.16),
            ncols=2,
            frameon=False,
            fontsize=8.5,
        )
    handles = [_split_handle(split, "#555555") for split in _LINES if split in splits]
    legend(figure, [*handles, Line2D([], [], color=_BEHIND, label=f"the others, {_LINES[behind][0]}")])
    save(figure, path)


def run_curves(epochs: Sequence[Mapping[str, float]], title: str, path: Path) -> None:
    """Draw one run: accuracy and loss over epochs. `epochs` are the rows of its curves.csv, NaN where empty."""
    figure, places = panels(2, single=(0, 0), small=(4.6, 3.6))
    look = Style(_COLOURS[0], _MARKERS[0])
    drawn = []
    for axes, metric in zip(places, ("acc", "loss"), strict=True):
        drawn = [split for split in _LINES if _curve(axes, epochs, split, metric, look)]
        _over_epochs(axes, metric, "")
    figure.suptitle(title, fontsize=11)
    legend(figure, [_split_handle(split, look.colour) for split in drawn])
    save(figure, path)


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Draw how each true class (row) was predicted (column), in percent of its images.

    `labels` and `predictions` are integers in 0 … len(classes) - 1, one per image. A class without an image stays
    blank.
    """
    from matplotlib.figure import Figure

    n = len(classes)
    counts = np.zeros((n, n))
    np.add.at(counts, (labels, predictions), 1)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(100 * counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    side = 5.6 if n <= _MOST_ANNOTATED_CLASSES else 7.0
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    if n <= _MOST_LABELLED_CLASSES:
        axes.set_xticks(range(n), classes, rotation=90, fontsize=8)
        axes.set_yticks(range(n), classes, fontsize=8)
    if n <= _MOST_ANNOTATED_CLASSES:
        for i, j in zip(*np.nonzero(counts), strict=True):
            ink = "white" if shares[i, j] > 55 else "black"
            axes.text(j, i, f"{shares[i, j]:.0f}", ha="center", va="center", fontsize=8, color=ink)
    unit = "" if n <= _MOST_LABELLED_CLASSES else " (index)"
    axes.set_xlabel(f"predicted class{unit}")
    axes.set_ylabel(f"true class{unit}")
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.02)
    bar.set_label("share of the true class's images (%)")
    save(figure, path)


def panels(
    n: int, single: tuple[float, float], small: tuple[float, float], shared_y: bool = False
) -> "tuple[Figure, list[Axes]]":
    """A figure of n panels, at most three in a row; sizes in inches."""
    from matplotlib.figure import Figure

    columns = min(n, 2 if n in (2, 4) else 3)
    lines = math.ceil(n / columns)
    size = single if n == 1 else (small[0] * columns, small[1] * lines)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=shared_y).flat
    places = list(grid)
    for spare in places[n:]:
        spare.remove()
    for axes in places[:n]:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, places[:n]


def _curve(axes: "Axes", rows: Sequence[Mapping[str, Any]], split: str, metric: str, look: Style) -> bool:
    """Draw mean and band of a split's metric over epochs; says whether there was anything to draw."""
    values = _by_epoch(rows, split, metric)
    if not values:
        return False
    epochs = list(values)
    validation = split == "val"
    axes.plot(
        epochs,
        [np.mean(values[epoch]) for epoch in epochs],
        color=look.colour,
        linestyle=_LINES[split][1],
        linewidth=1.8 if validation else 1.1,
        marker=look.marker,
        markersize=4.5 if validation else 3.5,
        markerfacecolor=look.colour if validation else "white",
        markevery=max(1, len(epochs) // 8),
    )
    if any(len(seeds) > 1 for seeds in values.values()):
        low, high = ([reach(values[epoch]) for epoch in epochs] for reach in (min, max))
        axes.fill_between(epochs, low, high, color=look.colour, alpha=0.18 if validation else 0.08, linewidth=0)
    return True


def _by_epoch(rows: Sequence[Mapping[str, Any]], split: str, metric: str) -> dict[int, list[float]]:
    """Epoch -> a split's metric in each seed, as it is drawn; without epochs that have none."""
    key, scale = f"{split}/{metric}", 100 if metric == "acc" else 1
    values: dict[int, list[float]] = {}
    for row in rows:
        if row[key] is not None and not math.isnan(row[key]):
            values.setdefault(int(row["epoch"]), []).append(scale * row[key])
    return dict(sorted(values.items()))


def _over_epochs(axes: "Axes", metric: str, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=11)
    axes.set_xlabel("epoch")
    axes.set_ylabel(AXIS[metric])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    first, last = axes.dataLim.intervalx
    if first == last:
        axes.set_xlim(first - 1, last + 1)
    axes.grid(color="#e5e5e5", linewidth=0.6)


def _strategy_handle(name: str, look: Style) -> "Line2D":
    from matplotlib.lines import Line2D

    return Line2D([], [], color=look.colour, marker=look.marker, markersize=5, label=name)


def _split_handle(split: str, colour: str) -> "Line2D":
    from matplotlib.lines import Line2D

    label, style = _LINES[split]
    return Line2D([], [], color=colour, linestyle=style, linewidth=1.6, label=label)


def legend(figure: "Figure", handles: Sequence[Any]) -> None:
    columns = 3 if figure.get_figwidth() < 8 else 6
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def save(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG: the same bytes for the same figure, as no version of Matplotlib is noted in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI, bbox_inches="tight", pad_inches=0.1, metadata={"Software": None})
