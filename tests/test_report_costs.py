from pathlib import Path

import pytest

from finetune import report_costs
from finetune.comparison import compare
from finetune.params import Params
from finetune.study import Layout, Run
from synthetic_study import make_params, older, write_run, write_toy_study


@pytest.fixture
def toy(tmp_path: Path) -> str:
    return _section(tmp_path, write_toy_study(tmp_path))


def _section(root: Path, params: Params) -> str:
    (root / "report").mkdir()
    return report_costs.section(compare(params, Layout(root)), root / "report")


def test_costs_are_listed_beside_those_of_the_baseline(toy: str) -> None:
    # 5 and 7, and 5.5 twice, seconds an epoch; 5.5 : 6 is 0.92
    assert "| toy | `same_lr` | 2 | 2.000 | 1.00 | 120.0 | 1.00 | 300 ± 0 | 1.00 | 6.0 ± 1.4 | 1.00 |" in toy
    assert "| toy | `separate_lr` | 2 | 2.000 | 1.00 | 120.0 | 1.00 | 300 ± 0 | 1.00 | 5.5 ± 0.0 | 0.92 |" in toy


def test_the_baseline_is_named(toy: str) -> None:
    assert "×: relative to `same_lr`." in toy


def test_other_costs_are_listed_per_strategy(toy: str) -> None:
    assert "| toy | `same_lr` | 2 | 12 ± 3 | 7 ± 2 | 2.50 | 600 |" in toy


def test_a_runs_seconds_are_listed_by_phase(toy: str) -> None:
    # a tenth, seven tenths and two tenths of 10 and 14
    assert "| toy | `same_lr` | 2 | 4.0 ± 0.0 | 1.2 ± 0.3 | 8.4 ± 2.0 | 2.4 ± 0.6 | 0.2 ± 0.0 |" in toy


def test_accuracy_is_drawn_over_cost(toy: str, tmp_path: Path) -> None:
    assert "](accuracy-over-cost.png)" in toy
    assert (tmp_path / "report" / "accuracy-over-cost.png").is_file()


def test_a_smaller_part_of_the_network_has_its_ratio(tmp_path: Path) -> None:
    write_run(tmp_path, Run("toy", "same_lr", 0), "1100")
    write_run(tmp_path, Run("toy", "separate_lr", 0), "1100", trainable=5_000)
    text = _section(tmp_path, make_params(seeds=(0,)))
    assert "| toy | `separate_lr` | 1 | 0.005 | < 0.01 | 120.0 | 1.00 |" in text


def test_what_older_runs_did_not_record_is_a_dash_and_is_not_drawn(tmp_path: Path) -> None:
    write_run(tmp_path, Run("toy", "same_lr", 0), "1100")
    older(tmp_path, Run("toy", "same_lr", 0))
    text = _section(tmp_path, make_params(("same_lr",), (0,)))
    assert "| toy | `same_lr` | 1 | 2.000 | 1.00 | – | – | 300 | 1.00 | 5.0 | 1.00 |" in text
    assert "| toy | `same_lr` | 1 | 10 | 8 | 2.50 | – |" in text
    assert "| toy | `same_lr` | 1 | – | – | – | – | – |" in text
    assert ".png" not in text and not list((tmp_path / "report").iterdir())
