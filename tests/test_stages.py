"""Train and evaluate end to end on the toy: their folders, the work area, and the same bytes when run again."""

import csv
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from finetune import kept_runs, params, resolved, runs, stages, study, work_lock
from finetune.accounting import flops_per_image
from finetune.errors import InputError
from finetune.model import build
from finetune.study import Layout, Run
from finetune.training import Listener
from finetune.work_lock import locked
from signalled import as_in_a_process, ended_by_a_signal, terminated

RUN = Run("toy", "separate_lr", 1)
HOLD = """
import sys, time
from pathlib import Path
from finetune.work_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""

Raw = dict[str, Any]


class Killed(Exception):
    """Stands for a process that ends between two epochs."""


def prepared(raw: Mapping[str, Any], layout: Layout, run: Run = RUN) -> resolved.Prepared:
    return resolved.resolve(params.parse(raw), layout, run)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, toy_inputs: Path, tiny_content: Mapping[str, Any]) -> Layout:
    """One run trained and evaluated, its work area under the same root; not to be changed."""
    root = tmp_path_factory.mktemp("trained")
    layout = Layout(root, toy_inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(root))
        stages.train(prepared(tiny_content, layout), layout)
        stages.evaluate(layout, RUN)
    return layout


@pytest.fixture
def layout(tmp_path: Path, toy_inputs: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A root of the test's own, its work area included."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return Layout(tmp_path, toy_inputs)


@pytest.fixture
def used(trained: Layout, layout: Layout) -> Layout:
    """A root with the trained run's folders in it, to be spoiled."""
    for folder in ("runs", "evaluations"):
        shutil.copytree(trained.root / folder, layout.root / folder)
    return layout


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Training


def test_training_writes_the_files_of_a_run_and_nothing_else(trained: Layout) -> None:
    assert names_in(trained.run(RUN)) == sorted(runs.FILES)


def test_the_work_area_is_cleared(trained: Layout) -> None:
    left = [path for path in (trained.root / ".finetune" / "work").iterdir() if path.suffix != ".lock"]
    assert left == []


def test_run_json_tells_what_the_run_is(trained: Layout) -> None:
    record = runs.read(trained.run(RUN)).run
    store = json.loads((trained.store("toy") / "meta.json").read_text())
    assert [record[key] for key in ("dataset", "strategy", "seed")] == ["toy", "separate_lr", 1]
    assert record["plan"] == "separate_lr"
    assert record["run_key"] == f"{record['fingerprint']}-1"
    assert record["options"] == {}
    assert record["training"]["device"] == "cpu"
    assert record["training"]["lr"] == 1e-3
    assert record["prepare"] == {"short_side": 32, "val_fraction": 0.25, "split_seed": 0}
    assert record["edition"] == "any"
    assert record["data_md5"] == store["archives_md5"]
    assert record["store_digest"] == store["digest"]
    assert set(record["backbone"]) == {"source", "digest"}
    assert record["classes"] == ["red", "green", "blue"]
    assert record["groups"] == ["head", "last", "deep"]
    assert record["images"] == {"train": 27, "val": 9}
    assert record["preprocessing"] == {
        "short_side": 32,
        "image_size": 32,
        "crop_pct": 1.0,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }


def test_the_curves_have_a_row_per_epoch(trained: Layout) -> None:
    rows = runs.read(trained.run(RUN)).curves
    columns = ["epoch", "train/loss", "train/acc", "val/loss", "val/acc", "lr/head", "lr/last", "lr/deep"]
    assert [list(row) for row in rows] == [columns] * 2
    assert [row["lr/last"] for row in rows] == pytest.approx([6e-4, 5.4e-4])  # 0.6 lr, then times 0.9


def test_metrics_are_the_kept_epochs(trained: Layout) -> None:
    folder = runs.read(trained.run(RUN))
    row = folder.curves[folder.metrics["epoch"] - 1]
    assert folder.metrics["train"] == {"loss": row["train/loss"], "acc": row["train/acc"]}
    assert folder.metrics["val"] == {"loss": row["val/loss"], "acc": row["val/acc"]}
    assert row["val/acc"] == max(r["val/acc"] for r in folder.curves)


