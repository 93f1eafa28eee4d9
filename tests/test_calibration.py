"""Calibration measures every combination and writes the fastest without touching the rest of params.yaml."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import torch
import yaml
from click.testing import CliRunner
from torchvision.models import MobileNetV2

from finetune import calibration, cpu_kernels, kernel_library
from finetune.batches import Batches
from finetune.calibration import Measured, Setting, Strategy, measure, other_sizes, settings, write
from finetune.cli import cli
from finetune.crew import crew
from finetune.errors import InputError
from finetune.optimizers import make_optimizer
from finetune.params import TrainingParams, load, parse
from finetune.resolved import resolve
from finetune.step import Step
from finetune.store import open_store
from finetune.strategies import names
from finetune.study import Layout, Run
from finetune.training import Row
from waiting import until

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
FAST = Setting("bf16", "contiguous", "torch", 1, 8)
SAME_LR = Strategy("same_lr", "same_lr", {})
PYTORCHS = {("channels_last", "torch"), ("contiguous", "torch")}


@pytest.mark.parametrize(("has", "precisions"), [(True, {"fp32", "bf16"}), (False, {"fp32"})])
@pytest.mark.parametrize("native", [True, False])
def test_every_combination_is_tried_once_in_bf16_where_the_cpu_has_it(
    native: bool, has: bool, precisions: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "cpu_has_bf16", lambda: has)
    found = settings((1, 2), (16, 32), native)
    assert len(found) == len(set(found)) == (12 if native else 8) * len(precisions)
    assert {one.precision for one in found} == precisions
    # This project's kernels are for channels_last.
    layers = {(one.memory_format, one.cpu_kernels) for one in found}
    assert layers == PYTORCHS | ({("channels_last", "native")} if native else set())


def test_the_fastest_comes_first_with_a_rate_of_each_round(toy_inputs: Path) -> None:
    store = open_store(Layout(toy_inputs).store("toy"))
    recipe = TrainingParams(image_size=32, batch_size=4, device="cpu")
    tried = [Setting("fp32", "channels_last", "torch", 1, 4), Setting("bf16", "channels_last", "torch", 1, 4)]
    found = measure(store, recipe, SAME_LR, tried, 2)
    assert {one.setting for one in found} == set(tried)
    assert found[0].rate >= found[1].rate > 0
    assert all(len(one.rates) == 2 for one in found)


def test_trainings_at_once_are_measured_together(toy_inputs: Path) -> None:
    store = open_store(Layout(toy_inputs).store("toy"))
    recipe = TrainingParams(image_size=32, batch_size=4, device="cpu")
    tried = [Setting("fp32", "channels_last", "torch", 1, 4), Setting("fp32", "channels_last", "torch", 2, 4)]
    found = measure(store, recipe, SAME_LR, tried, 1, lambda threads: 2 // threads)
    assert {one.setting.threads: one.at_once for one in found} == {1: 2, 2: 1}
    assert all(one.rate > 0 for one in found)


def test_what_one_of_several_raises_is_raised(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mine"), crew(3, _one_fails) as rates_of:
        rates_of(tmp_path / "first")


@pytest.mark.parametrize("place", range(3))
def test_where_one_of_several_is_killed_nothing_waits_for_it(place: int, tmp_path: Path) -> None:
    """`place`: in the order in which they were started."""
    began = time.monotonic()
    with pytest.raises(InputError, match="one of 3 processes at once was killed"), crew(3, _one_dies) as rates_of:
        rates_of((tmp_path, place))
    assert time.monotonic() - began < 120  # not the ten minutes that one may be waited for


def test_where_the_process_that_waits_is_killed_the_others_end_too(tmp_path: Path) -> None:
    code = "import sys; from test_calibration import wait_in_a_crew; wait_in_a_crew(sys.argv[1])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    until(lambda: len(list(tmp_path.iterdir())) == 2, seconds=60)
    members = [psutil.Process(int(path.name)) for path in tmp_path.iterdir()]
    parent.kill()
    parent.wait()
    assert not psutil.wait_procs(members, timeout=20)[1]


def wait_in_a_crew(folder: str) -> None:
    with crew(2, _waits) as rates_of:
        rates_of(Path(folder))


def _waits(folder: Path, ready: Callable[[], object]) -> float:
    (folder / str(os.getpid())).touch()
    time.sleep(60)
    return 1.0


def _is_first(path: Path) -> bool:
    try:
        path.touch(exist_ok=False)
        return True
    except FileExistsError:
        return False


def _one_fails(path: Path, ready: Callable[[], object]) -> float:
    if _is_first(path):
        time.sleep(0.5)  # the others wait by then
        raise InputError("mine")
    ready()
    return 1.0


def _one_dies(given: tuple[Path, int], ready: Callable[[], object]) -> float:
    folder, place = given
    (number,) = multiprocessing.current_process()._identity  # type: ignore[attr-defined]
    (folder / f"{number:06}").touch()
    until(lambda: len(list(folder.iterdir())) == 3, seconds=60)
    if sorted(folder.iterdir())[place].name == f"{number:06}":
        os.kill(os.getpid(), signal.SIGKILL)
    ready()
    return 1.0


def test_the_median_of_the_rounds_counts() -> None:
    assert Measured(FAST, (1.0, 9.0, 2.0)).rate == 2.0


def test_a_batch_that_the_store_cannot_fill_twice_is_refused(toy_inputs: Path) -> None:
    store = open_store(Layout(toy_inputs).store("toy"))
    tried = settings((1,), (20,), False)
    with pytest.raises(InputError, match="27 training images are too few for two batches"):
        measure(store, TrainingParams(device="cpu"), SAME_LR, tried, 1)


def test_a_recipe_for_a_gpu_is_pointed_to_the_sweep(toy_inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    store = open_store(Layout(toy_inputs).store("toy"))
    with pytest.raises(InputError, match=r"training\.device auto, which is cuda here; `python -m benchmarks"):
        measure(store, TrainingParams(device="auto"), SAME_LR, [FAST], 1)


# What is measured is what training trains


class Trial(NamedTuple):
    model: MobileNetV2
    step: Step
    threads: int


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[Trial]:
    """What was trained, in the place of training it."""
    found: list[Trial] = []

    def train_epoch(step: Step, batches: Batches, *others: Any) -> Row:
        found.append(Trial(step.model, step, torch.get_num_threads()))
        list(batches.training(step.recipe.augmentation, 0, 0))
        return {}

    monkeypatch.setattr(calibration, "train_epoch", train_epoch)
    return found


def measured(inputs: Path, plan: str, options: dict[str, Any] | None = None, **changes: Any) -> None:
    recipe = TrainingParams.model_validate({"image_size": 32, "batch_size": 4, "device": "cpu", "epochs": 4} | changes)
    strategy = Strategy("a_variant", plan, options or {})
    tried = [Setting("fp32", "channels_last", "torch", 1, 4)]
    measure(open_store(Layout(inputs).store("toy")), recipe, strategy, tried, 1)


@pytest.mark.parametrize("plan", names())
@pytest.mark.parametrize("bn", [None, "affine_only"])
def test_the_network_and_the_groups_are_those_of_training(
    plan: str, bn: str | None, toy_inputs: Path, trials: list[Trial], tiny: dict[str, Any]
) -> None:
    options = {"auto": True} if plan == "surgical" else {}
    tiny["strategies"] = {"a_variant": {"plan": plan} | options}
    tiny["study"] |= {"strategies": ["a_variant"], "baseline": "a_variant"}
    tiny["training"] |= {"bn": bn, "epochs": 4}
    prepared = resolve(parse(tiny), Layout(toy_inputs), Run("toy", "a_variant", 0))
    expected = prepared.model()
    try:
        phase = prepared.plan_of(expected).phases[-1]
    except InputError as refused:
        with pytest.raises(InputError, match=re.escape(str(refused))):
            measured(toy_inputs, plan, options, bn=bn)
        return
    measured(toy_inputs, plan, options, bn=bn)
    make_optimizer(expected, phase, prepared.recipe)
    for model, step, _ in trials:
        assert {n: (p.shape, p.requires_grad) for n, p in model.named_parameters()} == {
            n: (p.shape, p.requires_grad) for n, p in expected.named_parameters()
        }
        assert step.phase.groups == phase.groups
        assert (step.penalty is None) == (phase.penalty is None)
        assert step.phase.scales is None, "which are measured once an epoch"
    assert len(trials) == 2, "one epoch that is timed, after one that is not"


def test_the_last_phase_counts_where_the_head_is_trained_first(toy_inputs: Path, trials: list[Trial]) -> None:
    measured(toy_inputs, "same_lr", freeze_epochs=1)
    assert {group.name for group in trials[0].step.phase.groups} == {"all"}


def test_every_setting_is_in_force_as_it_is_measured(toy_inputs: Path, trials: list[Trial]) -> None:
    store, recipe = open_store(Layout(toy_inputs).store("toy")), TrainingParams(image_size=32, device="cpu")
    before = torch.get_num_threads()
    try:
        tried = [Setting("bf16", "contiguous", "torch", 2, 4), Setting("fp32", "channels_last", "torch", 1, 4)]
        measure(store, recipe, SAME_LR, tried, 1)
    finally:
        torch.set_num_threads(before)
    low, full = trials[0], trials[2]
    assert (low.threads, full.threads) == (2, 1)
    assert (low.step.recipe.precision, full.step.recipe.precision) == ("bf16", "fp32")
    own = [any(type(m).__module__ == "finetune.cpu_gradients" for m in one.model.modules()) for one in (low, full)]
    assert own == [True, False]
    kernels = [one.model.features[0][0].weight for one in (low, full)]
    assert [k.is_contiguous(memory_format=torch.channels_last) for k in kernels] == [False, True]


def test_averaged_weights_are_averaged(toy_inputs: Path, trials: list[Trial]) -> None:
    measured(toy_inputs, "same_lr", ema=0.9)
    assert trials[0].step.averaged is not None


@pytest.mark.parametrize("plan", ["l2_sp", "spottune", "lite_residual"])
def test_what_is_added_is_trained(plan: str, toy_inputs: Path) -> None:
    measured(toy_inputs, plan)


@pytest.mark.parametrize(
    ("plan", "options", "changes", "said"),
    [
        ("same_lr", {"no_such": 1}, {}, "plan same_lr has no option 'no_such'"),
        ("from_scratch", {}, {"bn": "eval"}, r"strategies\.a_variant: bn: eval uses the pretrained running statistics"),
        (
            "last_layer",
            {"solver": "lbfgs"},
            {"epochs": 1, "augmentation": {"name": "none"}},
            "calibrate: strategy 'a_variant' solves its head at once",
        ),
    ],
)
def test_what_training_would_refuse_is_refused_before_anything_is_measured(
    plan: str,
    options: dict[str, Any],
    changes: dict[str, Any],
    said: str,
    toy_inputs: Path,
    trials: list[Trial],
) -> None:
    with pytest.raises(InputError, match=said):
        measured(toy_inputs, plan, options, **changes)
    assert trials == []


# What is written


def test_what_is_written_leaves_comments_and_the_other_values(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(TEXT)
    write(file, FAST, ("precision", "memory_format", "threads", "batch_size"))
    expected = yaml.safe_load(TEXT)
    expected["training"] |= {"precision": "bf16", "memory_format": "contiguous", "threads": 1, "batch_size": 8}
    assert yaml.safe_load(file.read_text()) == expected
    for kept in ("# A study.", "image_size: 32 # pixels", "precision: bf16 # fp32 | tf32 | bf16", "# per epoch"):
        assert kept in file.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_only_the_keys_that_are_named_are_written(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(TEXT)
    write(file, FAST, ("precision", "threads"))
    expected = yaml.safe_load(TEXT)
    expected["training"] |= {"precision": "bf16", "threads": 1}
    assert yaml.safe_load(file.read_text()) == expected


# The command


@pytest.fixture
def study(tmp_path: Path, toy_inputs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text(TEXT)
    (tmp_path / "prepared").symlink_to(toy_inputs / "prepared")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calibration, "measure", lambda *_: [Measured(FAST, (5.0,)), Measured(FAST, (1.0,))])
    return tmp_path / "params.yaml"


def test_the_command_prints_and_writes(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(3), raising=False)
    found = CliRunner().invoke(cli, ["calibrate"])
    assert found.exit_code == 0, found.output
    assert "toy, 32 px, same_lr, 3 cores, medians of 3 rounds in turn:" in found.output
    assert "5.0 images/s" in found.output
    assert "training has precision bf16, memory_format contiguous, threads 1 now" in found.output
    assert yaml.safe_load(study.read_text())["training"]["precision"] == "bf16"


@pytest.mark.parametrize(("words", "at_once"), [((), 4), (("--alone",), 1)])
def test_as_many_trainings_at_once_are_measured_as_a_study_runs_unless_it_is_to_be_one(
    words: tuple[str, ...], at_once: int, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def measure(*given: Any) -> list[Measured]:
        asked.append(given[-1](1))
        return [Measured(FAST, (5.0,), at_once)]

    monkeypatch.setattr(calibration, "measure", measure)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(64), raising=False)
    found = CliRunner().invoke(cli, ["calibrate", *words])
    assert found.exit_code == 0, found.output
    assert asked == [at_once] * 2  # of one thread each, on 64 cores
    assert (f"({at_once} trainings at once)" in found.output) == (at_once > 1)


def test_other_batch_sizes_are_measured_at_the_fastest_setting_and_not_written(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[Setting]] = []

    def measure(*given: Any) -> list[Measured]:
        asked.append(given[3])
        return [Measured(one, (float(one.batch_size + (one.memory_format == "contiguous")),)) for one in given[3][::-1]]

    monkeypatch.setattr(calibration, "measure", measure)
    found = CliRunner().invoke(cli, ["calibrate"])
    assert found.exit_code == 0, found.output
    assert {one.batch_size for one in asked[0]} == {4}
    fastest = asked[0][-1]
    assert {one.cpu_kernels for one in asked[0]} == ({"torch", "native"} if kernel_library.available() else {"torch"})
    assert asked[1] == [replace(fastest, batch_size=size) for size in (4, 2, 8)]
    assert re.search(r"they change what is learnt.*\n +9\.0 images/s .*batch_size 8\n", found.output)
    assert yaml.safe_load(study.read_text())["training"]["batch_size"] == 4


@pytest.mark.parametrize(("size", "others"), [(2, [4]), (3, [6]), (4, [2, 8]), (6, [3, 12]), (8, [4])])
def test_other_batch_sizes_have_two_images_and_fill_two_batches(size: int, others: list[int], toy_inputs: Path) -> None:
    store = open_store(Layout(toy_inputs).store("toy"))
    assert len(store.split("train")) == 27
    assert [one.batch_size for one in other_sizes(replace(FAST, batch_size=size), store)] == others


def test_the_batch_size_is_written_where_it_is_asked_for_alone(study: Path) -> None:
    found = CliRunner().invoke(cli, ["calibrate", "--batch", "4", "--batch", "8"])
    assert "change what is learnt" not in found.output
    assert "training has precision bf16, memory_format contiguous, threads 1, batch_size 8 now" in found.output
    assert yaml.safe_load(study.read_text())["training"]["batch_size"] == 8


def test_where_this_projects_kernels_cannot_be_had_it_is_said_and_measured_without(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Setting] = []

    def refused() -> None:
        raise InputError("no C++ compiler")

    def measure(*given: Any) -> list[Measured]:
        asked.extend(given[3])
        return [Measured(FAST, (1.0,))]

    monkeypatch.setattr(cpu_kernels, "load", refused)
    monkeypatch.setattr(calibration, "measure", measure)
    found = CliRunner().invoke(cli, ["calibrate", "--dry-run"])
    assert found.exit_code == 0, found.output
    assert "this project's own kernels are left out: no C++ compiler" in found.output
    assert {one.cpu_kernels for one in asked} == {"torch"}


NATIVE = replace(FAST, precision="fp32", memory_format="channels_last", cpu_kernels="native", batch_size=4)
CONTIGUOUS = replace(NATIVE, memory_format="contiguous", cpu_kernels="torch")
OTHERS = "  other: {plan: same_lr, training: {%s}}\n"


@pytest.mark.skipif(not kernel_library.available(), reason="no C++ compiler")
@pytest.mark.parametrize(
    ("there", "strategies", "words", "fastest", "kernels"),
    [
        ("", "", [], NATIVE, "native"),
        ("", "", [], CONTIGUOUS, None),
        ("cpu_kernels: native", "", [], NATIVE, "native"),
        ("cpu_kernels: native", "", [], CONTIGUOUS, "torch"),
        ("cpu_kernels: native", "", ["--set", "training.cpu_kernels=torch"], CONTIGUOUS, "torch"),
        ("", "", ["--set", "training.cpu_kernels=native"], NATIVE, "native"),
        ("compile: default", "", ["--set", "training.compile=none"], NATIVE, None),
        ("", OTHERS % "memory_format: contiguous", [], NATIVE, None),
        ("", OTHERS % "cpu_kernels: native", [], CONTIGUOUS, None),
    ],
)
def test_whatever_is_written_can_be_read(
    there: str,
    strategies: str,
    words: list[str],
    fastest: Setting,
    kernels: str | None,
    study: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`fastest` is so if it is tried at all."""
    listed = "strategies: [same_lr, other]" if strategies else "strategies: [same_lr]"
    text = TEXT.replace("strategies: [same_lr]", listed).replace(
        "  batch_size: 4", f"  batch_size: 4\n  {there}".rstrip()
    )
    study.write_text(text + strategies)

    def measure(*given: Any) -> list[Measured]:
        tried = sorted(given[3], key=lambda one: replace(one, threads=1, batch_size=4) != fastest)
        return [Measured(one, (1.0,)) for one in tried]

    monkeypatch.setattr(calibration, "measure", measure)
    found = CliRunner().invoke(cli, ["calibrate", *words])
    assert found.exit_code == 0, found.output
    written = load(study).training
    assert written.cpu_kernels == (kernels or "torch")
    assert ("cpu_kernels" in yaml.safe_load(study.read_text())["training"]) == (kernels is not None)


