"""Stand-in for Food-101: 14 dishes as textures, seen from above, sides of 64 to 96 pixels."""

from collections.abc import Callable
from math import pi

import numpy as np

from finetune.samples.shapes import BODY, Canvas, Colour, Rng, ellipse, hsv, rotation

Paint = Callable[[np.ndarray, float], None]  # an outline and a lightness, -1 to 1


def picture(label: int, rng: Rng) -> np.ndarray:
    """One image of dish `label`: uint8, height x width x 3."""
    width, height = (int(side) for side in rng.choice(((96, 72), (80, 80), (72, 96), (88, 64))))
    warm = rng.uniform(-0.07, 0.32)  # from red to green, whatever the dish
    depth, value, contrast = rng.uniform(0.25, 0.75), rng.uniform(0.45, 0.8), rng.uniform(0.25, 0.55)

    def colour(light: float) -> Colour:
        shade = min(max(value + contrast * light, 0.05), 1.0)
        return hsv(warm + 0.04 * light + rng.normal(0, 0.012), depth * (1 - 0.35 * max(light, 0)), shade)

    canvas = Canvas(width, height, colour(0.0))
    turn, shift = rotation(rng.uniform(0, 2 * pi)) * rng.uniform(0.75, 1.25), rng.uniform(-0.4, 0.4, 2)

    def paint(points: np.ndarray, light: float) -> None:
        placed = points @ turn + shift
        if np.abs(placed).max(axis=1).min() < 1.6:  # else out of sight
            canvas.fill(placed, colour(light))

    DISHES[CLASSES[label]](paint, rng)
    if rng.uniform() < 0.5:
        _plate(canvas, rng)
    return canvas.finish(rng, grain=2.5, light=0.3)


def _plate(canvas: Canvas, rng: Rng) -> None:
    """A plate's rim about the dish, and the table beyond it."""
    x, y = rng.uniform(-0.25, 0.25, 2)
    rim = hsv(rng.uniform(), rng.uniform(0, 0.3), rng.uniform(0.75, 1))
    table = hsv(rng.uniform(), 0.4, rng.uniform(0.2, 0.9))
    for radius, shade in ((rng.uniform(0.85, 1.0), rim), (rng.uniform(1.05, 1.2), table)):
        hole = ellipse(BODY, x, y, radius, radius).points[::-1]
        canvas.fill(np.vstack([hole, hole[:1], _FRAME, hole[:1]]), shade)


_FRAME = np.array([(x * 3.0, y * 3.0) for x, y in ((1, 0), (1, -1), (-1, -1), (-1, 1), (1, 1), (1, 0))])


def _dots(rng: Rng, gap: float) -> np.ndarray:
    """Points that cover the picture at about `gap` from each other, in random order: N x 2."""
    axis = np.arange(-2.0, 2.0, gap)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    return rng.permutation(grid + rng.uniform(-0.4, 0.4, grid.shape) * gap)


def _strokes(paint: Paint, rng: Rng, *, gap: float, length: float, width: float, along: float | None = None) -> None:
    bevelled = np.array([(0.5, 0.25), (0.4, 0.5), (-0.4, 0.5), (-0.5, 0.25)]) * (length + width, width)
    outline = np.vstack([bevelled, -bevelled])
    for x, y in _dots(rng, gap):
        angle = rng.uniform(0, 2 * pi) if along is None else along + rng.normal(0, 0.15)
        paint(outline @ rotation(angle) + (x, y), rng.uniform(-1, 1))


def _discs(paint: Paint, rng: Rng, gap: float, *rings: tuple[float, float]) -> None:
    """Discs of nested (radius, lightness)."""
    for x, y in _dots(rng, gap):
        grow, other = rng.uniform(0.85, 1.15), rng.uniform(-0.25, 0.25)
        for radius, light in rings:
            paint(ellipse(BODY, x, y, radius * grow, radius * grow * 0.95).points, light + other)


def _bands(
    paint: Paint, rng: Rng, *, gap: float, width: float, wave: float = 0.0, light: float = 0.8, across: bool = False
) -> None:
    t = np.linspace(-2, 2, 24)
    phase = rng.uniform(0, 2 * pi)
    for y in np.arange(-2, 2, gap):
        middle = y + wave * np.sin(t * 5 + phase)
        points = np.vstack([np.stack([t, middle - width / 2], 1), np.stack([t, middle + width / 2], 1)[::-1]])
        paint(points[:, ::-1] if across else points, light + rng.uniform(-0.2, 0.2))