def test_the_audit_has_a_row_per_tensor(trained: Layout) -> None:
    audit = runs.read(trained.run(RUN)).audit
    state = load_file(trained.run(RUN) / runs.MODEL)
    assert sorted(row["tensor"] for row in audit) == sorted(state)
    assert {row["group"] for row in audit} == {"head", "last", "deep"}


def test_the_model_is_fp32_under_torchvisions_names_and_knows_its_run(trained: Layout) -> None:
    folder = trained.run(RUN)
    with safe_open(folder / runs.MODEL, "pt") as file:
        assert file.metadata() == {"run_key": runs.read(folder).run["run_key"]}
        assert file.get_tensor("classifier.1.weight").shape == (3, 1280)
        assert file.get_tensor("features.0.0.weight").dtype == torch.float32


def test_cost_counts_the_parameters(trained: Layout) -> None:
    cost = runs.read(trained.run(RUN)).cost
    assert cost["total_parameters"] == cost["trainable_parameters"] == 2_223_872 + 1280 * 3 + 3
    assert cost["seconds_per_epoch"] == pytest.approx(cost["seconds"] / 2, abs=1e-3)
    assert cost["images_per_second"] > 27 * 2 / cost["seconds"] * 0.99  # validation takes its share of the seconds
    assert cost["peak_memory_bytes"] > 50e6


def test_cost_has_the_seconds_by_phase(trained: Layout) -> None:
    cost = runs.read(trained.run(RUN)).cost
    parts = [cost[f"{phase}_seconds"] for phase in ("start", "data", "compute", "evaluation", "saving")]
    assert all(part > 0 for part in parts)
    assert cost["data_seconds"] + cost["compute_seconds"] == pytest.approx(27 * 2 / cost["images_per_second"], rel=0.05)
    assert sum(parts[1:4]) <= cost["seconds"] + 2e-3


def test_start_up_counts_from_where_the_command_began(layout: Layout, tiny: Raw) -> None:
    stages.train(prepared(tiny, layout), layout, began=time.monotonic() - 1000)
    assert 1000 < runs.read(layout.run(RUN)).cost["start_seconds"] < 1060


def test_cost_has_what_a_batch_keeps_and_an_image_takes(trained: Layout) -> None:
    cost = runs.read(trained.run(RUN)).cost
    assert cost["flops_per_image"] == flops_per_image(partial(build, 3, 0), 32)
    assert cost["activation_bytes"] > 9 * 3 * 32 * 32 * 4  # the batch itself, to begin with


def test_provenance_tells_when_and_with_what(trained: Layout) -> None:
    found = runs.read(trained.run(RUN)).provenance
    assert set(found) == {
        *("git_commit", "git_dirty", "started", "finished", "machine", "device", "python", "torch", "torchvision"),
    }
    assert found["started"] <= found["finished"]
    assert found["started"].endswith("+00:00")
    assert found["torch"] == torch.__version__


def test_training_and_evaluating_again_gives_the_same_bytes(trained: Layout, layout: Layout, tiny: Raw) -> None:
    stages.train(prepared(tiny, layout), layout)
    stages.evaluate(layout, RUN)
    for name in runs.DETERMINISTIC:
        assert (layout.run(RUN) / name).read_bytes() == (trained.run(RUN) / name).read_bytes(), name
    for name in (runs.METRICS, runs.PREDICTIONS):
        assert (layout.evaluation(RUN) / name).read_bytes() == (trained.evaluation(RUN) / name).read_bytes(), name


def test_a_network_of_an_earlier_run_trained_again_gives_the_same_bytes(
    trained: Layout, layout: Layout, tiny: Raw
) -> None:
    used = build(3, seed=99).to(memory_format=torch.channels_last)
    stages.train(prepared(tiny, layout, Run("toy", "from_scratch", 0)), layout, module=used)
    stages.train(prepared(tiny, layout), layout, module=used)
    for name in runs.DETERMINISTIC:
        assert (layout.run(RUN) / name).read_bytes() == (trained.run(RUN) / name).read_bytes(), name


