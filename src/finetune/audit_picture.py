"""The network's blocks from image to logits, and what each phase of a strategy does with them, as a picture.

Rows in, PNG out, the same bytes for the same rows. A strip per phase, a box per block: its fill is coloured by the
learning-rate scale, or hatched where that is not known beforehand, and as high as the share of the block's parameters
that are trained; the circle beneath it says what BatchNorm does there.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune.figures import save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Inches; y grows downwards.
_LEFT, _BOXES, _GAP, _ADDED_GAP, _MARGIN = 1.75, 8.8, 0.06, 0.75, 0.1
_HEAD, _FOOT = 0.85, 0.75
_FROZEN, _EDGE, _INK = "#f2f2f2", "#9a9a9a", "#222222"
_UNKNOWN: dict[str, Any] = {"facecolor": "#b9d3ee", "edgecolor": "#33658a", "hatch": "xxxx", "linewidth": 0}
_COLOURS = "viridis"  # lightness rises all along, so greyscale keeps the order
_BATCHNORM = {"train": "full", "affine_only": "left", "eval": "none"}  # fill style of its circle
_BATCHNORM_WORDS = {  # and the room that they take
    "train": ("train: batch statistics", 1.7),
    "affine_only": ("affine_only: running statistics, weight or bias trained", 3.3),
    "eval": ("eval: running statistics, weight and bias fixed", 3.0),
}
_SHARES = (0.01, 0.1, 0.5, 1.0)  # with a tick
_SCALES = (0, 0.01, 0.1, 0.25, 0.5, 1, 2, 5, 10, 100)  # the same, on the colour bar


def draw(rows: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draw a strategy.

    Args:
        rows: of `audits.by_block`.
    """
    from matplotlib.figure import Figure

    phases = [[row for row in rows if row["phase"] == phase] for phase in sorted({row["phase"] for row in rows})]
    blocks = _placed(phases[0])
    width = _LEFT + max(x + w for x, w, _ in blocks.values()) + _MARGIN + 0.55
    strip = 0.95 if len(phases) <= 3 else 0.7 if len(phases) <= 8 else 0.5
    pitch = strip + 0.3
    height = _HEAD + len(phases) * pitch + _FOOT
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    axes.text(_MARGIN, 0.22, title, fontsize=12, va="center", color=_INK)
    _heads(axes, blocks)
    top = max(1.0, *(row["lr_scale"] or 0.0 for row in rows))
    for number, phase in enumerate(phases):
        y = _HEAD + number * pitch
        _strip(axes, phase, blocks, y, strip, top)
        _words(axes, phases, number, y, strip)
    _legend(axes, height - _FOOT + 0.1, rows, top)
    save(figure, path)


def _placed(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float, int]]:
    """Block -> left edge from the first box's, width (in proportion to the logarithm of its parameters), parameters."""
    sizes: dict[str, int] = {}
    for row in rows:
        sizes[row["block"]] = sizes.get(row["block"], 0) + row["parameters"]
    own = [block for block in sizes if block.startswith("features.")]
    own = sorted(own, key=lambda block: int(block.partition(".")[2])) + [b for b in sizes if b == "classifier"]
    unit = (_BOXES - _GAP * (len(own) - 1)) / sum(math.log10(sizes[block]) for block in own)
    placed, x = {}, 0.0
    added = [block for block in sizes if block not in own]
    for block in own + added:
        x += _ADDED_GAP if block in added[:1] else 0
        width = max(unit * math.log10(sizes[block]), 0.3)
        placed[block] = (x, width, sizes[block])
        x += width + _GAP
    return placed


