from pathlib import Path
from typing import Any

import pytest

from finetune import report_settings, runs
from finetune.comparison import compare
from finetune.study import Layout, Run
from synthetic_study import AUDIT, make_params, write_run, write_toy_study


@pytest.fixture
def settings(tmp_path: Path) -> str:
    params = write_toy_study(tmp_path)
    return report_settings.section(params, compare(params, Layout(tmp_path)))


def _settings(root: Path, strategies: tuple[str, ...] = ("same_lr",), **extra: Any) -> str:
    for strategy in strategies:
        write_run(root, Run("toy", strategy, 0), "1100")
    params = make_params(strategies, (0,), **extra)
    return report_settings.section(params, compare(params, Layout(root)))


def test_settings_tell_sizes_and_recipe(settings: str) -> None:
    assert "| toy | 3 | 40 | 20 | 10 |" in settings
    words = "| toy | Adam | exponential, 0.9 an epoch | random_resized_crop | – | best |"
    assert f"{words} 224 | 40 | 64 | 0.001 | 0.0001 |" in settings


def test_settings_name_a_strategys_own_options(tmp_path: Path) -> None:
    text = _settings(tmp_path, ("same_lr", "separate_lr_as_published"))
    assert "| `separate_lr_as_published` | `separate_lr` | last_scale: 0.4, decay: False |" in text
    assert "| `same_lr` | `same_lr` | – |" in text


def test_a_sections_override_is_named_by_its_keys(tmp_path: Path) -> None:
    recipes = {"from_scratch": {"epochs": 80, "schedule": {"name": "cosine"}}}
    text = _settings(tmp_path, ("same_lr", "from_scratch"), recipes=recipes)
    assert "| `from_scratch` | `from_scratch` | training.epochs: 80, training.schedule.name: cosine |" in text


def test_the_one_optimizer_of_all_is_named_once(tmp_path: Path) -> None:
    training = {"optimizer": {"name": "sgd", "momentum": 0.5}}
    text = _settings(tmp_path, ("same_lr", "from_scratch"), training=training)
    assert "trained with SGD with Nesterov momentum 0.5; pretrained" in text


def test_another_optimizer_is_named_with_its_strategies(tmp_path: Path) -> None:
    recipes = {"from_scratch": {"optimizer": {"name": "sgd"}}}
    text = _settings(tmp_path, ("same_lr", "from_scratch", "separate_lr"), recipes=recipes)
    assert "trained with Adam, but for `from_scratch`: SGD with Nesterov momentum 0.9; pretrained" in text


def test_an_optimizer_of_one_data_set_is_not_forgotten(tmp_path: Path) -> None:
    for dataset in ("toy", "other"):
        write_run(tmp_path, Run(dataset, "same_lr", 0), "1100")
    params = make_params(("same_lr",), (0,), ("toy", "other"))
    params.datasets["other"].training["optimizer"] = {"name": "adamw"}
    text = report_settings.section(params, compare(params, Layout(tmp_path)))
    assert "trained with Adam, but for `same_lr` on other: AdamW; pretrained" in text


def test_what_is_on_besides_is_in_the_recipe(tmp_path: Path) -> None:
    training = {"label_smoothing": 0.1, "mixup": 0.2, "schedule": {"name": "cosine", "warmup_epochs": 2.0}}
    text = _settings(tmp_path, training=training)
    assert (
        "| toy | Adam | cosine, with 2 epochs of warm-up | random_resized_crop | label smoothing 0.1; mixup 0.2 |"
        in text
    )


def test_each_strategy_has_a_picture(tmp_path: Path) -> None:
    params = write_toy_study(tmp_path)
    text = report_settings.strategies(params, compare(params, Layout(tmp_path)), tmp_path / "report")
    assert text.count("](strategy-") == 2
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "strategy-same_lr.png",
        "strategy-separate_lr.png",
    ]
    assert "audited before the first step of its run on toy, seed 0" in text


def test_the_picture_is_of_the_first_data_set_and_seed(tmp_path: Path) -> None:
    drawn = []
    for frozen in ("toy/same_lr/1", "other/same_lr/0", "toy/same_lr/0"):
        root = tmp_path / frozen
        for dataset in ("toy", "other"):
            for seed in (0, 1):
                write_run(root, Run(dataset, "same_lr", seed), "1100")
        still = [row | {"lr": 0.0, "frozen": True, "batchnorm": "eval"} for row in AUDIT]
        runs.write_csv(root / "runs" / frozen / runs.AUDIT, still)
        params = make_params(("same_lr",), (0, 1), ("toy", "other"))
        report_settings.strategies(params, compare(params, Layout(root)), root / "report")
        drawn.append((root / "report" / "strategy-same_lr.png").read_bytes())
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_solves_for_its_head_is_not_said_to_be_trained_by_an_optimizer(tmp_path: Path) -> None:
    for strategy in ("same_lr", "last_layer"):
        write_run(tmp_path, Run("toy", strategy, 0), "1100")
    params = make_params(("same_lr", "last_layer"), (0,))
    compared = compare(params, Layout(tmp_path))
    for row in compared["audits"]:
        row["adds"] = "solve" if row["strategy"] == "last_layer" else "penalty"
    assert "trained with Adam, but for `last_layer`: L-BFGS; pretrained" in report_settings.section(params, compared)