def test_pretrained_weights_are_used_and_from_scratch_they_are_not(layout: Layout, tiny: Raw) -> None:
    # At a vanishing rate the kept weights are those that training began with.
    tiny["training"] |= {"lr": 1e-30, "weight_decay": 0.0, "epochs": 1}
    backbone = load_file(layout.backbone)["features.0.0.weight"]
    found = {}
    for strategy in ("same_lr", "from_scratch"):
        run = Run("toy", strategy, 1)
        stages.train(prepared(tiny, layout, run), layout)
        found[strategy] = load_file(layout.run(run) / runs.MODEL)["features.0.0.weight"]
    assert torch.equal(found["same_lr"], backbone)
    assert not torch.equal(found["from_scratch"], backbone)


def test_what_a_plan_adds_is_readied_from_the_pretrained_weights(layout: Layout, tiny: Raw) -> None:
    # SpotTune's copies are frozen: the run keeps them as they were when it began.
    tiny["training"]["epochs"] = 1
    tiny["strategies"]["spottune"] = {}
    run = Run("toy", "spottune", 1)
    stages.train(prepared(tiny, layout, run), layout)
    backbone, kept = load_file(layout.backbone), load_file(layout.run(run) / runs.MODEL)
    copies = {name.replace(".conv.frozen.", ".conv."): kept[name] for name in kept if ".conv.frozen." in name}
    assert set(copies) == {name for name in backbone if ".conv." in name}
    assert [name for name, tensor in copies.items() if not torch.equal(tensor, backbone[name])] == []
    assert not torch.equal(kept["features.3.conv.0.0.weight"], backbone["features.3.conv.0.0.weight"])  # it was tuned


@pytest.fixture
def unvalidated(tmp_path: Path, layout: Layout, make_toy: Any, toy_archives: Path) -> Layout:
    """Inputs without a validation split."""
    from finetune.params import PrepareParams
    from finetune.prepare import prepare

    settings = PrepareParams(short_side=32, val_fraction=0)
    inputs = tmp_path / "inputs"
    prepare(make_toy(train=4), "any", settings, toy_archives, inputs / "prepared" / "toy")
    shutil.copytree(layout.backbone.parent, inputs / "models")
    return Layout(layout.root, inputs)


def test_without_validation_the_metrics_have_none(unvalidated: Layout, tiny: Raw) -> None:
    tiny["prepare"]["val_fraction"] = 0
    tiny["training"] |= {"selection": "last", "epochs": 1}
    stages.train(prepared(tiny, unvalidated), unvalidated)
    folder = runs.read(unvalidated.run(RUN))
    assert set(folder.metrics) == {"epoch", "train"}
    assert rows_of(unvalidated.run(RUN) / runs.CURVES)[0]["val/acc"] == ""
    assert folder.run["images"] == {"train": 12, "val": 0}


# The work area


def test_a_run_found_finished_in_the_work_area_is_adopted(layout: Layout, tiny: Raw) -> None:
    ready = prepared(tiny, layout)
    finished = study.work_area(ready.key) / "finished"
    finished.mkdir(parents=True)
    (finished / runs.METRICS).write_text("made elsewhere")
    stages.train(ready, layout)
    assert (layout.run(RUN) / runs.METRICS).read_text() == "made elsewhere"
    assert not finished.exists()


def test_a_run_that_is_kept_until_it_is_noted_survives_the_loss_of_its_folder(
    layout: Layout, tiny: Raw, capsys: pytest.CaptureFixture[str]
) -> None:
    ready, trained = prepared(tiny, layout), []
    listener = Listener(epoch=trained.append)
    stages.train(ready, layout, (listener,), keep=True)
    before = {name: (layout.run(RUN) / name).read_bytes() for name in runs.FILES}
    assert names_in(study.work_area(ready.key)) == ["code", "finished"]
    shutil.rmtree(layout.run(RUN))  # as DVC does before it runs the stage again
    stages.train(ready, layout, (listener,), keep=True)
    assert len(trained) == ready.recipe.epochs, "not trained again"
    assert f"{RUN.name}: was trained to its end before" in capsys.readouterr().out
    assert {name: (layout.run(RUN) / name).read_bytes() for name in runs.FILES} == before
    kept_runs.forget(ready.key)
    assert not study.work_area(ready.key).exists()


