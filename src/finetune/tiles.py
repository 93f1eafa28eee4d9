"""Rows of small pictures with a label before each, as one PNG: the same bytes for the same pictures."""

import io
import os
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GAP = 4  # pixels between tiles
_GUTTER, _HEAD, _HEADING, _MARGIN = 196, 54, 20, 12  # pixels
_LINE = 25  # characters of a label
_MOST_BYTES = 600_000  # above it, a picture is saved with 256 colours
_BACKGROUND, _GREY = 0xF2, "#666666"
# Beside Matplotlib's own, where they are installed: for names in Chinese, Japanese, Korean, Arabic, Hindi, Thai, ….
_FONTS = (
    *(f"Noto Sans CJK {region}" for region in ("SC", "TC", "JP", "KR")),
    *("Source Han Sans", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "PingFang SC"),
    *("Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "SimHei", "Yu Gothic", "Malgun Gothic"),
    *("Noto Sans", "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai", "Arial Unicode MS", "Unifont"),
)


class Tiles:
    """Rows of tiles with a label before each, under a caption."""

    def __init__(self, rows: int, columns: int, tile: int, headings: Sequence[str] = ()) -> None:
        from matplotlib.figure import Figure

        self._tile, self._head = tile, _HEAD + (_HEADING if headings else 0)
        width = _GUTTER + columns * (tile + GAP) + _MARGIN
        height = self._head + rows * (tile + GAP) + _MARGIN
        self._canvas = np.full((height, width, 3), 255, np.uint8)
        self._figure = Figure(figsize=(width / 100, height / 100), dpi=100)
        for column, text in enumerate(headings):
            top, left = self._corner(0, column)
            self._text(left + tile // 2, top - 5, text, size=9, ha="center", va="bottom")

    def tile(self, row: int, column: int, image: np.ndarray) -> None:
        """Show an image whole, in the middle of its tile."""
        top, left = self._corner(row, column)
        fitted = _fit(image, self._tile)
        height, width = fitted.shape[:2]
        self._canvas[top : top + self._tile, left : left + self._tile] = _BACKGROUND
        top, left = top + (self._tile - height) // 2, left + (self._tile - width) // 2
        self._canvas[top : top + height, left : left + width] = fitted

    def label(self, row: int, name: str, note: str) -> None:
        top = self._corner(row, 0)[0] + self._tile // 2
        shown = textwrap.wrap(
            drawable(name).replace("_", " "), _LINE, max_lines=2, placeholder=" …", break_on_hyphens=False
        )
        self._text(_GUTTER - 10, top + 4, "\n".join(shown), size=9.5, ha="right", va="bottom")
        self._text(_GUTTER - 10, top + 8, note, size=8, ha="right", va="top", color=_GREY)

    def caption(self, title: str, text: str) -> None:
        self._text(_MARGIN, 8, drawable(title), size=13, va="top", weight="bold")
        self._text(_MARGIN, 29, text, size=9, va="top", color=_GREY)

    def save(self, path: Path) -> None:
        """Write a PNG, whole."""
        self._figure.figimage(self._canvas)
        drawn = io.BytesIO()
        self._figure.savefig(drawn, format="png", dpi=100)
        saved = _png(Image.open(drawn).convert("RGB"))
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.write_bytes(saved)
        aside.replace(path)

    def _corner(self, row: int, column: int) -> tuple[int, int]:
        return self._head + row * (self._tile + GAP), _GUTTER + column * (self._tile + GAP)

    def _text(self, x: float, y: float, text: str, size: float, **look: str) -> None:
        """Text at a pixel, counted from the top left corner; no part of a class's name is mathematics."""
        height, width = self._canvas.shape[:2]
        style: dict[str, Any] = {"fontsize": size, "fontfamily": list(_fonts()), "parse_math": False, **look}
        self._figure.text(x / width, 1 - y / height, text, **style)


def drawable(text: str) -> str:
    """The text, if an installed font has all of its letters; otherwise those that none has as escapes, \\u4e2d."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [get_font(findfont(FontProperties(family=name))) for name in _fonts()]

    def escaped(letter: str) -> str:
        if letter.isspace() or any(font.get_char_index(ord(letter)) for font in fonts):
            return letter
        return letter.encode("unicode_escape").decode()

    return "".join(map(escaped, text))


@cache
def _fonts() -> tuple[str, ...]:
    """Of the fonts known here those that are installed, Matplotlib's own first."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return ("DejaVu Sans", *(name for name in _FONTS if name in installed))


def _png(picture: Image.Image) -> bytes:
    """A picture (RGB) as PNG; a large one with 256 colours, of which white and the tiles' grey are exact."""
    saved = io.BytesIO()
    picture.save(saved, "PNG", optimize=True)
    if saved.tell() <= _MOST_BYTES:
        return saved.getvalue()
    kept = {254: 0xFF, 255: _BACKGROUND}
    colours = picture.quantize(254, Image.Quantize.FASTOCTREE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*(colours + [0] * 762)[:762], *(level for level in kept.values() for _ in range(3))])
    indices = np.array(picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG))
    pixels = np.asarray(picture)
    for index, level in kept.items():  # Pillow looks colours up coarsely
        indices[(pixels == level).all(-1)] = index
    few = Image.fromarray(indices, "P")
    few.putpalette(palette.getpalette() or [])
    saved = io.BytesIO()
    few.save(saved, "PNG", optimize=True)
    return saved.getvalue()


def _fit(image: np.ndarray, side: int) -> np.ndarray:
    """Resize an image to fit a square; where the square is a whole number of times larger, without smoothing."""
    height, width = image.shape[:2]
    if side % max(height, width) == 0:
        times = side // max(height, width)
        return image.repeat(times, 0).repeat(times, 1)
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
