"""Pictures of hand-written rows, looked at by their pixels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune import audit_picture

# Ends and middle of Matplotlib's viridis, which is where lr x 1 and lr x 0.25 lie: the root of 0.25 is 0.5.
YELLOW, TEAL, PURPLE = (253, 231, 36), (32, 144, 140), (68, 1, 84)
BAR_AND_ITS_TICKS = 60  # pixels of a colour that the colour bar alone may hold


def _row(block: str, moved: int, scale: float, batchnorm: str = "", **other: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"phase": 0, "epochs": 4, "adds": "", "block": block, "group": f"of {scale}"}
    row |= {"parameters": 1000, "moved": moved, "lr_scale": scale, "batchnorm": batchnorm}
    return row | other


def _head(**other: Any) -> dict[str, Any]:
    return _row("classifier", 1000, 1.0, **other)


def _draw(folder: Path, *rows: dict[str, Any], title: str = "title") -> np.ndarray:
    """The picture as int, height x width x 3."""
    path = folder / "picture.png"
    audit_picture.draw(rows, title, path)
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def _of_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (abs(picture - colour) <= 3).all(axis=2)


def _boxes(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The rows' counts of that colour above the legend."""
    return _of_colour(picture, colour)[:-120].sum(axis=1)


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        audit_picture.draw([_row("features.0", 500, 0.1, "train"), _head()], "title", tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(("scale", "colour"), [(1.0, YELLOW), (0.25, TEAL), (1e-9, PURPLE)])
def test_a_fill_has_the_colour_of_its_scale(tmp_path: Path, scale: float, colour: tuple[int, int, int]) -> None:
    rows = [_row("features.0", 1000, scale), _row("classifier", 1000, 0.7)]
    assert _boxes(_draw(tmp_path, *rows), colour).max() > 100


def test_a_scale_above_1_is_the_new_end_of_the_colours(tmp_path: Path) -> None:
    picture = _draw(tmp_path, _row("features.0", 1000, 4.0), _head())
    assert _boxes(picture, YELLOW).max() > 100  # x 4
    assert _boxes(picture, TEAL).max() > 100  # x 1, a quarter of it


def test_a_frozen_block_has_no_colour(tmp_path: Path) -> None:
    picture = _draw(tmp_path, _row("features.0", 0, 0.0, "eval"), _row("classifier", 0, 0.0))
    above_the_legend = picture[:-120]
    assert (np.ptp(above_the_legend, axis=2) <= 2).all()  # greys alone


def _height(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((_boxes(picture, colour) > 60).sum())


def test_a_fill_is_as_high_as_the_root_of_the_share_that_moves(tmp_path: Path) -> None:
    whole, part = (
        _height(_draw(tmp_path, _row("features.0", moved, 0.25), _row("classifier", 0, 0.0)), TEAL)
        for moved in (1000, 250)
    )
    assert part / whole == pytest.approx(0.5, abs=0.05)


def test_the_ticks_are_where_their_shares_are(tmp_path: Path) -> None:
    picture = _draw(tmp_path, _row("features.0", 0, 0.0), _row("classifier", 0, 0.0))
    first = np.flatnonzero(_of_colour(picture, (154, 154, 154))[:-120].sum(axis=0) > 100)[0]  # the first box's edge
    ticks = (picture[:-120, first - 7] < 200).all(axis=1)
    rows = np.flatnonzero(ticks & ~np.roll(ticks, 1))
    heights = (rows[-1] + (rows[-1] - rows[0]) / 9 - rows) / 123.5  # 1 % is a tenth of the height up, of 0.95 inches
    assert heights == pytest.approx([1, 0.5**0.5, 0.1**0.5, 0.1], abs=0.015)


def test_a_percent_can_be_seen(tmp_path: Path) -> None:
    picture = _draw(tmp_path, _row("features.0", 10, 0.25), _row("classifier", 0, 0.0))
    assert 8 <= _height(picture, TEAL) <= 20  # pixels of some 120


def test_two_groups_of_a_block_are_two_fills(tmp_path: Path) -> None:
    small, large = _row("features.0", 250, 1.0, parameters=250), _row("features.0", 750, 0.25, parameters=750)
    picture = _draw(tmp_path, large, small, _row("classifier", 0, 0.0))
    yellow, teal = (np.flatnonzero(_boxes(picture, colour) > 60) for colour in (YELLOW, TEAL))
    assert teal.max() <= yellow.min()  # the smaller one beneath
    assert len(yellow) / (len(yellow) + len(teal)) == pytest.approx(0.5, abs=0.06)  # the root of 0.25


def test_a_block_of_more_parameters_is_wider(tmp_path: Path) -> None:
    rows = (_row("features.0", 100, 0.25, parameters=100), _row("classifier", 10**4, 1.0, parameters=10**4))
    picture = _draw(tmp_path, *rows)
    small, large = (_boxes(picture, colour).max() for colour in (TEAL, YELLOW))
    assert large / small == pytest.approx(2, rel=0.02)  # logarithms: 4 to 2


@pytest.mark.parametrize("blocks", [0, 19])  # so many that those of one parameter are at the least width
def test_what_a_plan_adds_stands_apart_after_the_head(tmp_path: Path, blocks: int) -> None:
    below = [_row(f"features.{i}", 0, 0.0, parameters=2) for i in range(blocks)]
    picture = _draw(tmp_path, *below, _head(), _row("policy", 1000, 0.25))
    columns = [np.flatnonzero(_of_colour(picture, colour)[:-120].sum(axis=0) > 30) for colour in (YELLOW, TEAL)]
    assert 80 < columns[1].min() - columns[0].max() < 130  # 0.81 of an inch of 130 pixels


def test_each_phase_has_a_strip(tmp_path: Path) -> None:
    one = _draw(tmp_path, _head())
    two = _draw(tmp_path, _head(epochs=1), _head(phase=1, epochs=3))
    assert two.shape[0] - one.shape[0] == pytest.approx(1.25 * 130, abs=3)  # inches, pixels an inch
    assert 1.9 < _height(two, YELLOW) / _height(one, YELLOW) < 2.1


def _dark_shares_of_rails(picture: np.ndarray) -> list[float]:
    """Beneath each phase's words, top to bottom."""
    dark, light = (_of_colour(picture, colour)[:-120, :180].sum(axis=1) for colour in ((34, 34, 34), (221, 221, 221)))
    lines = np.flatnonzero((dark + light > 150) & (light > 0))
    first_of_each = lines[np.diff(lines, prepend=-9) > 1] + 2  # well inside
    return [float(dark[line] / (dark[line] + light[line])) for line in first_of_each]


def test_a_phases_share_of_the_epochs_is_dark_on_its_rail(tmp_path: Path) -> None:
    picture = _draw(tmp_path, _head(epochs=1), _head(phase=1, epochs=3))
    assert [round(share, 2) for share in _dark_shares_of_rails(picture)] == [0.25, 0.75]


def test_without_known_epochs_there_is_no_rail(tmp_path: Path) -> None:
    picture = _draw(tmp_path, _head(epochs=None), _head(phase=1, epochs=None))
    assert _dark_shares_of_rails(picture) == []


def _ink_of_the_circle(picture: np.ndarray) -> int:
    """Dark pixels in the row of circles, beneath the boxes of a picture of one phase."""
    return int((picture[-155:-135, 240:] < 60).all(axis=2).sum())


def test_the_circles_tell_batchnorm_policies_apart(tmp_path: Path) -> None:
    inks = [
        _ink_of_the_circle(_draw(tmp_path, _row("features.0", 0, 0.0, policy), _head()))
        for policy in ("", "eval", "affine_only", "train")
    ]
    assert inks[0] == 0
    assert inks[1] + 10 < inks[2] < inks[3] - 10


def test_a_block_under_two_policies_has_two_circles(tmp_path: Path) -> None:
    one, two = (
        _ink_of_the_circle(_draw(tmp_path, _row("features.0", 0, 0.0, "train"), _head(), *more))
        for more in ([], [_row("features.0", 0, 0.0, "eval")])
    )
    assert two > one


UNKNOWN = (185, 211, 238)  # between the strokes of the hatching


def test_what_has_no_fixed_rate_is_hatched_and_in_the_legend(tmp_path: Path) -> None:
    known = _draw(tmp_path, _row("features.0", 1000, 1.0), _head())
    picture = _draw(tmp_path, _row("features.0", 1000, None), _head())  # type: ignore[arg-type]
    assert _boxes(picture, UNKNOWN).max() > 30
    assert _of_colour(picture, UNKNOWN)[-120:].sum() > 50
    assert not _of_colour(known, UNKNOWN).any()
    assert _boxes(picture, YELLOW).sum() < _boxes(known, YELLOW).sum()
