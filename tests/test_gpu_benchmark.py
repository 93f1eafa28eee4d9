"""`python -m benchmarks.gpu` on a CPU and the toy: what each command writes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from finetune import runs
from finetune.study import Layout, Run

ROOT = Path(__file__).parents[1]
MACHINE = {"date", "commit", "device", "python", "torch", "torchvision"}

Command = Callable[..., Result]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs a command in a work area of the test's own, on one thread whatever the recipe says."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    torch.set_num_threads(1)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    from benchmarks.gpu.__main__ import main

    return lambda *words: CliRunner().invoke(main, list(map(str, words)))


@pytest.fixture
def study(tmp_path: Path, tiny: dict[str, Any]) -> Path:
    """A params file of two strategies and two seeds, for a GPU."""
    tiny["study"] |= {"strategies": ["same_lr", "from_scratch"], "baseline": "same_lr"}
    tiny["training"] |= {"device": "cuda", "epochs": 40, "threads": 2, "augmentation": {"name": "random_resized_crop"}}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(tiny), encoding="utf-8")
    return path


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_check_finds_that_a_device_agrees_with_itself(command: Command, toy_inputs: Path, tmp_path: Path) -> None:
    layout = Layout(toy_inputs)
    where = ("--store", layout.store("toy"), "--backbone", layout.backbone, "--out", tmp_path / "out")
    done = command("check", "--device", "cpu", "--tiny", *where)
    assert done.exit_code == 0, done.output
    found = read(tmp_path / "out" / "agreement.json")
    assert set(found) == MACHINE | {"levels", "cpu_losses", "depthwise", "agree"}
    assert found["agree"] is True
    assert set(found["levels"]) == {"random_resized_crop", "pad_crop", "none"}
    assert max(found["levels"].values()) <= 1.01
    assert len(found["cpu_losses"]) == 2
    assert all(loss > 0 for loss in found["cpu_losses"])
    nothing = {"losses": [0.0, 0.0], "gradients": 0.0, "agree": True}
    assert found["depthwise"] == {"torch": nothing, "triton": nothing}


ALIKE = ([1.0, 2.0, 3.0], torch.tensor([3.0, 4.0]))  # losses, gradients


@pytest.mark.parametrize(
    ("levels", "losses", "gradients", "agree"),
    [
        (1.0, [1.0, 2.0, 3.0], [3.0, 4.0], True),
        (1.0, [1.000009, 2.03, 3.05], [3.0, 4.04], True),  # 0.9e-5 and 1.7e-2 of the losses, 0.8e-2 of the norm, 5
        (1.5, [1.0, 2.0, 3.0], [3.0, 4.0], False),
        (1.0, [1.00002, 2.0, 3.0], [3.0, 4.0], False),
        (1.0, [1.0, 2.0, 3.07], [3.0, 4.0], False),
        (1.0, [1.0, 1.95, 3.0], [3.0, 4.0], False),
        (1.0, [1.0, 2.0, 3.0], [3.0, 4.06], False),
    ],
)
def test_check_fails_where_a_device_differs_by_more_than_rounding(
    levels: float,
    losses: list[float],
    gradients: list[float],
    agree: bool,
    command: Command,
    toy_inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from benchmarks.gpu import agreement

    trained = iter([ALIKE, ALIKE, (losses, torch.tensor(gradients))])  # CPU, then both kernels
    monkeypatch.setattr(agreement, "_train", lambda *inputs: next(trained))
    monkeypatch.setattr(agreement, "_views", lambda *inputs: levels if inputs[2] == "pad_crop" else 0.0)
    layout = Layout(toy_inputs)
    where = ("--store", layout.store("toy"), "--backbone", layout.backbone, "--out", tmp_path)
    assert command("check", "--device", "cpu", "--tiny", *where).exit_code == (0 if agree else 1)
    found = read(tmp_path / "agreement.json")
    assert found["agree"] is agree
    assert found["depthwise"]["torch"]["agree"] is True
    assert found["depthwise"]["triton"]["agree"] is (agree or levels > 1.01)


def test_sweep_has_a_row_of_rates_per_setting(command: Command, toy_inputs: Path, tmp_path: Path) -> None:
    store = Layout(toy_inputs).store("toy")
    done = command("sweep", "--device", "cpu", "--tiny", "--store", store, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    found = read(tmp_path / "sweep.json")
    assert set(found) == MACHINE | {"rows"}
    assert [row["setting"] for row in found["rows"]] == [
        "fp32/none/channels_last/8/torch",
        "bf16/none/contiguous/8/torch",
    ]
    for row in found["rows"]:
        assert "error" not in row
        assert row["images_per_second"] > 0
        assert row["on_a_ready_batch"] > 0
        assert row["warm_up_seconds"] > 0
        assert row["feeding"] > 0
        assert row["peak_gib"] is None
        assert row["setting"] in done.output


def test_sweep_keeps_to_the_settings_named_and_to_its_time(command: Command, toy_inputs: Path, tmp_path: Path) -> None:
    words = ("sweep", "--device", "cpu", "--tiny", "--store", Layout(toy_inputs).store("toy"), "--out", tmp_path)
    assert command(*words, "--only", "tf32,no_such").exit_code == 0
    assert read(tmp_path / "sweep.json")["rows"] == []
    assert command(*words, "--minutes", "0").exit_code == 0
    assert read(tmp_path / "sweep.json")["rows"] == []


def test_a_setting_of_the_sweep_that_fails_leaves_its_error_and_the_others(
    command: Command, toy_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.gpu import sweep

    def rates(store: Path, recipe: Any, images: int) -> dict[str, Any]:
        if recipe.precision == "fp32":
            raise RuntimeError("out of memory")
        return {"images_per_second": 7.0}

    monkeypatch.setattr(sweep, "_rates", rates)
    store = Layout(toy_inputs).store("toy")
    assert command("sweep", "--device", "cpu", "--tiny", "--store", store, "--out", tmp_path).exit_code == 0
    assert read(tmp_path / "sweep.json")["rows"] == [
        {"setting": "fp32/none/channels_last/8/torch", "error": "RuntimeError: out of memory"},
        {"setting": "bf16/none/contiguous/8/torch", "images_per_second": 7.0},
    ]


def test_every_setting_of_the_sweep_is_a_recipe(command: Command) -> None:
    from benchmarks.gpu import sweep

    assert len(set(sweep.SETTINGS)) == len(sweep.SETTINGS)
    for setting in sweep.SETTINGS:
        recipe = sweep.recipe_of(setting, "cuda", False)
        parts = recipe.precision, recipe.compile, recipe.memory_format, str(recipe.batch_size), recipe.depthwise
        assert "/".join(parts) == setting
        assert (recipe.image_size, recipe.device) == (224, "cuda")


def test_profile_is_a_table_of_kernels(command: Command, toy_inputs: Path, tmp_path: Path) -> None:
    store = Layout(toy_inputs).store("toy")
    done = command("profile", "--device", "cpu", "--tiny", "--store", store, "--out", tmp_path / "new")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "new" / "profile.txt").read_text(encoding="utf-8")
    assert "convolution" in text
    assert "Self CPU" in text
    assert text in done.output


OVERRIDES = ("training.device=cpu", "training.epochs=1", "training.threads=1", "study.seeds=[3]")


def test_study_trains_and_evaluates_every_run_and_leaves_alone_what_is_there(
    command: Command, study: Path, toy_inputs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["study", "--params", study, "--inputs", toy_inputs, "--out", out]
    words += [word for override in OVERRIDES for word in ("--set", override)]
    done = command(*words)
    assert done.exit_code == 0, done.output
    for strategy in ("same_lr", "from_scratch"):
        run = Run("toy", strategy, 3)
        folder = runs.read(Layout(out).run(run))
        assert {file.name for file in Layout(out).run(run).iterdir()} == set(runs.FILES)
        assert (folder.run["training"]["device"], len(folder.curves)) == ("cpu", 1)
        assert folder.run["strategy"] == strategy
        metrics = runs.read_json(Layout(out).evaluation(run) / runs.METRICS)
        assert metrics["test"]["images"] == 12
        assert metrics["run_key"] == folder.run["run_key"]
        assert f"{run.name}: test top-1 {100 * metrics['test']['acc']:.2f} %" in done.output
    assert len(list(out.glob("runs/*/*/*"))) == 2

    more = ("study.strategies=[same_lr, from_scratch, separate_lr]", "study.seeds=[4, 3]")
    again = command(*words, "--set", more[0], "--set", more[1], "--minutes", "0")
    assert again.exit_code == 0, again.output
    assert [line for line in again.output.splitlines() if "toy/" in line] == [
        "toy/separate_lr/3: no time left",
        "toy/same_lr/4: no time left",
        "toy/from_scratch/4: no time left",
        "toy/separate_lr/4: no time left",
    ]


def test_the_benchmarks_do_without_what_a_bare_gpu_node_lacks() -> None:
    absent = ("mlflow", "dvc", "isal", "simplejpeg", "xxhash")
    code = f"import sys, benchmarks.gpu.__main__; print([name for name in {absent} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
