"""Calibration measures every combination and writes the fastest without touching the rest of params.yaml."""

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from finetune import calibration
from finetune.calibration import Measured, Setting, measure, settings, write
from finetune.cli import cli
from finetune.errors import InputError
from finetune.params import TrainingParams
from finetune.store import open_store
from finetune.strategies import build_plan
from finetune.study import Layout

TEXT = """# A study.
study: {name: s, edition: any, datasets: [toy], strategies: [same_lr], seeds: [0], baseline: same_lr}

training:
  image_size: 32 # pixels
  batch_size: 4
  precision: fp32 # fp32 | tf32 | bf16
  schedule: {name: exponential, gamma: 0.9} # per epoch
  device: cpu

datasets:
  toy: {reader: class_folders}
strategies:
  same_lr: {plan: same_lr}
"""
FAST = Setting("bf16", "contiguous", 1, 8)


def test_every_combination_is_tried_once() -> None:
    found = settings((1, 2), (16, 32))
    assert len(found) == len(set(found)) == 16
    assert FAST not in found


def test_the_fastest_comes_first_with_a_rate_of_each_round(toy_inputs: Path) -> None:
    store = open_store(Layout(toy_inputs).store("toy"))
    recipe = TrainingParams(image_size=32, batch_size=4, device="cpu")
    tried = [Setting("fp32", "channels_last", 1, 4), Setting("bf16", "channels_last", 1, 4)]
    found = measure(store, recipe, lambda model: build_plan(model, "same_lr", {}), tried, 2)
    assert {one.setting for one in found} == set(tried)
    assert found[0].rate >= found[1].rate > 0
    assert all(len(one.rates) == 2 for one in found)


def test_the_median_of_the_rounds_counts() -> None:
    assert Measured(FAST, (1.0, 9.0, 2.0)).rate == 2.0


def test_a_batch_that_the_store_cannot_fill_twice_is_refused(toy_inputs: Path) -> None:
    store = open_store(Layout(toy_inputs).store("toy"))
    tried = settings((1,), (20,))
    with pytest.raises(InputError, match="27 training images are too few for two batches"):
        measure(store, TrainingParams(device="cpu"), lambda model: build_plan(model, "same_lr", {}), tried, 1)


def test_a_recipe_for_a_gpu_is_pointed_to_the_sweep(toy_inputs: Path) -> None:
    store = open_store(Layout(toy_inputs).store("toy"))
    with pytest.raises(InputError, match=r"found training\.device cuda; `python -m benchmarks\.gpu sweep`"):
        measure(store, TrainingParams(device="cuda"), lambda model: build_plan(model, "same_lr", {}), [FAST], 1)


def test_what_is_written_leaves_comments_and_the_other_values(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(TEXT)
    write(file, FAST)
    expected = yaml.safe_load(TEXT)
    expected["training"] |= {"precision": "bf16", "memory_format": "contiguous", "threads": 1, "batch_size": 8}
    assert yaml.safe_load(file.read_text()) == expected
    for kept in ("# A study.", "image_size: 32 # pixels", "precision: bf16 # fp32 | tf32 | bf16", "# per epoch"):
        assert kept in file.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.fixture
def study(tmp_path: Path, toy_inputs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text(TEXT)
    (tmp_path / "prepared").symlink_to(toy_inputs / "prepared")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calibration, "measure", lambda *_: [Measured(FAST, (5.0,)), Measured(FAST, (1.0,))])
    return tmp_path / "params.yaml"


def test_the_command_prints_and_writes(study: Path) -> None:
    found = CliRunner().invoke(cli, ["calibrate"])
    assert found.exit_code == 0, found.output
    assert "5.0 images/s" in found.output
    assert yaml.safe_load(study.read_text())["training"]["precision"] == "bf16"


def test_a_dry_run_leaves_the_file(study: Path) -> None:
    assert CliRunner().invoke(cli, ["calibrate", "toy", "--dry-run"]).exit_code == 0
    assert study.read_text() == TEXT


def test_a_value_that_would_have_no_effect_is_refused(study: Path) -> None:
    text = TEXT.replace("{plan: same_lr}", "{plan: same_lr, training: {precision: fp32}}")
    study.write_text(text)
    found = CliRunner().invoke(cli, ["calibrate"])
    assert found.exit_code != 0
    assert "strategies.same_lr.training.precision stands over" in str(found.exception) + found.output
    assert study.read_text() == text