def test_a_signal_as_the_runs_files_are_written_waits_for_them(
    layout: Layout, tiny: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, trained = prepared(tiny, layout), []

    def told(*given: Any) -> bytes:
        terminated()
        return save(*given)

    with monkeypatch.context() as patch, ended_by_a_signal():
        patch.setattr(stages, "save", told)
        stages.train(ready, layout)
    assert not layout.run(RUN).exists(), "DVC would delete it"
    stages.train(ready, layout, (Listener(epoch=trained.append),))
    assert names_in(layout.run(RUN)) == sorted(runs.FILES)
    assert trained == []


@contextmanager
def no_room() -> Iterator[None]:
    """Files cannot grow beyond a megabyte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_as_a_run_is_written_is_the_systems_own_error(
    layout: Layout, tiny: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Which the commands say in one sentence; safetensors' own would be a traceback.
    with ExitStack() as full, pytest.raises(OSError) as error:
        monkeypatch.setattr(stages, "save", lambda *given: full.enter_context(no_room()) or save(*given))
        stages.train(prepared(tiny, layout), layout)
    assert error.value.errno == errno.EFBIG
    assert not layout.run(RUN).exists()


def test_a_disk_that_is_full_as_a_kept_run_is_copied_loses_nothing(
    layout: Layout, tiny: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, trained, flush = prepared(tiny, layout), [], runs.flush
    with ExitStack() as full, pytest.raises(OSError) as error, monkeypatch.context() as patch:
        patch.setattr(runs, "flush", lambda folder: flush(folder) or full.enter_context(no_room()))
        stages.train(ready, layout, keep=True)
    assert error.value.errno == errno.EFBIG
    stages.train(ready, layout, (Listener(epoch=trained.append),), keep=True)
    assert names_in(layout.run(RUN)) == sorted(runs.FILES)
    assert trained == []


def test_a_gpu_whose_memory_is_too_small_is_said_with_what_to_lower(
    layout: Layout, tiny: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …")

    monkeypatch.setattr(stages, "fit", fit)
    with pytest.raises(InputError) as error:
        stages.train(prepared(tiny, layout), layout)
    assert str(error.value).startswith(f"{RUN.name}: the GPU has too little memory for training.batch_size 9 at 32 px")
    assert "(CUDA out of memory); lower it and raise training.accumulation" in str(error.value)


def test_a_signal_as_a_run_moves_into_its_place_is_too_late(
    layout: Layout, tiny: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = runs.move_into_place

    def moved(*given: Any) -> None:
        terminated()
        move(*given)

    monkeypatch.setattr(runs, "move_into_place", moved)
    with as_in_a_process():
        stages.train(prepared(tiny, layout), layout)
    assert names_in(layout.run(RUN)) == sorted(runs.FILES)


def test_a_runs_files_are_on_the_disk_before_they_are_called_whole(
    layout: Layout, tiny: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    work = study.work_area(prepared(tiny, layout).key)

    def fsync(number: int) -> None:
        path = Path(f"/proc/self/fd/{number}").resolve()
        synced.append((path.name, (work / "finished").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    stages.train(prepared(tiny, layout), layout)
    assert {(name, False) for name in runs.FILES} <= set(synced)


def test_a_kept_run_of_other_code_is_trained_again(layout: Layout, tiny: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    ready, trained = prepared(tiny, layout), []
    stages.train(ready, layout, keep=True)
    monkeypatch.setattr(kept_runs, "_code", lambda: "edited")
    stages.train(ready, layout, (Listener(epoch=trained.append),), keep=True)
    assert len(trained) == ready.recipe.epochs


def test_a_kept_run_whose_note_is_damaged_is_trained_again(layout: Layout, tiny: Raw) -> None:
    ready, trained = prepared(tiny, layout), []
    stages.train(ready, layout, keep=True)
    (study.work_area(ready.key) / "code").write_bytes(b"\xff")
    stages.train(ready, layout, (Listener(epoch=trained.append),), keep=True)
    assert len(trained) == ready.recipe.epochs


def test_a_kept_run_is_of_the_code_that_began_to_train_it(
    layout: Layout, tiny: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, trained = prepared(tiny, layout), []
    edit = Listener(epoch=lambda _: monkeypatch.setattr(kept_runs, "_code", lambda: "edited meanwhile"))
    stages.train(ready, layout, (edit,), keep=True)
    stages.train(ready, layout, (Listener(epoch=trained.append),), keep=True)
    assert len(trained) == ready.recipe.epochs


def test_a_kept_run_is_dropped_once_its_cell_is_trained_by_other_settings(layout: Layout, tiny: Raw) -> None:
    first = prepared(tiny, layout)
    stages.train(first, layout, keep=True)
    tiny["training"]["epochs"] = 1
    second = prepared(tiny, layout)
    stages.train(second, layout, keep=True)
    assert not study.work_area(first.key).exists()
    assert (study.work_area(second.key) / "finished").is_dir()


def test_what_is_being_forgotten_is_never_adopted(layout: Layout, tiny: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    ready, trained = prepared(tiny, layout), []
    stages.train(ready, layout, keep=True)
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **options: None)  # killed before it is done
    kept_runs.forget(ready.key)
    monkeypatch.undo()
    stages.train(ready, layout, (Listener(epoch=trained.append),))
    assert len(trained) == ready.recipe.epochs


def test_nothing_is_forgotten_outside_the_work_areas(layout: Layout, tiny: Raw) -> None:
    work = study.work_area(prepared(tiny, layout).key)
    work.parent.mkdir(parents=True)  # else nothing leads out of it
    for elsewhere in (work.parents[2] / "good", work.parent.parent / "good"):
        (elsewhere / "finished").mkdir(parents=True)
    for key in ("../../good", "../good"):
        kept_runs.forget(key)
    assert (work.parents[2] / "good" / "finished").is_dir()
    assert (work.parent.parent / "good" / "finished").is_dir()


def test_what_somebody_trains_again_is_not_forgotten(layout: Layout, tiny: Raw) -> None:
    ready = prepared(tiny, layout)
    stages.train(ready, layout, keep=True)
    with locked(study.work_area(ready.key)) as work:
        kept_runs.forget(ready.key)
        assert (work / "finished").is_dir()


def test_a_half_written_run_in_the_work_area_is_not_adopted(trained: Layout, layout: Layout, tiny: Raw) -> None:
    ready = prepared(tiny, layout)
    unfinished = study.work_area(ready.key) / "unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "stray").write_text("left by a killed process")
    stages.train(ready, layout)
    assert names_in(layout.run(RUN)) == sorted(runs.FILES)


def test_a_killed_training_leaves_no_run(layout: Layout, tiny: Raw) -> None:
    def stop(row: Any) -> None:
        raise Killed

    with pytest.raises(Killed):
        stages.train(prepared(tiny, layout), layout, (Listener(epoch=stop),))
    assert not layout.run(RUN).exists()


def test_a_finished_training_replaces_the_old_run(used: Layout, tiny: Raw) -> None:
    (used.run(RUN) / "stray").write_text("old")
    ready = prepared(tiny, used)
    finished = study.work_area(ready.key) / "finished"
    finished.mkdir(parents=True)
    (finished / runs.METRICS).write_text("new")
    stages.train(ready, used)
    assert names_in(used.run(RUN)) == [runs.METRICS]


def test_a_second_trainer_of_the_same_run_is_refused(
    layout: Layout, tiny: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_lock, "PATIENCE", 0.2)
    ready = prepared(tiny, layout)
    source = str(Path(stages.__file__).parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(study.work_area(ready.key))],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": source},
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        try:
            with pytest.raises(InputError, match="another process is training this very run"):
                stages.train(ready, layout)
        finally:
            other.kill()
    assert not layout.run(RUN).exists()


def test_an_audit_that_fails_stops_before_anything_is_trained(
    layout: Layout, tiny: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finetune.strategies.plan import Group, Phase, Plan

    monkeypatch.setattr(resolved, "build_plan", lambda *args: Plan("pretrained", (Phase((Group("low", ()),)),)))
    monkeypatch.setattr(stages, "fit", lambda *args, **options: pytest.fail("training began"))
    with pytest.raises(InputError, match="group 'low' is empty"):
        stages.train(prepared(tiny, layout), layout)


# Resolving


def test_seeds_share_a_fingerprint_and_have_keys_of_their_own(layout: Layout, tiny: Raw) -> None:
    first, second = (prepared(tiny, layout, Run("toy", "same_lr", seed)) for seed in (0, 1))
    assert first.fingerprint == second.fingerprint
    assert first.key != second.key


def test_a_strategys_own_recipe_is_the_runs(layout: Layout, tiny: Raw) -> None:
    tiny["strategies"]["separate_lr"] = {"deep_scale": 0.1, "training": {"epochs": 7}}
    ready = prepared(tiny, layout)
    assert ready.recipe.epochs == 7
    assert ready.options == {"deep_scale": 0.1}


def test_an_option_that_the_plan_does_not_have_is_refused(layout: Layout, tiny: Raw) -> None:
    tiny["strategies"]["separate_lr"] = {"depth_scale": 0.1}
    with pytest.raises(InputError, match="no option 'depth_scale'; did you mean 'deep_scale'"):
        prepared(tiny, layout)


def test_the_best_epoch_without_a_validation_split_is_refused_before_anything_is_trained(
    unvalidated: Layout, tiny: Raw
) -> None:
    tiny["prepare"]["val_fraction"] = 0
    tiny["training"]["selection"] = "last"
    tiny["strategies"]["unlisted"] = {"plan": "same_lr", "training": {"selection": "best"}}
    with pytest.raises(InputError, match=r"training\.selection is 'best' for toy/unlisted, .* or selection: last"):
        prepared(tiny, unvalidated, Run("toy", "unlisted", 0))


def test_a_missing_store_says_how_to_make_it(tmp_path: Path, tiny: Raw) -> None:
    with pytest.raises(InputError, match="dvc repro -s prepare@toy"):
        prepared(tiny, Layout(tmp_path))


def test_a_missing_backbone_says_how_to_make_it(tmp_path: Path, toy_inputs: Path, tiny: Raw) -> None:
    shutil.copytree(toy_inputs / "prepared", tmp_path / "prepared")
    with pytest.raises(InputError, match=r"backbone\.safetensors: no such file; make it with `dvc repro -s backbone`"):
        prepared(tiny, Layout(tmp_path))


def test_cuda_is_refused_where_there_is_none(layout: Layout, tiny: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for asked in ({"device": "cuda"}, {}):
        with pytest.raises(InputError, match="device cuda: PyTorch sees no CUDA device"):
            tiny["training"] |= asked
            resolved.resolve(params.parse(tiny), layout, RUN, device=None if asked else "cuda")


# Evaluation

LACKING = "lacking"


def test_evaluation_writes_both_files_and_nothing_else(trained: Layout) -> None:
    assert names_in(trained.evaluation(RUN)) == [runs.METRICS, runs.PREDICTIONS]


def test_predictions_are_one_row_per_test_image_in_official_order(trained: Layout) -> None:
    rows = rows_of(trained.evaluation(RUN) / runs.PREDICTIONS)
    assert [list(row) for row in rows] == [["index", "label", "prediction", "confidence"]] * 12
    assert [int(row["index"]) for row in rows] == list(range(12))
    assert [int(row["label"]) for row in rows] == [0, 1, 2] * 4
    assert all(1 / 3 <= float(row["confidence"]) <= 1 for row in rows)


def test_the_metrics_are_those_of_the_predictions(trained: Layout) -> None:
    rows = rows_of(trained.evaluation(RUN) / runs.PREDICTIONS)
    metrics = runs.read_json(trained.evaluation(RUN) / runs.METRICS)
    assert metrics["run_key"] == runs.read(trained.run(RUN)).run["run_key"]
    assert set(metrics["test"]) == {"loss", "acc", "acc5", "images"}
    assert metrics["test"]["images"] == 12
    assert metrics["test"]["acc"] == sum(row["label"] == row["prediction"] for row in rows) / 12


def test_evaluation_needs_no_time_machine_or_cost(used: Layout, trained: Layout) -> None:
    for name in (runs.PROVENANCE, runs.COST, runs.CURVES, runs.AUDIT, runs.METRICS):
        (used.run(RUN) / name).unlink()
    shutil.rmtree(used.evaluation(RUN))
    stages.evaluate(used, RUN)
    for name in (runs.METRICS, runs.PREDICTIONS):
        assert (used.evaluation(RUN) / name).read_bytes() == (trained.evaluation(RUN) / name).read_bytes()


def test_evaluating_a_run_that_is_not_there_is_refused(layout: Layout) -> None:
    with pytest.raises(InputError, match=r"run\.json: no such file"):
        stages.evaluate(layout, RUN)


@pytest.mark.parametrize(("left", "found"), [(None, "no such file; give"), (100, r"cannot be read \(.*\); bring")])
def test_evaluating_a_run_whose_weights_are_damaged_is_refused(used: Layout, left: int | None, found: str) -> None:
    weights = used.run(RUN) / runs.MODEL
    half = weights.read_bytes()[:left]
    weights.unlink()
    if left:
        weights.write_bytes(half)
    again = "or make it again with `dvc repro -f -s train@toy-separate_lr-1`"
    with pytest.raises(InputError, match=rf"model\.safetensors: {found}.*, {again}$"):
        stages.evaluate(used, RUN)


def test_evaluating_on_another_store_is_refused(used: Layout) -> None:
    path = used.run(RUN) / runs.RUN
    path.write_text(json.dumps(json.loads(path.read_text()) | {"store_digest": "another"}))
    with pytest.raises(
        InputError, match=r"is not the store that toy/separate_lr/1 was trained on.*dvc repro train@toy-"
    ):
        stages.evaluate(used, RUN)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training": {"epochs": "x"}}, "training.epochs: found 'x' (text), expected: an integer"),
        ({"training": {"later": 1}}, "training.later is not a known key of training"),
        ({"plan": "later"}, "strategies.separate_lr: there is no plan 'later'"),
        ({"plan": 3}, "found plan 3 with options {}"),
        ({"options": {"later": 1}}, "strategies.separate_lr: plan separate_lr has no option 'later'"),
        ({"training": LACKING}, "lacks 'training'"),
        ({"plan": LACKING}, "lacks 'plan'"),
    ],
    ids=str,
)
def test_evaluating_a_run_of_another_version_is_refused(used: Layout, changes: dict[str, Any], said: str) -> None:
    path = used.run(RUN) / runs.RUN
    record = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in record.items() if value != LACKING}))
    again = "make it again with `dvc repro -f -s train@toy-separate_lr-1`"
    with pytest.raises(InputError) as error:
        stages.evaluate(used, RUN)
    assert str(error.value) == f"{path}: {said}, so it is damaged or of another version; {again}"


def test_evaluating_on_cuda_is_refused_where_there_is_none(used: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device cuda"):
        stages.evaluate(used, RUN, device="cuda")


# Strategies against recipes


def test_every_strategy_is_checked_under_every_data_sets_recipe(tiny: dict[str, Any]) -> None:
    resolved.check_strategies(params.parse(tiny))
    tiny["strategies"]["from_scratch"] = {"training": {"bn": "eval"}}
    with pytest.raises(InputError, match=r"^params.yaml: strategies.from_scratch on toy: bn: eval uses the pretrained"):
        resolved.check_strategies(params.parse(tiny))
    tiny["strategies"]["from_scratch"] = {"last_blocks": 3}
    with pytest.raises(InputError, match=r"strategies.from_scratch: plan from_scratch has no option 'last_blocks'"):
        resolved.check_strategies(params.parse(tiny))