def _tiles(paint: Paint, rng: Rng, *, gap: float, corners: int, light: float) -> None:
    for row, y in enumerate(np.arange(-2, 2, gap)):
        for x in np.arange(-2, 2, gap) + gap / 2 * (row % 2 if corners == 6 else 0):
            angle = np.arange(corners) * 2 * pi / corners + pi / corners
            radius = gap * 0.5 * rng.uniform(0.93, 1.07)
            tile = np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], 1)
            paint(tile, light + rng.uniform(-0.25, 0.25))


def _noodles(paint: Paint, rng: Rng) -> None:
    for _ in range(60):
        t, (x, y), angle = np.linspace(-1.2, 1.2, 9), rng.uniform(-1.4, 1.4, 2), rng.uniform(0, 2 * pi)
        line = np.stack([t, 0.25 * np.sin(t * rng.uniform(2, 4) + angle)], 1) @ rotation(angle) + (x, y)
        light = rng.uniform(-0.6, 1)
        side = (0, 0.035) @ rotation(angle)
        paint(np.vstack([line - side, (line + side)[::-1]]), light)


def _swirls(paint: Paint, rng: Rng) -> None:
    for x, y in _dots(rng, 0.75):
        for k, radius in enumerate(np.arange(0.48, 0.05, -0.085)):
            paint(ellipse(BODY, x + 0.015 * k, y, radius, radius).points, 0.7 if k % 2 else -0.6)


_LEAF = np.array([(-0.35, 0), (-0.1, 0.16), (0.15, 0.1), (0.35, 0), (0.15, -0.12), (-0.1, -0.15)])
_VEIN = np.array([(-0.3, -0.012), (0.3, -0.012), (0.3, 0.012), (-0.3, 0.012)])


def _leaves(paint: Paint, rng: Rng) -> None:
    for x, y in _dots(rng, 0.3):
        light, turn = rng.uniform(-1, 1), rotation(rng.uniform(0, 2 * pi))
        paint(_LEAF @ turn + (x, y), light)
        paint(_VEIN @ turn + (x, y), light + 0.6)


def _slices(paint: Paint, rng: Rng) -> None:
    for x, y in _dots(rng, 0.6):
        turn, light = rng.uniform(0, 2 * pi), rng.uniform(-0.3, 0.3)
        paint(ellipse(BODY, x, y, 0.42, 0.42).points, light - 0.5)
        for k in range(6):
            angle = turn + k * pi / 3
            wedge = np.array([(0.05, 0), (0.36, -0.15), (0.36, 0.15)]) @ rotation(angle) + (x, y)
            paint(wedge, light + 0.6)


def _straws(paint: Paint, rng: Rng) -> None:
    _strokes(paint, rng, gap=0.2, length=0.6, width=0.06, along=rng.uniform(0, pi))


def _waffles(paint: Paint, rng: Rng) -> None:
    _tiles(paint, rng, gap=0.34, corners=4, light=-0.7)


def _lattice(paint: Paint, rng: Rng) -> None:
    _bands(paint, rng, gap=0.45, width=0.2, light=0.5)
    _bands(paint, rng, gap=0.45, width=0.2, light=0.9, across=True)


DISHES: dict[str, Callable[[Paint, Rng], None]] = {
    "biscuits": lambda paint, rng: _discs(paint, rng, 0.62, (0.4, 0.5), (0.3, 0.2)),
    "chips": lambda paint, rng: _strokes(paint, rng, gap=0.3, length=0.7, width=0.14),
    "citrus_slices": _slices,
    "honeycomb": lambda paint, rng: _tiles(paint, rng, gap=0.3, corners=6, light=-0.6),
    "lasagne": lambda paint, rng: _bands(paint, rng, gap=0.3, width=0.16, wave=0.07),
    "lattice_pie": _lattice,
    "noodles": _noodles,
    "onion_rings": lambda paint, rng: _discs(paint, rng, 0.5, (0.33, 0.7), (0.2, -0.8)),
    "peas": lambda paint, rng: _discs(paint, rng, 0.2, (0.13, -0.3), (0.09, 0.5)),
    "rice": lambda paint, rng: _strokes(paint, rng, gap=0.15, length=0.16, width=0.06),
    "salad": _leaves,
    "straw_potatoes": _straws,
    "swirl_buns": _swirls,
    "waffles": _waffles,
}
CLASSES = tuple(DISHES)