def _heads(axes: "Axes", blocks: Mapping[str, tuple[float, float, int]]) -> None:
    """The blocks' names and sizes, above the first strip."""
    last = max((int(block.partition(".")[2]) for block in blocks if block.startswith("features.")), default=0)
    names = {"features.0": "stem", f"features.{last}": "last\nconv", "classifier": "head"}
    for block, (x, width, size) in blocks.items():
        centre = _LEFT + x + width / 2
        name = names.get(block, block.partition(".")[2] or block)
        axes.text(centre, 0.62, name, ha="center", va="bottom", fontsize=8, color=_INK, linespacing=0.9)
        axes.text(centre, 0.77, _size(size), ha="center", va="bottom", fontsize=6.5, color="#666666")
    axes.text(_LEFT - 0.42, 0.62, "image →", ha="right", va="bottom", fontsize=8, color=_INK)
    axes.text(_LEFT - 0.42, 0.77, "parameters", ha="right", va="bottom", fontsize=6.5, color="#666666")
    x, width, _ = blocks["classifier"]
    axes.text(_LEFT + x + width + 0.08, 0.62, "→ logits", ha="left", va="bottom", fontsize=8, color=_INK)


def _strip(
    axes: "Axes",
    rows: Sequence[Mapping[str, Any]],
    blocks: Mapping[str, tuple[float, float, int]],
    y: float,
    height: float,
    top: float,
) -> None:
    """A phase's boxes, and the ticks of their fills."""
    from matplotlib.patches import Rectangle

    for share in _SHARES if height > 0.6 else (0.01, 0.1, 1.0):
        at = y + height * (1 - math.sqrt(share))
        axes.plot([_LEFT - 0.07, _LEFT - 0.03], [at, at], color=_EDGE, linewidth=0.7)
        axes.text(_LEFT - 0.09, at, f"{share:.0%}", ha="right", va="center", fontsize=5.5, color="#666666")
    for block, (x, width, size) in blocks.items():
        own = [row for row in rows if row["block"] == block]
        box = (_LEFT + x, y)
        axes.add_patch(Rectangle(box, width, height, facecolor=_FROZEN, edgecolor="#cccccc", hatch="////", linewidth=0))
        share, below = 0.0, y + height
        for row in sorted((row for row in own if row["moved"]), key=lambda row: row["moved"]):
            share += row["moved"] / size
            above = y + height * (1 - math.sqrt(min(share, 1.0)))
            _fill(axes, (_LEFT + x, above, width, below - above), row["lr_scale"], top, y)
            below = above
        axes.add_patch(Rectangle(box, width, height, fill=False, edgecolor=_EDGE, linewidth=0.7))
        policies = [policy for policy in _BATCHNORM if any(row["batchnorm"] == policy for row in own)]
        for i, policy in enumerate(policies):
            at = _LEFT + x + width / 2 + 0.12 * (i - (len(policies) - 1) / 2)
            _circle(axes, at, y + height + 0.1, policy)


def _fill(
    axes: "Axes", box: tuple[float, float, float, float], scale: float | None, top: float, strip_top: float
) -> None:
    """One group's part of a block (left, top, width, height), and its scale, if it is known, written in it or above."""
    from matplotlib.patches import Rectangle

    x, y, width, height = box
    if scale is None:
        axes.add_patch(Rectangle((x, y), width, height + 0.004, **_UNKNOWN))
        return
    red, green, blue, _ = colour = _colour(scale / top)
    axes.add_patch(Rectangle((x, y), width, height + 0.004, facecolor=colour, linewidth=0))  # no seam beneath
    if y > strip_top + 0.01:
        axes.plot([x, x + width], [y, y], color="white", linewidth=0.8, solid_capstyle="butt")
    label = f"{scale:.2g}" if scale >= 0.01 else f"{scale:.1g}".replace("0.", ".")
    inside = height > 0.14
    ink = "white" if inside and 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"
    at = y + height / 2 if inside else max(y - 0.08, strip_top + 0.07)
    around = None if inside else {"facecolor": _FROZEN, "edgecolor": "none", "pad": 0.6}
    axes.text(x + width / 2, at, label, ha="center", va="center", fontsize=6.5, color=ink, bbox=around)


