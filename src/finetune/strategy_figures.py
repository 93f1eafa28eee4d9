"""Strategies side by side, by accuracy and by cost: data in, PNG out, in the looks of `figures.styles`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from finetune.figures import Style, legend, panels, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

_APART = 10  # points from one marker's middle to the next, at the least


class _Marker(NamedTuple):
    """A strategy's marker, where it belongs, and the bar over its seeds."""

    at: tuple[float, float]  # MB, percent
    marker: "Line2D"
    bar: "Line2D"


def strategy_dots(
    rows: Sequence[Mapping[str, Any]], looks: Mapping[str, Style], titles: Mapping[str, str], path: Path
) -> None:
    """Draw test top-1 per data set (panels) and strategy (lines): a dot per seed, a bar and a number at the mean.

    `rows` are `comparison["rows"]`.
    """
    names = list(dict.fromkeys(row["dataset"] for row in rows))
    assert names, "no figure without data"
    lines = {name: i for i, name in enumerate(looks)}
    height = 1.1 + 0.42 * len(lines)
    figure, places = panels(len(names), single=(7.0, height), small=(4.4, height), shared_y=True)
    for name, axes in zip(names, places, strict=True):
        for row in (row for row in rows if row["dataset"] == name):
            look, y = looks[row["strategy"]], lines[row["strategy"]]
            values, mean = 100 * np.array(row["test"]["values"]), 100 * row["test"]["mean"]
            axes.plot(values, np.full(len(values), y), look.marker, color=look.colour, alpha=0.6, markersize=6)
            axes.plot([mean, mean], [y - 0.3, y + 0.3], color=look.colour, linewidth=2)
            axes.annotate(f"{mean:.1f}", (mean, y - 0.32), ha="center", va="bottom", fontsize=8)
        axes.set_title(titles[name], fontsize=11)
        axes.set_xlabel("test top-1 accuracy (%)")
        axes.set_yticks(list(lines.values()), list(lines))
        axes.set_ylim(len(lines) - 0.4, -0.8)
        axes.margins(x=0.12)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    save(figure, path)


def accuracy_over_cost(
    rows: Sequence[Mapping[str, Any]], looks: Mapping[str, Style], titles: Mapping[str, str], path: Path
) -> None:
    """Draw test top-1 over the memory that a step's activations take: a panel per data set, a marker per strategy.

    `rows` are of `comparison["rows"]`, with activation_mb. Markers are at the mean over seeds, bars reach from the
    lowest to the highest; those that would cover each other stand side by side.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    names = list(dict.fromkeys(row["dataset"] for row in rows))
    assert names, "no figure without data"
    more = 0.1 * max(0, len(looks) - 8)  # inches, so that fewer markers are in each other's way
    figure, places = panels(len(names), single=(7.0, 4.6 + more), small=(4.4, 3.7 + more))
    drawn = []
    for name, axes in zip(names, places, strict=True):
        of_set = [row for row in rows if row["dataset"] == name]
        drawn.append([_marker(axes, row, looks[row["strategy"]]) for row in of_set])
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(titles[name], fontsize=11)
        axes.set_xlabel("kept for backward (MB, of one batch)")
        axes.set_ylabel("test top-1 accuracy (%)")
        axes.margins(0.08)
        axes.grid(color="#e5e5e5", linewidth=0.6)
    shown = {row["strategy"] for row in rows}
    legend(
        figure,
        [
            Line2D([], [], linestyle="", label=strategy, **_hollow(look))
            for strategy, look in looks.items()
            if strategy in shown
        ],
    )
    figure.draw_without_rendering()  # now it is known where the markers come to lie
    for axes, markers in zip(places, drawn, strict=True):
        _side_by_side(axes, markers)
    save(figure, path)


def _marker(axes: "Axes", row: Mapping[str, Any], look: Style) -> "_Marker":
    """A strategy's marker at the mean over seeds, and its bar."""
    x, test = row["cost"]["activation_mb"], row["test"]
    low, high = (100 * end(test["values"]) for end in (min, max))
    (bar,) = axes.plot([x, x], [low, high], color=look.colour, linewidth=1.2, alpha=0.6)
    (marker,) = axes.plot(x, 100 * test["mean"], **_hollow(look), clip_on=False)
    return _Marker((x, 100 * test["mean"]), marker, bar)


def _side_by_side(axes: "Axes", markers: "Sequence[_Marker]") -> None:
    """Move markers, with their bars, sideways until none covers another; a line leads back to where it was."""
    from matplotlib.transforms import ScaledTranslation

    scale = 72 / axes.figure.dpi
    at = [axes.transData.transform(marker.at) * scale for marker in markers]
    taken: list[tuple[float, float]] = []
    for i in sorted(range(len(at)), key=lambda i: -at[i][1]):
        x, y = at[i]
        places = (x + sign * n * _APART / 2 for n in range(2 * len(at) + 1) for sign in (1, -1))
        free = next(place for place in places if all(math.hypot(place - a, y - b) >= _APART for a, b in taken))
        taken.append((free, y))
        if free == x:
            continue
        moved = ScaledTranslation((free - x) / 72, 0, axes.figure.dpi_scale_trans)
        for line in (markers[i].marker, markers[i].bar):
            line.set_transform(axes.transData + moved)
        leader = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", markers[i].at, (free - x, 0), textcoords="offset points", arrowprops=leader, zorder=1)


def _hollow(look: Style) -> dict[str, Any]:
    """A marker through which those beneath it can be seen."""
    size = 11 if look.marker == "*" else 8  # points; a star's area is small
    face = (look.colour, 0.25)
    return {"marker": look.marker, "markersize": size, "markerfacecolor": face, "markeredgecolor": look.colour}
