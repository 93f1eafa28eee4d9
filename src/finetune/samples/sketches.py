"""Small drawings written down as text, and pictures of them before a horizon: the stand-ins for CIFAR-10 and -100.

A sketch is a list of parts between semicolons, drawn one over the other. A part is a kind, a tone (body, accent,
dark, light) and numbers in unit coordinates:

    oval TONE x y rx ry [turn]      turn in radians
    box  TONE left top right bottom
    poly TONE x y x y x y ...
    line TONE width x y x y ...     round ends
    star TONE count x y reach rx ry ovals around (x, y), pointing outwards

A kind with `2` behind it, such as `oval2`, is drawn twice: as written, and mirrored from left to right.
"""

from math import cos, pi, sin

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

SIZE = 32  # pixels
_TONES = {"body": BODY, "accent": ACCENT, "dark": DARK, "light": LIGHT}


def parse(sketch: str) -> list[Part]:
    """The parts of a sketch."""
    return [part for words in sketch.split(";") for part in _parts(*words.split())]


def picture(parts: list[Part], rng: Rng, turn: float = 0.4) -> np.ndarray:
    """One image of a parsed sketch: uint8, 32 x 32 x 3; `turn` is how far it may lean, in radians."""
    bright = bool(rng.integers(2))
    canvas = _horizon(rng, bright)
    canvas.add([_wobbled(part, rng) for part in parts], pose(rng, (0.6, 1.0), turn, 0.25), palette(rng, bright))
    return canvas.finish(rng, grain=0.0)


def _parts(kind: str, tone_name: str, *numbers: str) -> list[Part]:
    tone, n = _TONES[tone_name], [float(number) for number in numbers]
    if kind.endswith("2"):
        once = _parts(kind[:-1], tone_name, *numbers)
        return [*once, *(Part(part.points * (-1, 1), tone) for part in once)]
    pairs = list(zip(n[-2::-2], n[-1::-2], strict=False))[::-1]  # (x, y) from the end: a leading width is left out
    match kind:
        case "oval":
            return [ellipse(tone, *n)]
        case "box":
            left, top, right, bottom = n
            return [polygon(tone, (left, top), (right, top), (right, bottom), (left, bottom))]
        case "poly":
            return [polygon(tone, *pairs)]
        case "line":
            return stroke(tone, n[0], *pairs)
        case "star":
            count, x, y, reach, rx, ry = n
            turns = np.arange(count) * 2 * pi / count - pi / 2
            return [ellipse(tone, x + reach * cos(t), y + reach * sin(t), rx, ry, t) for t in turns]
    raise AssertionError(f"unknown kind of part '{kind}'")


def _wobbled(part: Part, rng: Rng) -> Part:
    """The part a little out of place and size, so that no two pictures share an outline."""
    middle = part.points.mean(axis=0)
    points = (part.points - middle) * rng.uniform(0.9, 1.1, 2) + middle + rng.uniform(-0.03, 0.03, 2)
    return Part(points, part.tone)


def _horizon(rng: Rng, bright_figure: bool) -> Canvas:
    """A sky, a ground at a random height and slope, clouds or bushes; darker behind a bright figure."""
    low, high = (0.15, 0.55) if bright_figure else (0.65, 1.0)

    def shade() -> tuple[int, int, int]:
        return hsv(rng.uniform(), rng.uniform(0.05, 0.6), rng.uniform(low, high))

    canvas = Canvas(SIZE, SIZE, shade(), fine=3)
    left, right = rng.uniform(-0.2, 0.9) + rng.uniform(-0.2, 0.2, 2)
    canvas.fill(np.array([(-2, left), (2, right), (2, 2), (-2, 2)]), shade())
    for _ in range(rng.integers(1, 6)):
        x, y, radius = rng.uniform(-1.2, 1.2), rng.uniform(-1, 1), rng.uniform(0.08, 0.35)
        canvas.fill(ellipse(BODY, x, y, radius * rng.uniform(1, 2), radius).points, shade())
    return canvas
