"""`python -m benchmarks.gpu` on a CPU and the toy: what each command writes."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from finetune import params, runs
from finetune.errors import InputError
from finetune.store import open_store
from finetune.study import Layout, Run
from small_splits import levels_apart

ROOT = Path(__file__).parents[1]
MACHINE = {"date", "commit", "device", "python", "torch", "torchvision", "code", "of"}

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
    assert set(found) == MACHINE | {"levels", "cpu_losses", "depthwise", "agree", "waits", "right"}
    assert found["agree"] is found["right"] is True
    assert found["waits"] is None, "a CPU has nothing to wait for"
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
    from benchmarks.gpu import agreement, waiting

    monkeypatch.setattr(waiting, "epochs", lambda *inputs: {"resident": None, "streamed": None})
    trained = iter([ALIKE, ALIKE, (losses, torch.tensor(gradients))])  # CPU, then both kernels
    monkeypatch.setattr(agreement, "_train", lambda *inputs: next(trained))
    monkeypatch.setattr(agreement, "_views", lambda *inputs: levels if inputs[2] == "pad_crop" else 0.0)
    layout = Layout(toy_inputs)
    where = ("--store", layout.store("toy"), "--backbone", layout.backbone, "--out", tmp_path)
    assert command("check", "--device", "cpu", "--tiny", *where).exit_code == (0 if agree else 1)
    found = read(tmp_path / "agreement.json")
    assert found["agree"] is found["right"] is agree
    assert found["depthwise"]["torch"]["agree"] is True
    assert found["depthwise"]["triton"]["agree"] is (agree or levels > 1.01)


def test_check_fails_where_a_step_waits_for_the_device(
    command: Command, toy_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.gpu import agreement, waiting

    monkeypatch.setattr(agreement, "compare", lambda *inputs: {"agree": True})
    monkeypatch.setattr(waiting, "epochs", lambda *inputs: {"resident": None, "streamed": "called a synchronizing"})
    layout = Layout(toy_inputs)
    where = ("--store", layout.store("toy"), "--backbone", layout.backbone, "--out", tmp_path)
    assert command("check", "--device", "cpu", "--tiny", *where).exit_code == 1
    assert read(tmp_path / "agreement.json")["right"] is False


def test_only_the_log_may_wait_for_a_gpu(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.gpu.waiting import forbidden

    from finetune import training

    modes: list[Any] = [0]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    before = training._check_finite, training._total
    monkeypatch.setattr(training, "_total", lambda values: modes[-1])
    with forbidden("cuda"):
        assert modes[-1] == "error"
        assert training._total([]) == "default"
        assert modes[-1] == "error"
        with pytest.raises(ValueError, match="not finite"):
            training._check_finite([torch.tensor(float("nan"))], "a run", 0)
        assert modes[-1] == "error"
    assert modes[-1] == 0
    monkeypatch.undo()
    assert (training._check_finite, training._total) == before


SETTINGS = ["fp32/none/channels_last/8/torch", "bf16/none/contiguous/8/torch"]


def test_sweep_has_a_row_of_rates_per_setting_and_more_of_the_fastest(
    command: Command, toy_inputs: Path, tmp_path: Path
) -> None:
    store = Layout(toy_inputs).store("toy")
    done = command("sweep", "--device", "cpu", "--tiny", "--store", store, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    found = read(tmp_path / "sweep.json")
    assert set(found) == MACHINE | {"rows", "at_best"}
    assert [row["setting"] for row in found["rows"]] == SETTINGS
    best = max(found["rows"], key=lambda row: row["images_per_second"])["setting"]
    assert [(row["setting"], row["with"]) for row in found["at_best"]] == [
        (best, "streamed"),
        (best, "deterministic"),
        (best, "not deterministic"),
    ]
    for row in (*found["rows"], *found["at_best"]):
        assert "error" not in row
        assert row["images_per_second"] > 0
        assert row["on_a_ready_batch"] > 0
        assert row["warm_up_seconds"] > 0
        assert row["feeding"] > 0
        assert row["peak_gib"] is None
        assert row["setting"] in done.output


def test_streamed_pixels_are_streamed_whether_they_fit_or_not(command: Command, toy_inputs: Path) -> None:
    from benchmarks.gpu import rates, sweep

    from finetune.batches import DeviceBatches

    trained = rates.Trained(Layout(toy_inputs).store("toy"), sweep.recipe_of(SETTINGS[1], "cpu", True))
    streamed, fed = trained.batches(16, streamed=True), trained.batches(16)
    assert isinstance(streamed, DeviceBatches)
    assert streamed.resident is None
    assert not streamed.exact
    for (images, labels), (same, expected) in zip(
        streamed.training(trained.recipe.augmentation, 0, 0),
        fed.training(trained.recipe.augmentation, 0, 0),
        strict=True,
    ):
        assert torch.equal(labels, expected)
        assert levels_apart(images, same) <= 1.01


def fake_rates(monkeypatch: pytest.MonkeyPatch, *failing: str) -> list[tuple[Any, bool]]:
    """Rates that cost no time, those of bf16 higher; a precision among `failing` is out of memory."""
    from benchmarks.gpu import rates

    measured: list[tuple[Any, bool]] = []

    def rated(store: Path, recipe: Any, images: int, streamed: bool = False) -> dict[str, Any]:
        measured.append((recipe, streamed))
        if recipe.precision in failing:
            raise RuntimeError("out of memory")
        return {"images_per_second": 7.0 if recipe.precision == "bf16" else 5.0}

    monkeypatch.setattr(rates, "measured", rated)
    return measured


def test_the_fastest_setting_is_measured_streamed_and_both_ways_of_determinism(
    command: Command, toy_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = fake_rates(monkeypatch)
    words = ("sweep", "--device", "cpu", "--tiny", "--store", Layout(toy_inputs).store("toy"), "--out", tmp_path)
    assert command(*words).exit_code == 0
    assert [(recipe.deterministic, streamed) for recipe, streamed in measured] == [
        (False, False),
        (False, False),
        (False, True),
        (True, False),
        (False, False),
    ]
    assert {recipe.precision for recipe, _ in measured[2:]} == {"bf16"}


def test_a_sweep_goes_on_where_an_earlier_one_ended(
    command: Command, toy_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("sweep", "--device", "cpu", "--tiny", "--store", Layout(toy_inputs).store("toy"), "--out", tmp_path)
    fake_rates(monkeypatch, "bf16")
    assert command(*words, "--minutes", "9").exit_code == 0
    rows = read(tmp_path / "sweep.json")["rows"]
    measured = fake_rates(monkeypatch)
    assert command(*words).exit_code == 0
    assert [recipe.precision for recipe, _ in measured] == ["bf16"] * 4, "what failed, and what is of the fastest"
    assert read(tmp_path / "sweep.json")["rows"][0] == rows[0]
    whole = read(tmp_path / "sweep.json")
    assert len(whole["at_best"]) == 3
    assert command(*words).exit_code == 0
    assert len(measured) == 4, "nothing is left"
    assert {key: value for key, value in read(tmp_path / "sweep.json").items() if key != "date"} == {
        key: value for key, value in whole.items() if key != "date"
    }
    other = read(tmp_path / "sweep.json") | {"torch": "1.0"}
    (tmp_path / "sweep.json").write_text(json.dumps(other), encoding="utf-8")
    assert command(*words).exit_code == 0
    assert len(measured) == 9, "another version's figures are no part of these"


@pytest.mark.parametrize("change", [{"of": {"store": "another", "tiny": True}}, {"code": "another"}])
def test_figures_of_other_data_or_other_code_are_no_part_of_a_sweep(
    change: dict[str, Any], command: Command, toy_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("sweep", "--device", "cpu", "--tiny", "--store", Layout(toy_inputs).store("toy"), "--out", tmp_path)
    measured = fake_rates(monkeypatch)
    assert command(*words).exit_code == 0
    before = len(measured)
    assert read(tmp_path / "sweep.json").keys() >= change.keys()
    (tmp_path / "sweep.json").write_text(json.dumps(read(tmp_path / "sweep.json") | change), encoding="utf-8")
    assert command(*words).exit_code == 0
    assert len(measured) == 2 * before


def test_sweep_keeps_to_the_settings_named_and_to_its_time(command: Command, toy_inputs: Path, tmp_path: Path) -> None:
    words = ("sweep", "--device", "cpu", "--tiny", "--store", Layout(toy_inputs).store("toy"), "--out", tmp_path)
    assert command(*words, "--minutes", "0").exit_code == 0
    assert read(tmp_path / "sweep.json")["rows"] == []
    assert command(*words, "--only", "bf16,no_match").exit_code == 2
    refused = command(*words, "--only", "tf32")
    assert refused.exit_code == 2
    assert f"--only: 'tf32' is in the name of no setting; they are {', '.join(SETTINGS)}" in refused.stderr
    assert command(*words, "--only", "bf16").exit_code == 0
    assert [row["setting"] for row in read(tmp_path / "sweep.json")["rows"]] == [SETTINGS[1]]


@pytest.mark.parametrize(
    "setting",
    ["bf16", "fp64/none/contiguous/8/torch", "bf16/none/contiguous/some/torch", "bf16/none/contiguous/8/cuda"],
)
def test_what_is_no_setting_is_refused(command: Command, setting: str) -> None:
    from benchmarks.gpu.sweep import recipe_of

    with pytest.raises(InputError, match=f"setting: found '{setting}', expected precision/compile/memory_format"):
        recipe_of(setting, "cpu", False)


def test_a_setting_of_the_sweep_that_fails_leaves_its_error_and_the_others(
    command: Command, toy_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_rates(monkeypatch, "fp32")
    store = Layout(toy_inputs).store("toy")
    assert command("sweep", "--device", "cpu", "--tiny", "--store", store, "--out", tmp_path).exit_code == 0
    assert read(tmp_path / "sweep.json")["rows"] == [
        {"setting": "fp32/none/channels_last/8/torch", "error": "RuntimeError: out of memory"},
        {"setting": "bf16/none/contiguous/8/torch", "images_per_second": 7.0},
    ]


def test_a_sweep_of_which_every_setting_fails_fails(
    command: Command, toy_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_rates(monkeypatch, "fp32", "bf16")
    store = Layout(toy_inputs).store("toy")
    assert command("sweep", "--device", "cpu", "--tiny", "--store", store, "--out", tmp_path).exit_code == 1
    assert [row["error"] for row in read(tmp_path / "sweep.json")["rows"]] == ["RuntimeError: out of memory"] * 2


def test_the_sweep_is_a_full_grid_of_recipes_best_promise_first(command: Command) -> None:
    from benchmarks.gpu import sweep

    settings = sweep.settings()
    assert len(set(settings)) == len(settings)
    recipes = [sweep.recipe_of(setting, "cuda", False) for setting in settings]
    for setting, recipe in zip(settings, recipes, strict=True):
        parts = recipe.precision, recipe.compile, recipe.memory_format, str(recipe.batch_size), recipe.depthwise
        assert "/".join(parts) == setting
        assert (recipe.image_size, recipe.device) == (224, "cuda")
    of_grid = {(recipe.precision, recipe.compile, recipe.batch_size) for recipe in recipes}
    compiled = ("none", "default", "reduce-overhead", "max-autotune")
    assert of_grid == set(product(("bf16", "tf32", "fp32"), compiled, (64, 128, 256, 512, 1024)))
    assert settings[0] == "bf16/reduce-overhead/channels_last/256/triton"
    assert settings[-1] == "fp32/max-autotune/channels_last/64/triton"


@pytest.mark.parametrize("words", [["check", "--backbone", "{backbone}"], ["sweep"], ["profile"], ["timm"]])
def test_without_a_gpu_a_command_says_so_and_measures_nothing(
    words: list[str], command: Command, toy_inputs: Path, tmp_path: Path
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    layout = Layout(toy_inputs)
    named = [word.format(backbone=layout.backbone) for word in words]
    done = command(*named, "--store", layout.store("toy"), "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: PyTorch sees no GPU on this machine")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


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
    other = command(*words, "--set", "training.lr=0.1", "--minutes", "0")
    left = [f"toy/{strategy}/3: no time left" for strategy in ("same_lr", "from_scratch")]
    assert [line for line in other.output.splitlines() if "toy/" in line] == left, "those there have another recipe"


def test_a_run_that_fails_leaves_its_error_and_the_others(
    command: Command, study: Path, toy_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.gpu import study as benchmark

    train, failing = benchmark.train, {"same_lr"}

    def failed(prepared: Any, *others: Any, **more: Any) -> Path:
        if prepared.run.strategy in failing:
            raise RuntimeError("out of memory")
        return train(prepared, *others, **more)

    monkeypatch.setattr(benchmark, "train", failed)
    words = ["study", "--params", study, "--inputs", toy_inputs, "--out", tmp_path / "out", "--set", "study.seeds=[3]"]
    done = command(*words, "--device", "cpu", "--tiny")
    assert done.exit_code == 0, done.output
    assert "toy/same_lr/3: RuntimeError: out of memory" in done.output
    recipe = runs.read(Layout(tmp_path / "out").run(Run("toy", "from_scratch", 3))).run["training"]
    assert (recipe["device"], recipe["epochs"], recipe["image_size"]) == ("cpu", 1, 32)
    failing.add("from_scratch")
    words[6] = tmp_path / "other"
    assert command(*words, "--device", "cpu", "--tiny").exit_code == 1


def test_a_run_that_is_trained_and_not_evaluated_is_not_trained_again(
    command: Command, study: Path, toy_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.gpu import study as benchmark

    words = ["study", "--params", study, "--inputs", toy_inputs, "--out", tmp_path / "out", "--device", "cpu", "--tiny"]
    words += ["--set", "study.seeds=[3]", "--set", "study.strategies=[same_lr]"]

    def broken(*_: Any) -> None:
        raise RuntimeError("a broken driver")

    with monkeypatch.context() as patch:
        patch.setattr(benchmark, "evaluate", broken)
        assert command(*words).exit_code == 1
    monkeypatch.setattr(benchmark, "train", broken)
    done = command(*words)
    assert done.exit_code == 0, done.output
    assert "toy/same_lr/3: test top-1" in done.output


def test_settings_of_a_data_set_or_a_strategy_are_overridden_too(
    command: Command, study: Path, toy_inputs: Path
) -> None:
    from benchmarks.gpu.study import tiny_settings

    own = ("datasets.toy.training.epochs=30", "strategies.from_scratch.training.batch_size=16")
    small = tiny_settings(params.load(study, own), Layout(toy_inputs))
    read = params.load(study, (*own, *small))
    for strategy in ("same_lr", "from_scratch"):
        recipe = read.training_for("toy", strategy)
        assert (recipe.epochs, recipe.batch_size, recipe.image_size, recipe.compile) == (1, 8, 32, "none")


def test_a_study_that_cannot_be_worked_out_is_refused_before_anything_is_trained(
    command: Command, study: Path, toy_inputs: Path, tmp_path: Path
) -> None:
    words = ["study", "--params", study, "--inputs", toy_inputs, "--out", tmp_path / "out", "--device", "cpu"]
    done = command(*words, "--set", "strategies.from_scratch.no_such=1")
    assert done.exit_code == 2
    assert "plan from_scratch has no option 'no_such'" in done.stderr
    assert not (tmp_path / "out").exists()


# Beside timm


def test_ours_is_measured_beside_timms(command: Command, toy_inputs: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    store = Layout(toy_inputs).store("toy")
    done = command("timm", "--device", "cpu", "--tiny", "--store", store, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    found = read(tmp_path / "beside_timm.json")
    assert found["images"] == "JPEGs of quality 95, written from the store's pixels"
    assert found["rates"].keys() == {"ours", "timm", "timm_default"}
    assert all(len(rates) == 3 and min(rates) > 0 for rates in found["rates"].values())
    assert found["vs_timm"] == min(found["ratios"].values()) > 0
    assert "said" not in found


def test_a_way_of_timms_that_fails_leaves_the_others(
    command: Command, toy_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("timm")
    from benchmarks.gpu import beside_timm

    def rate_of(way: str) -> float:
        if way == "timm_default":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 5.0

    monkeypatch.setattr(beside_timm, "_timm", lambda *given: lambda: rate_of(given[-1]))
    store = Layout(toy_inputs).store("toy")
    assert command("timm", "--device", "cpu", "--tiny", "--store", store, "--out", tmp_path).exit_code == 0
    found = read(tmp_path / "beside_timm.json")
    assert found["rates"].keys() == {"ours", "timm"}
    assert found["failed"] == {"timm_default": "OutOfMemoryError: CUDA out of memory"}
    assert beside_timm.complete(found)


def test_where_time_runs_out_the_result_says_so(command: Command, toy_inputs: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    store = Layout(toy_inputs).store("toy")
    done = command("timm", "--device", "cpu", "--tiny", "--minutes", "0", "--store", store, "--out", tmp_path)
    found = read(tmp_path / "beside_timm.json")
    assert found["said"] == "no time was left for all of the rounds"
    assert found["said"] in done.output
    assert "vs_timm" not in found


def test_where_timm_is_missing_the_result_says_so(
    command: Command, toy_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    store = Layout(toy_inputs).store("toy")
    assert command("timm", "--device", "cpu", "--tiny", "--store", store, "--out", tmp_path).exit_code == 0
    found = read(tmp_path / "beside_timm.json")
    assert found["timm"] is None
    assert found["said"].startswith("timm is not installed on this machine, so it was not measured")
    assert "rates" not in found


def test_the_ratio_that_counts_is_to_the_faster_of_timms_ways(command: Command) -> None:
    from benchmarks.gpu.beside_timm import compared, complete

    rates = {"ours": [40.0, 44.0, 60.0], "timm": [10.0, 11.0, 12.0], "timm_compiled": [20.0, 20.0]}
    found = compared(rates)
    assert found == {"images_per_second": 44.0, "ratios": {"timm": 4.0, "timm_compiled": 2.1}, "vs_timm": 2.1}
    assert not complete({"rates": rates})
    assert complete({"rates": rates | {"timm_compiled": [20.0] * 3}})
    assert not complete({})
    assert compared({"ours": [], "timm": []}) == {"ratios": {}}


def test_timms_images_are_those_of_an_archive_where_one_is_named(
    command: Command, toy_inputs: Path, tmp_path: Path
) -> None:
    from benchmarks.gpu.beside_timm import pictures

    from finetune.errors import InputError

    split = open_store(Layout(toy_inputs).store("toy")).split("train")
    written, whence = pictures(split, None, tmp_path / "written", 9)
    assert "written from the store's pixels" in whence
    files = sorted(written.rglob("*.jpg"))
    assert len(files) == 9
    assert all(int(file.parent.name) == split.labels[int(file.stem)] for file in files)
    with tarfile.open(tmp_path / "birds.tgz", "w:gz") as tar:
        tar.add(written, "birds/images")
    unpacked, whence = pictures(split, tmp_path / "birds.tgz", tmp_path / "unpacked", 9)
    assert whence == "JPEGs of birds.tgz, as they were taken"
    assert unpacked == tmp_path / "unpacked" / "birds" / "images"
    (tmp_path / "no.tgz").write_bytes(b"no")
    with pytest.raises(InputError, match=r"no\.tgz: cannot be unpacked .*; name a \.tar or \.tar\.gz"):
        pictures(split, tmp_path / "no.tgz", tmp_path / "nothing", 9)


# The same bytes again


def test_a_training_that_is_repeated_and_one_that_is_interrupted_are_compared_file_by_file(
    command: Command, study: Path, toy_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = ["repeat", "--device", "cpu", "--tiny", "--params", study, "--inputs", toy_inputs, "--out", out]
    monkeypatch.setattr(runs, "DETERMINISTIC", (*runs.DETERMINISTIC, runs.COST))  # which has seconds in it
    done = command(*words)
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 1
    found = read(out / "repeat.json")
    assert found["went_on"].startswith("after epoch 1")
    assert found["same"] is False
    assert {name for name, ways in found["files"].items() if not all(ways.values())} == {runs.COST}


# All of it


def everything(study: Path, toy_inputs: Path, out: Path) -> list[Any]:
    words = ["all", "--device", "cpu", "--tiny", "--params", study, "--inputs", toy_inputs, "--out", out]
    return [*words, "--set", "study.seeds=[3]"]


def test_one_command_does_all_and_goes_on_where_it_ended(
    command: Command, study: Path, toy_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.gpu import agreement, beside_timm, repeat, waiting

    calls: list[str] = []

    def fake(module: Any, name: str, answer: Any) -> None:
        monkeypatch.setattr(module, name, lambda *inputs: calls.append(name) or answer)

    fake(agreement, "compare", {"agree": True})
    fake(waiting, "epochs", {"resident": None})
    monkeypatch.setattr(repeat, "measure", lambda *inputs: calls.append("repeat") or {"same": True})
    monkeypatch.setattr(
        beside_timm,
        "measure",
        lambda *inputs: (
            calls.append(inputs[3])
            or inputs[-1]({"setting": inputs[3], "rates": {"ours": [1.0] * 3, "timm": [1.0] * 3}})
        ),
    )
    measured = fake_rates(monkeypatch)
    out = tmp_path / "out"
    done = command(*everything(study, toy_inputs, out))
    assert done.exit_code == 0, done.output
    assert {path.name for path in out.iterdir() if path.is_file()} == {
        "agreement.json",
        "sweep.json",
        "beside_timm.json",
        "repeat.json",
        "study.json",
    }
    assert calls == ["compare", "epochs", SETTINGS[1], "repeat"], "timm is measured beside the fastest setting"
    rows = read(out / "study.json")["rows"]
    assert [row["run"] for row in rows] == ["toy/same_lr/3", "toy/from_scratch/3"]
    assert all(row["images_per_second"] > 0 and 0 <= row["test_top1"] <= 100 for row in rows)
    again = command(*everything(study, toy_inputs, out))
    assert again.exit_code == 0, again.output
    assert (len(calls), len(measured)) == (4, 5), "nothing was left to be measured"
    assert read(out / "study.json")["rows"] == rows
    changed = read(out / "beside_timm.json") | {"setting": SETTINGS[0]}
    (out / "beside_timm.json").write_text(json.dumps(changed))
    assert command(*everything(study, toy_inputs, out)).exit_code == 0
    assert calls[4:] == [SETTINGS[1]], "timm is measured again where another setting is the fastest now"


def test_what_goes_wrong_does_not_keep_the_rest_from_being_measured(
    command: Command, study: Path, toy_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.gpu import agreement, beside_timm, repeat

    def broken(*inputs: Any) -> Any:
        raise RuntimeError("a broken driver")

    monkeypatch.setattr(agreement, "compare", broken)
    monkeypatch.setattr(beside_timm, "measure", broken)
    monkeypatch.setattr(repeat, "measure", lambda *inputs: {"same": False})
    fake_rates(monkeypatch, "fp32", "bf16")
    done = command(*everything(study, toy_inputs, tmp_path / "out"))
    assert done.exit_code == 1
    assert done.stderr.splitlines() == [
        "check: RuntimeError: a broken driver",
        "sweep: every setting failed",
        "timm: RuntimeError: a broken driver",
        "repeat: a training under deterministic: true gave other bytes",
    ]
    assert len(read(tmp_path / "out" / "study.json")["rows"]) == 2


def test_all_without_a_gpu_or_an_input_is_refused(
    command: Command, study: Path, toy_inputs: Path, tmp_path: Path
) -> None:
    words = everything(study, toy_inputs, tmp_path / "out")
    if not torch.cuda.is_available():
        assert command(words[0], *words[4:]).exit_code == 2  # without --device cpu --tiny
    words[words.index(toy_inputs)] = tmp_path
    done = command(*words)
    assert done.exit_code == 2
    assert "no store here" in done.stderr
    assert not (tmp_path / "out").exists()


ABSENT = ("mlflow", "dvc", "isal", "simplejpeg", "xxhash", "timm")
BLOCKED = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


# Whatever the settings say: beside other tests, threads that wait for each other take many times as long.
ONE_THREAD = "import torch\ntorch.set_num_threads(1)\ntorch.set_num_threads = lambda threads: None"


def test_every_command_does_without_what_a_bare_gpu_node_lacks(study: Path, toy_inputs: Path, tmp_path: Path) -> None:
    out, nothing = tmp_path / "out", tmp_path / "no-git"
    nothing.mkdir()
    words = [str(word) for word in [*everything(study, toy_inputs, out), "--set", "training.threads=1"]]
    code = f"{BLOCKED}\n{ONE_THREAD}\nfrom benchmarks.gpu.__main__ import main\nmain({words!r})"
    environment = {"PYTHONPATH": str(ROOT / "src"), "DVC_ROOT": str(tmp_path), "PATH": str(nothing)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert read(out / "agreement.json")["right"] is True
    assert len(read(out / "sweep.json")["at_best"]) == 3
    assert read(out / "beside_timm.json")["said"].startswith("timm is not installed")
    assert len(read(out / "study.json")["rows"]) == 2
    assert read(out / "study.json")["commit"] is None
    assert read(out / "repeat.json")["same"] is True


@pytest.mark.parametrize("name", ABSENT)
def test_what_is_blocked_there_cannot_be_imported(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"{BLOCKED}\nimport {name}"], capture_output=True, check=False)
    assert b"ModuleNotFoundError" in done.stderr
