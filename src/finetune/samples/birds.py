"""Stand-in for CUB-200-2011: 20 look-alike birds (4 builds x 5 plumages) on a twig before foliage."""

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
)  # fmt: skip

_BUILDS = ("Finch", "Longbill", "Crestling", "Streamer")
_PLUMAGES = ("Plain", "Barred", "Spotted", "Hooded", "Collared")
CLASSES = tuple(f"{i + 1:03d}.{p}_{b}" for i, (b, p) in enumerate((b, p) for b in _BUILDS for p in _PLUMAGES))


def picture(label: int, rng: Rng) -> np.ndarray:
    """One image of species `label`: uint8, sides of 64 to 96 pixels."""
    build, plumage = _BUILDS[label // len(_PLUMAGES)], _PLUMAGES[label % len(_PLUMAGES)]
    width, height = (int(side) for side in rng.choice(((96, 72), (80, 80), (88, 64), (72, 88))))
    bright = bool(rng.integers(2))
    canvas = _foliage(width, height, rng, bright)
    at = pose(rng, (0.62, 0.95), 0.35, 0.18)
    left, right = rng.uniform(0.45, 0.75, 2)
    twig = stroke(DARK, rng.uniform(0.07, 0.12), (-2.5, left), (0, 0.6), (2.5, right))
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
    tail = 1.25 if build == "Streamer" else 0.75
    droop = rng.uniform(-0.1, 0.3)
    plump = rng.uniform(0.34, 0.42)
    head = ellipse(DARK if plumage == "Hooded" else BODY, 0.48, -0.4, 0.27, 0.25)
    parts = [
        polygon(ACCENT, (-0.3, -0.02), (-0.4 - tail, droop), (-0.38 - tail, droop + 0.16), (-0.3, 0.25)),
        *stroke(DARK, 0.05, (0.0, 0.4), (0.02, 0.62)),
        *stroke(DARK, 0.05, (0.15, 0.38), (0.18, 0.62)),
        ellipse(BODY, 0.05, 0.05, 0.58, plump, -0.45),
        *_bill(build, rng),
        head,
    ]
    if build == "Crestling":
        top = rng.uniform(-1.0, -0.85)
        parts.append(polygon(head.tone, (0.62, -0.56), (0.22, top), (0.28, -0.4)))
    parts += _marks(plumage, rng)
    return [*parts, ellipse(LIGHT, 0.57, -0.44, 0.075, 0.075), ellipse(DARK, 0.58, -0.44, 0.045, 0.045)]


def _bill(build: str, rng: Rng) -> list[Part]:
    if build == "Longbill":
        return [polygon(ACCENT, (0.68, -0.46), (rng.uniform(1.3, 1.45), -0.22), (0.66, -0.28))]
    return [polygon(ACCENT, (0.66, -0.52), (rng.uniform(0.9, 0.98), -0.35), (0.66, -0.25))]


def _marks(plumage: str, rng: Rng) -> list[Part]:
    wing = ellipse(ACCENT, -0.12, 0.02, 0.42, 0.2, -0.4 + rng.uniform(-0.1, 0.1))
    if plumage == "Barred":  # pale bars across the wing
        bars = [stroke(LIGHT, 0.07, (x, -0.1 - x / 4), (x - 0.08, 0.16 - x / 4)) for x in (-0.36, -0.18, 0.0, 0.16)]
        return [wing, *(part for bar in bars for part in bar)]
    if plumage == "Spotted":  # dark spots on the breast
        spots = rng.uniform((0.05, -0.05), (0.42, 0.3), (7, 2))
        return [*(ellipse(DARK, x, y, 0.055, 0.055) for x, y in spots), wing]
    if plumage == "Collared":
        return [wing, *stroke(DARK, 0.1, (0.24, -0.3), (0.4, -0.18), (0.6, -0.16))]
    return [wing]