def test_that_nothing_was_compiled_is_said_where_training_compiles(study: Path) -> None:
    assert "torch.compile" not in CliRunner().invoke(cli, ["calibrate", "--dry-run"]).output
    found = CliRunner().invoke(cli, ["calibrate", "--dry-run", "--set", "training.compile=default"])
    assert "without torch.compile" in found.output
    assert "training.compile is default" in found.output


def test_a_dry_run_leaves_the_file(study: Path) -> None:
    assert CliRunner().invoke(cli, ["calibrate", "toy", "--dry-run"]).exit_code == 0
    assert study.read_text() == TEXT


def test_a_value_that_would_have_no_effect_is_refused_before_anything_is_measured(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TEXT.replace("{plan: same_lr}", "{plan: same_lr, training: {precision: fp32}}")
    study.write_text(text)
    assert CliRunner().invoke(cli, ["calibrate", "--dry-run"]).exit_code == 0
    monkeypatch.setattr(calibration, "measure", lambda *_: pytest.fail("measured"))
    found = CliRunner().invoke(cli, ["calibrate"])
    assert found.exit_code != 0
    assert "strategies.same_lr.training.precision stands over" in str(found.exception) + found.output
    assert study.read_text() == text


def test_a_batch_size_that_stands_over_is_in_the_way_where_it_is_asked_for_alone(study: Path) -> None:
    study.write_text(TEXT.replace("{reader: class_folders}", "{reader: class_folders, training: {batch_size: 6}}"))
    assert CliRunner().invoke(cli, ["calibrate"]).exit_code == 0
    assert yaml.safe_load(study.read_text())["training"]["batch_size"] == 4
    found = CliRunner().invoke(cli, ["calibrate", "--batch", "8"])
    assert found.exit_code == 2
    assert "datasets.toy.training.batch_size stands over" in found.stderr
