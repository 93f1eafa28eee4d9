"""Outlines in unit coordinates (x right, y down, the picture from -1 to 1), and how they get onto a canvas."""

from collections.abc import Iterable, Sequence
from colorsys import hsv_to_rgb
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Rng = np.random.Generator
Colour = tuple[int, int, int]  # RGB, 0 to 255


@dataclass(frozen=True)
class Part:
    """A filled outline: points N x 2 in unit coordinates, and which colour of the palette fills it."""

    points: np.ndarray
    tone: int


BODY, ACCENT, DARK, LIGHT = range(4)  # tones: places in a palette


def polygon(tone: int, *points: tuple[float, float]) -> Part:
    """A polygon through `points`."""
    return Part(np.array(points, float), tone)


def ellipse(tone: int, x: float, y: float, rx: float, ry: float, turn: float = 0.0) -> Part:
    """An ellipse about (x, y) with half-axes rx and ry, turned by `turn` radians."""
    points = _CIRCLE * (rx, ry)
    return Part(points @ rotation(turn) + (x, y), tone)


def stroke(tone: int, width: float, *points: tuple[float, float]) -> list[Part]:
    """A line of that width through `points`, with round ends and joints."""
    parts = [ellipse(tone, x, y, width / 2, width / 2) for x, y in points]
    for start, end in zip(np.array(points[:-1]), np.array(points[1:]), strict=True):
        along = (end - start) / max(np.hypot(*(end - start)), 1e-9)
        side = np.array([-along[1], along[0]]) * width / 2
        parts.append(Part(np.array([start + side, end + side, end - side, start - side]), tone))
    return parts


def rotation(turn: float) -> np.ndarray:
    """The 2 x 2 matrix that turns row vectors by `turn` radians."""
    cos, sin = np.cos(turn), np.sin(turn)
    return np.array([[cos, sin], [-sin, cos]])


@dataclass(frozen=True)
class Pose:
    """Where a drawing stands in the picture: points @ matrix + shift, in unit coordinates."""

    matrix: np.ndarray  # 2 x 2
    shift: np.ndarray  # 2

    def place(self, points: np.ndarray) -> np.ndarray:
        return points @ self.matrix + self.shift


def pose(rng: Rng, scale: tuple[float, float], turn: float, shift: float, stretch: float = 0.15) -> Pose:
    """A random pose: scale in that range, up to ±turn radians, ±shift and ±stretch of each side; half are mirrored."""
    size = rng.uniform(*scale) * (1 + rng.uniform(-stretch, stretch, 2))
    size[0] *= rng.choice((-1, 1))
    return Pose(np.diag(size) @ rotation(rng.uniform(-turn, turn)), rng.uniform(-shift, shift, 2))


class Canvas:
    """A picture being drawn `fine` times larger than it becomes, so that edges come out smooth."""

    def __init__(self, width: int, height: int, colour: Colour, fine: int = 2) -> None:
        self.image = Image.new("RGB", (width * fine, height * fine), colour)
        self.fine = fine
        self._draw = ImageDraw.Draw(self.image)

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Unit coordinates to this canvas's: the unit square is the largest one in the middle."""
        size = np.array(self.image.size)
        return points * (size.min() / 2) + size / 2

    def fill(self, points: np.ndarray, colour: Colour) -> None:
        self._draw.polygon(self.pixels(points).ravel().tolist(), fill=colour)

    def add(self, parts: Iterable[Part], at: Pose, palette: Sequence[Colour]) -> None:
        for part in parts:
            self.fill(at.place(part.points), palette[part.tone])

    def finish(self, rng: Rng, grain: float = 3.0, light: float = 0.2) -> np.ndarray:
        """The picture: uint8, height x width x 3, lit from a random side, with `grain` grey levels of noise."""
        small = np.asarray(self.image.reduce(self.fine), np.float32)
        height, width = small.shape[:2]
        side = rng.uniform(-light, light, 2)
        slope = np.linspace(-side[0], side[0], width) + np.linspace(-side[1], side[1], height)[:, None]
        noise = rng.standard_normal((height, width, 1), np.float32) * grain
        return np.clip(small * (1 + slope[..., None]) + noise, 0, 255).astype(np.uint8)


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """A colour of the wheel; all three from 0 to 1, the hue going round."""
    red, green, blue = hsv_to_rgb(hue % 1, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def palette(rng: Rng, bright: bool) -> list[Colour]:
    """Body, accent, dark and light in random hues; a bright body or a dim one, to stand out from its ground."""
    value = rng.uniform(0.7, 1.0) if bright else rng.uniform(0.2, 0.5)
    other = rng.uniform(0.3, 0.55) if bright else rng.uniform(0.55, 0.8)
    hue = rng.uniform()
    return [
        hsv(hue, rng.uniform(0.2, 0.9), value),
        hsv(hue + rng.uniform(0.15, 0.85), rng.uniform(0.3, 0.9), other),
        hsv(rng.uniform(), rng.uniform(0, 0.5), rng.uniform(0.02, 0.15)),
        hsv(rng.uniform(), rng.uniform(0, 0.2), rng.uniform(0.88, 1.0)),
    ]


_ANGLES = np.linspace(0, 2 * np.pi, 20, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
