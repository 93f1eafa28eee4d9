"""Stand-in for CUB-200-2011: 16 look-alike birds (2 builds x 8 plumages) on a twig before foliage."""

from math import pi

import numpy as np

from finetune.samples.shapes import (
    ACCENT,
    BODY,
    DARK,
    LIGHT,
    Canvas,
    Part,
    Rng,
    ellipse,
    hsv,
    palette,
    polygon,
    pose,
    stroke,
)

_BUILDS = ("Finch", "Crestling")  # short bill and tail; crest, long bill and forked tail
_PLUMAGES = ("Plain", "Barred", "Spotted", "Hooded", "Collared", "Banded", "Pied", "Ringed")
CLASSES = tuple(f"{i + 1:03d}.{p}_{b}" for i, (b, p) in enumerate((b, p) for b in _BUILDS for p in _PLUMAGES))


def picture(label: int, rng: Rng) -> np.ndarray:
    """One image of species `label`: uint8, sides of 64 to 96 pixels."""
    build, plumage = _BUILDS[label // len(_PLUMAGES)], _PLUMAGES[label % len(_PLUMAGES)]
    width, height = (int(side) for side in rng.choice(((96, 72), (80, 80), (88, 64), (72, 88))))
    bright = bool(rng.integers(2))
    canvas = _foliage(width, height, rng, bright)
    at = pose(rng, (0.7, 1.0), 0.3, 0.15)
    left, right = rng.uniform(0.5, 0.85, 2)
    twig = stroke(DARK, rng.uniform(0.07, 0.12), (-2.5, left), (0, 0.68), (2.5, right))
    canvas.add([*twig, *_bird(build, plumage, rng)], at, palette(rng, bright))
    return canvas.finish(rng, grain=2.5)


def _foliage(width: int, height: int, rng: Rng, bright_figure: bool) -> Canvas:
    low, high = (0.1, 0.5) if bright_figure else (0.6, 1.0)
    hue, leaf = rng.uniform(0.15, 0.6), rng.uniform(0.12, 0.3)

    def shade() -> tuple[int, int, int]:
        return hsv(hue + rng.uniform(-0.12, 0.12), rng.uniform(0.1, 0.6), rng.uniform(low, high))

    canvas = Canvas(width, height, shade())
    for _ in range(rng.integers(12, 30)):
        x, y = rng.uniform(-1.5, 1.5, 2)
        canvas.fill(ellipse(BODY, x, y, leaf, leaf * rng.uniform(0.4, 0.8), rng.uniform(0, pi)).points, shade())
    return canvas


def _bird(build: str, plumage: str, rng: Rng) -> list[Part]:
    cap = DARK if plumage == "Hooded" else BODY
    return [
        *(_finch(rng) if build == "Finch" else _crestling(cap, rng)),
        *stroke(DARK, 0.06, (-0.08, 0.45), (-0.06, 0.68)),
        *stroke(DARK, 0.06, (0.14, 0.45), (0.17, 0.68)),
        ellipse(BODY, 0.02, 0.1, 0.64, rng.uniform(0.46, 0.54), -0.5),
        ellipse(cap, 0.38, -0.4, 0.36, 0.33),
        *_marks(plumage, rng),
        ellipse(LIGHT, 0.5, -0.46, 0.1, 0.1),
        ellipse(DARK, 0.52, -0.46, 0.06, 0.06),
    ]


def _finch(rng: Rng) -> list[Part]:
    """A short tail and a short bill."""
    droop = rng.uniform(0.25, 0.5)
    return [
        polygon(ACCENT, (-0.35, 0.05), (-0.85, droop), (-0.75, droop + 0.22), (-0.25, 0.4)),
        polygon(ACCENT, (0.64, -0.52), (rng.uniform(0.86, 0.94), -0.36), (0.64, -0.24)),
    ]


def _crestling(cap: int, rng: Rng) -> list[Part]:
    """A long forked tail that hangs below the twig, a long bill, and a crest."""
    spread = rng.uniform(0.1, 0.2)
    tips = ((-0.95 - spread, 0.85), (-0.7 + spread, 1.05))
    return [
        *(part for tip in tips for part in stroke(ACCENT, 0.15, (-0.35, 0.2), tip)),
        polygon(ACCENT, (0.62, -0.56), (rng.uniform(1.2, 1.35), -0.2), (0.6, -0.24)),
        polygon(cap, (0.66, -0.58), (rng.uniform(-0.2, -0.05), rng.uniform(-1.15, -1.0)), (0.05, -0.35)),
    ]


def _marks(plumage: str, rng: Rng) -> list[Part]:
    """The wing, and what tells the plumages apart: on the wing, the breast or the neck."""
    turn = -0.5 + rng.uniform(-0.1, 0.1)
    wing = ellipse(ACCENT, -0.16, 0.08, 0.46, 0.27, turn)
    under: list[Part] = []
    over: list[Part] = []
    match plumage:
        case "Barred":
            for x in (-0.36, -0.13, 0.1):
                over += stroke(LIGHT, 0.1, (x, -0.1 - x / 3), (x - 0.08, 0.28 - x / 3))
        case "Spotted":
            places = ((-0.42, 0.2), (-0.24, 0.04), (-0.18, 0.26), (-0.02, -0.06), (0.04, 0.14))
            over = [ellipse(DARK, x, y, 0.085, 0.085) for x, y in places + rng.uniform(-0.03, 0.03, (5, 2))]
        case "Collared":
            over = stroke(LIGHT, 0.14, (0.0, -0.28), (0.28, -0.08), (0.6, -0.06))
        case "Banded":
            for x, y in ((0.5, 0.1), (0.4, 0.28), (0.24, 0.44)):
                under += stroke(DARK, 0.08, (x - 0.28, y - 0.28), (x, y))
        case "Pied":
            under = [ellipse(LIGHT, 0.18, 0.2, 0.42, 0.3, turn)]
        case "Ringed":
            rings = ((LIGHT, 1.0), (ACCENT, 0.72), (DARK, 0.4))
            over = [ellipse(tone, -0.16, 0.08, 0.46 * r, 0.27 * r, turn) for tone, r in rings]
    return [*under, wing, *over]
