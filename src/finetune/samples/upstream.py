"""The upstream set: 16 outlines x 8 textures on cluttered ground, for pretraining the sample backbone."""

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageDraw

from finetune.datasets import Contents, Example
from finetune.samples.shapes import Rng, pose, rotation

SIZE = 64  # pixels
Texture = Callable[[np.ndarray, np.ndarray, Rng], np.ndarray]  # x, y, rng -> 0 to 1
_FINE = 2  # the outline's oversampling
_GRID = np.stack(np.meshgrid(*[np.linspace(-1, 1, SIZE, dtype=np.float32)] * 2), axis=-1)  # SIZE x SIZE x (x, y)


def upstream(images: int, seed: int) -> Contents:
    """`images` pictures of the upstream set, uint8 64 x 64 x 3, classes in turn.

    Picture i depends on (seed, i) alone: `example(i, seed)` draws it, so a pool of processes may share the work.
    """
    examples: Iterator[Example] = (example(index, seed) for index in range(images))
    return Contents(CLASSES, examples)


def example(index: int, seed: int) -> Example:
    """Picture `index` of the upstream set."""
    label = index % len(CLASSES)
    rng = np.random.default_rng((seed, index))
    return Example("train", label, _picture(label, rng), f"upstream {seed}: {index}")


