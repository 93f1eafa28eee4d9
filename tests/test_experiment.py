import json
from pathlib import Path

import pytest

from finetune import experiment
from finetune.errors import InputError
from finetune.study import Run
from tracked_study import make_params, move_home, run_record

RECORD = run_record(make_params(), Run("toy", "same_lr", 0))


def test_parameters_are_flat_and_under_prefixes() -> None:
    found = experiment.parameters(RECORD)
    assert found["training.lr"] == "0.002"
    assert found["training.schedule.name"] == "exponential"
    assert found["prepare.short_side"] == "48"
    assert found["strategy.plan"] == "same_lr"
    assert found["strategy.last_scale"] == "0.6"
    assert found["backbone.source"] == "sample"
    assert all("." in key for key in found)


def test_the_md5_of_one_archive_stands_alone() -> None:
    assert experiment.data_md5(RECORD) == "c58f30108f718f92721af3b95e74349a"


def test_the_md5s_of_several_archives_are_named() -> None:
    assert experiment.data_md5({"data_md5": {"b.tgz": "22", "a.tgz": "11"}}) == "a.tgz=11, b.tgz=22"


def test_an_epoch_without_validation_has_no_validation_metrics() -> None:
    nan = float("nan")
    metrics = experiment.epoch_metrics({"epoch": 2, "train/loss": 0.5, "val/loss": nan, "val/acc": None})
    assert [(m.key, m.value, m.step) for m in metrics] == [("train/loss", 0.5, 2)]


def test_the_experiment_is_the_studys_and_its_artifacts_lie_in_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = experiment.open_experiment(move_home(monkeypatch, tmp_path), "tiny")
    found = opened.client.get_experiment(opened.id)
    assert found.name == "finetune-tiny"
    assert found.artifact_location == f"file://{tmp_path}/mlartifacts"


def test_opening_again_finds_the_same_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = move_home(monkeypatch, tmp_path)
    assert experiment.open_experiment(home, "tiny").id == experiment.open_experiment(home, "tiny").id


def test_the_comparisons_view_shows_every_current_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = experiment.open_experiment(move_home(monkeypatch, tmp_path), "tiny")
    state = json.loads(opened.client.get_experiment(opened.id).tags["mlflow.sharedViewState.study"])
    assert state["searchFilter"] == "tags.current = 'true'"
    assert state["runsHiddenMode"] == "SHOW_ALL"
    assert [section["name"] for section in state["compareRunSections"]][:2] == ["val", "train"]  # curves first
    assert experiment.ui_address("http://127.0.0.1:5000", "7") == (
        "http://127.0.0.1:5000/#/experiments/7/runs?viewStateShareKey=study&compareRunsMode=CHART"
    )


def test_the_experiment_that_mlflow_run_was_told_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = move_home(monkeypatch, tmp_path)
    told = experiment.open_experiment(home, "tiny").client.create_experiment("mine", (home / "mine").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", told)
    assert experiment.open_experiment(home, "tiny").id == told


def test_a_deleted_experiment_says_how_to_restore_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = move_home(monkeypatch, tmp_path)
    opened = experiment.open_experiment(home, "tiny")
    opened.client.delete_experiment(opened.id)
    with pytest.raises(InputError, match=f"finetune-tiny is deleted; .*--experiment-id {opened.id}"):
        experiment.open_experiment(home, "tiny")


def test_a_run_is_got_by_its_id_and_an_unknown_one_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = experiment.open_experiment(move_home(monkeypatch, tmp_path), "tiny")
    made = opened.create(RECORD)
    found = opened.get(made.info.run_id)
    assert found is not None
    assert found.info.run_id == made.info.run_id
    assert opened.get("0" * 32) is None


def test_the_studys_own_runs_and_those_outside_dvc_are_found_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = experiment.open_experiment(move_home(monkeypatch, tmp_path), "tiny")
    side = opened.beside(RECORD)
    assert not side.aside  # nothing to stand back for
    assert side.tags(RECORD) == opened.tags(RECORD) | {"outside_dvc": "true"}
    outside = side.create(RECORD).info.run_id
    assert opened.find(RECORD["run_key"]) is None
    own = opened.create(RECORD).info.run_id
    found = [opened.find(RECORD["run_key"]), side.find(RECORD["run_key"])]
    assert [run and run.info.run_id for run in found] == [own, outside]
    assert opened.beside(RECORD).aside
    assert not opened.beside(RECORD | {"seed": 1}).aside
