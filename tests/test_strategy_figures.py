from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune import figures, strategy_figures

LOOKS = figures.styles(["same_lr", "from_scratch"])
TITLES = {"toy": "Toy", "other": "Other"}
BLUE = (0, 68, 136)


def _row(strategy: str, values: tuple[float, ...] = (0.6,), mb: float = 100.0, dataset: str = "toy") -> dict[str, Any]:
    test = {"values": list(values), "mean": float(np.mean(values))}
    return {"dataset": dataset, "strategy": strategy, "test": test, "cost": {"activation_mb": mb}}


def _of_colour(path: Path, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.asarray(Image.open(path).convert("RGB")) == colour).all(axis=2)


def test_strategy_dots_draw_every_strategy(tmp_path: Path) -> None:
    rows = [_row(strategy, (0.5, 0.7)) for strategy in LOOKS]
    strategy_figures.strategy_dots(rows, LOOKS, TITLES, tmp_path / "both.png")
    strategy_figures.strategy_dots(rows[1:], LOOKS, TITLES, tmp_path / "scratch.png")
    assert _of_colour(tmp_path / "both.png", BLUE).any()
    assert not _of_colour(tmp_path / "scratch.png", BLUE).any()


def _markers(path: Path, colours: tuple[tuple[int, int, int], ...]) -> list[float]:
    """Where in the plot, without its legend, markers of these colours lie: columns."""
    plot = slice(0, int(Image.open(path).height * 0.7))
    found = []
    for colour in colours:
        _, columns = np.nonzero(_of_colour(path, colour)[plot, 100:])
        found.append(float(np.median(columns)))
    return found


def test_memory_is_on_a_logarithmic_axis(tmp_path: Path) -> None:
    looks = {
        name: figures.Style(colour, "s") for name, colour in (("a", "#ff0000"), ("b", "#00ff00"), ("c", "#0000ff"))
    }
    rows = [_row(name, mb=mb) for name, mb in (("a", 1), ("b", 10), ("c", 100))]
    strategy_figures.accuracy_over_cost(rows, looks, TITLES, tmp_path / "cost.png")
    a, b, c = _markers(tmp_path / "cost.png", ((255, 191, 191), (191, 255, 191), (191, 191, 255)))
    assert c - b == pytest.approx(b - a, abs=2)
    assert b - a > 200


def test_accuracy_over_cost_draws_the_spread_over_seeds(tmp_path: Path) -> None:
    for name, values in (("same.png", (0.6, 0.6)), ("apart.png", (0.4, 0.8))):
        rows = [_row("from_scratch", (0.1,), 50.0), _row("same_lr", values)]
        strategy_figures.accuracy_over_cost(rows, LOOKS, TITLES, tmp_path / name)
    tints = []
    for name in ("same.png", "apart.png"):
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int)
        tints.append((abs(pixels - (102, 143, 184)) <= 2).all(axis=2).sum())  # the blue at 60 % over white
    assert tints[1] > tints[0] + 100


def test_the_legend_names_what_is_drawn_alone(tmp_path: Path) -> None:
    for name in LOOKS:
        strategy_figures.accuracy_over_cost([_row(name)], LOOKS, TITLES, tmp_path / f"{name}.png")
    face = (191, 208, 225)  # the blue at 25 % over white
    assert _of_colour(tmp_path / "same_lr.png", face).any()
    assert not _of_colour(tmp_path / "from_scratch.png", face).any()


def test_markers_that_would_cover_each_other_stand_side_by_side(tmp_path: Path) -> None:
    looks = {
        name: figures.Style(colour, "s") for name, colour in (("a", "#ff0000"), ("b", "#00ff00"), ("c", "#0000ff"))
    }
    looks["low"] = looks["a"]
    rows = [_row("a", (0.61,)), _row("b"), _row("c", (0.4,)), _row("low", (0.1,))]  # a covers b, the others nothing
    strategy_figures.accuracy_over_cost(rows, looks, TITLES, tmp_path / "cost.png")
    a, b, c = _markers(tmp_path / "cost.png", ((255, 191, 191), (191, 255, 191), (191, 191, 255)))
    assert a == pytest.approx(c, abs=1), "those that are not in each other's way stay where they belong"
    assert 10 < abs(b - c) < 25
    assert _of_colour(tmp_path / "cost.png", (153, 153, 153)).sum() > 5, "a line leads back"


def test_each_data_set_has_a_panel(tmp_path: Path) -> None:
    for name, more in (("one.png", []), ("two.png", [_row("same_lr", dataset="other")])):
        strategy_figures.accuracy_over_cost([_row("same_lr"), *more], LOOKS, TITLES, tmp_path / name)
    one, two = (Image.open(tmp_path / name).width for name in ("one.png", "two.png"))
    assert two > 1.2 * one


def test_accuracy_over_cost_needs_data(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        strategy_figures.accuracy_over_cost([], LOOKS, TITLES, tmp_path / "none.png")


def test_the_same_costs_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        strategy_figures.accuracy_over_cost([_row("same_lr")], LOOKS, TITLES, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