def _picture(label: int, rng: Rng) -> np.ndarray:
    outline, texture = list(OUTLINES.values())[label // len(TEXTURES)], list(TEXTURES.values())[label % len(TEXTURES)]
    ground = _blend(_pattern(list(TEXTURES.values())[rng.integers(len(TEXTURES))], rng), *_shades(rng, 0.25))
    figure = _blend(_pattern(texture, rng), *_shades(rng, 0.9))
    for _ in range(rng.integers(0, 3)):  # clutter behind the figure
        blot = _mask([_blot(rng)], rng, (0.15, 0.4), 0.9)
        ground += blot[..., None] * (_shades(rng, 0.5)[0] - ground)
    mask = _mask(outline(rng), rng, (0.55, 0.95), 0.2)[..., None]
    light = 1 + (_GRID @ rng.uniform(-0.2, 0.2, 2).astype(np.float32))[..., None]
    noise = rng.standard_normal((SIZE, SIZE, 1), np.float32) * rng.uniform(0, 8)
    return np.clip((ground + mask * (figure - ground)) * light + noise, 0, 255).astype(np.uint8)


def _shades(rng: Rng, contrast: float) -> tuple[np.ndarray, np.ndarray]:
    """Two RGB colours that differ by about `contrast` of the full range."""
    first = rng.uniform(0, 255, 3).astype(np.float32)
    away = np.where(first < 128, 1, -1) * rng.uniform(0.4, 1.0, 3).astype(np.float32)
    return first, np.clip(first + away * contrast * 255, 0, 255).astype(np.float32)


def _blend(field: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return low + field[..., None] * (high - low)


def _mask(outlines: list[np.ndarray], rng: Rng, scale: tuple[float, float], shift: float) -> np.ndarray:
    """Coverage 0 to 1 of the outlines in a random pose; every second outline is a hole."""
    image = Image.new("L", (SIZE * _FINE,) * 2)
    pen = ImageDraw.Draw(image)
    at = pose(rng, scale, np.pi, shift, stretch=0.25)
    for number, points in enumerate(outlines):
        pixels = (at.place(points) + 1) * (SIZE * _FINE / 2)
        pen.polygon(pixels.ravel().tolist(), fill=0 if number % 2 else 255)
    return np.asarray(image.reduce(_FINE), np.float32) / 255


# ------------------------------------------------------------------------------------------------ textures
def _pattern(texture: Texture, rng: Rng) -> np.ndarray:
    """A texture on the picture's grid, turned, shifted, scaled and slightly bent: SIZE x SIZE, 0 to 1."""
    grid = _GRID @ rotation(rng.uniform(0, 2 * np.pi)).astype(np.float32) + rng.uniform(0, 9, 2).astype(np.float32)
    grid += 0.06 * np.sin(grid[..., ::-1] * np.float32(rng.uniform(2, 5)))
    grid *= np.float32(rng.uniform(2.5, 5.0))
    return texture(grid[..., 0], grid[..., 1], rng)


def _edge(wave: np.ndarray) -> np.ndarray:
    return np.clip(wave * 3 + 0.5, 0, 1)


def _plain(x: np.ndarray, y: np.ndarray, rng: Rng) -> np.ndarray:
    return np.zeros_like(x)


def _stripes(x: np.ndarray, y: np.ndarray, rng: Rng) -> np.ndarray:
    return _edge(np.sin(x * np.pi))


def _waves(x: np.ndarray, y: np.ndarray, rng: Rng) -> np.ndarray:
    return _edge(np.sin((x + 0.5 * np.sin(y * 2.2)) * np.pi))


def _checks(x: np.ndarray, y: np.ndarray, rng: Rng) -> np.ndarray:
    return _edge(3 * np.sin(x * 2.6) * np.sin(y * 2.6))


def _dots(x: np.ndarray, y: np.ndarray, rng: Rng) -> np.ndarray:
    fx, fy = x % 1 - 0.5, y % 1 - 0.5
    return _edge((0.09 - fx * fx - fy * fy) * 6)


def _mesh(x: np.ndarray, y: np.ndarray, rng: Rng) -> np.ndarray:
    return _edge(np.maximum(np.sin(x * 4), np.sin(y * 4)) - 0.8)


def _bricks(x: np.ndarray, y: np.ndarray, rng: Rng) -> np.ndarray:
    row = np.floor(y * 1.6)
    fx, fy = np.abs((x * 0.8 + row / 2) % 1 - 0.5), np.abs(y * 1.6 % 1 - 0.5)
    return _edge((0.4 - np.maximum(fx, fy)) * 4)


def _clouds(x: np.ndarray, y: np.ndarray, rng: Rng) -> np.ndarray:
    coarse = rng.integers(0, 256, (9, 9), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32) / 255


TEXTURES = {
    "plain": _plain, "striped": _stripes, "wavy": _waves, "checked": _checks,
    "dotted": _dots, "meshed": _mesh, "bricked": _bricks, "clouded": _clouds,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ outlines
def _ring(points: int, radii: tuple[float, ...], turn: float = 0.0) -> np.ndarray:
    """A closed outline of `points` corners whose distance from the middle cycles through `radii`."""
    angle = np.arange(points) * 2 * np.pi / points + turn
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.resize(radii, points)[:, None]


def _blot(rng: Rng) -> np.ndarray:
    return _ring(24, (1.0,)) * (1 + 0.3 * np.sin(np.arange(24) * 2 * np.pi * rng.integers(1, 4) / 24))[:, None]


def _path(*xy: float) -> np.ndarray:
    return np.array(xy).reshape(-1, 2)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([16 * np.sin(t) ** 3, y], axis=1) / 17


def _drop() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    return np.stack([np.sin(t) * np.sin(t / 2) ** 2 * 0.9, np.cos(t)], axis=1)


def _moon(rng: Rng) -> list[np.ndarray]:
    t = np.linspace(-2.2, 2.2, 20)
    outer = np.stack([np.cos(t), np.sin(t)], axis=1)
    inner = outer[::-1] * (rng.uniform(0.1, 0.45), 1)
    return [np.concatenate([outer, inner]) - (0.3, 0)]


OUTLINES = {
    "disk": lambda rng: [_ring(28, (0.9,))],
    "hoop": lambda rng: [_ring(28, (0.95,)), _ring(28, (rng.uniform(0.45, 0.65),))],
    "triangle": lambda rng: [_ring(3, (1.0,))],
    "square": lambda rng: [_ring(4, (1.0,))],
    "bar": lambda rng: [_path(-1, -0.25, 1, -0.25, 1, 0.25, -1, 0.25)],
    "star": lambda rng: [_ring(10, (1.0, rng.uniform(0.35, 0.5)))],
    "cog": lambda rng: [_ring(32, (1.0, 1.0, 0.7, 0.7))],
    "cross": lambda rng: [_ring(12, (0.42, 1.0, 1.0), np.pi / 4)],
    "moon": _moon,
    "heart": lambda rng: [_heart()],
    "arrow": lambda rng: [_path(-1, -.22, .1, -.22, .1, -.7, 1, 0, .1, .7, .1, .22, -1, .22)],
    "drop": lambda rng: [_drop()],
    "elbow": lambda rng: [_path(-.8, -.9, -.2, -.9, -.2, .3, .8, .3, .8, .9, -.8, .9)],
    "tee": lambda rng: [_path(-.9, -.9, .9, -.9, .9, -.3, .3, -.3, .3, .9, -.3, .9, -.3, -.3, -.9, -.3)],
    "zigzag": lambda rng: [_path(-1, -.3, -.4, -.9, .2, -.1, .9, -.7, 1, -.1, .3, .8, -.4, -.1, -.9, .5)],
    "hourglass": lambda rng: [_path(-.7, -1, .7, -1, .15, 0, .7, 1, -.7, 1, -.15, 0)],
}  # fmt: skip

CLASSES = tuple(f"{texture} {outline}" for outline in OUTLINES for texture in TEXTURES)