def _words(axes: "Axes", phases: Sequence[Sequence[Mapping[str, Any]]], number: int, y: float, height: float) -> None:
    """What a phase is, and where it lies in the training."""
    from matplotlib.patches import Rectangle

    lengths = [rows[0]["epochs"] for rows in phases]
    epochs, adds = lengths[number], phases[number][0]["adds"]
    total = sum(length or 0 for length in lengths)
    lines = [f"phase {number + 1} of {len(phases)}"] if len(phases) > 1 else []
    if epochs is None:
        lines.append("epochs not recorded")
    elif len(phases) == 1:
        lines.append(f"all {total} epochs" if total > 1 else "the one epoch")
    else:
        first = 1 + sum(lengths[:number])
        lines.append(
            f"epoch{'s' if epochs > 1 else ''} {first}{f'–{first + epochs - 1}' if epochs > 1 else ''}, "
            f"{epochs / total:.0%}"
        )
    words = {"penalty": "+ penalty", "scales": "scales measured", "solve": "head solved"}
    lines += [words[what] for what in adds.split()]
    axes.text(_MARGIN, y - 0.02, "\n".join(lines), va="top", fontsize=7.5, color=_INK, linespacing=1.15)
    if epochs is not None and len(phases) > 1:
        rail, at = _LEFT - _MARGIN - 0.45, y + height + 0.06
        axes.add_patch(Rectangle((_MARGIN, at), rail, 0.05, facecolor="#dddddd"))
        left = rail * sum(lengths[:number]) / total
        axes.add_patch(Rectangle((_MARGIN + left, at), rail * epochs / total, 0.05, facecolor=_INK))


def _legend(axes: "Axes", y: float, rows: Sequence[Mapping[str, Any]], top: float) -> None:
    from matplotlib.patches import Rectangle

    steps, bar = 120, 2.6
    for i in range(steps):
        colour = _colour(((i + 0.5) / steps) ** 2)
        axes.add_patch(Rectangle((_LEFT + bar * i / steps, y), bar / steps + 0.01, 0.13, facecolor=colour, linewidth=0))
    shown = -1.0
    for scale in _SCALES:
        at = math.sqrt(scale / top)
        if scale <= top and at - shown > 0.08:
            axes.text(_LEFT + bar * at, y + 0.16, f"{scale:g}", ha="center", va="top", fontsize=6.5, color=_INK)
            shown = at
    axes.text(_LEFT - 0.09, y + 0.065, "learning rate, × lr", ha="right", va="center", fontsize=7.5, color=_INK)
    x = _LEFT + bar + 0.35
    axes.add_patch(Rectangle((x, y), 0.3, 0.13, facecolor=_FROZEN, edgecolor="#cccccc", hatch="////", linewidth=0))
    axes.text(x + 0.36, y + 0.065, "frozen", va="center", fontsize=7.5, color=_INK)
    if any(row["lr_scale"] is None for row in rows):
        axes.add_patch(Rectangle((x, y + 0.22), 0.3, 0.13, **_UNKNOWN))
        axes.text(x + 0.36, y + 0.285, "trained, no fixed rate", va="center", fontsize=7.5, color=_INK)
    note = "Height of a fill: share of the block's parameters that are trained\n(square-root scale). Width of a box: "
    note += "logarithm of its parameters."
    axes.text(x + 1.0, y + 0.065, note, va="center", fontsize=7, color="#555555", linespacing=1.2)
    x, y = _LEFT, y + 0.5
    axes.text(_LEFT - 0.09, y, "BatchNorm", ha="right", va="center", fontsize=7.5, color=_INK)
    for policy, (words, room) in _BATCHNORM_WORDS.items():
        _circle(axes, x + 0.05, y, policy)
        axes.text(x + 0.15, y, words, va="center", fontsize=7.5, color=_INK)
        x += room


def _circle(axes: "Axes", x: float, y: float, policy: str) -> None:
    style: Any = _BATCHNORM[policy]
    axes.plot(
        [x], [y], marker="o", markersize=5, fillstyle=style, color=_INK, markerfacecoloralt="white", markeredgewidth=0.8
    )


def _colour(share: float) -> tuple[float, float, float, float]:
    """Of a scale, as a share of the highest: by its square root, so that small ones are told apart, too."""
    from matplotlib import colormaps

    return colormaps[_COLOURS](math.sqrt(share))


def _size(parameters: int) -> str:
    if parameters < 1000:
        return str(parameters)
    return f"{parameters / 1e6:.1f} M" if parameters >= 1e6 else f"{parameters / 1e3:.0f} k"
