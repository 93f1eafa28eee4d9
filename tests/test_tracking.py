import os
import platform
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from mlflow.entities import LoggedModelOutput, Metric
from mlflow.entities import Run as TrackedRun

from finetune import data_facts, runs, tracking
from finetune.errors import InputError
from finetune.experiment import Experiment, open_experiment
from finetune.live import Live
from finetune.params import DatasetParams
from finetune.process_name import this_process
from finetune.study import Layout, Run
from tracked_study import epochs, make_params, move_home, run_record, write_run, write_study

PARAMS = make_params(strategies=("same_lr",))
RUN = Run("toy", "same_lr", 0)
RECORD = run_record(PARAMS, RUN)
NOTHING = dict.fromkeys(("runs", "fields", "epochs", "metrics", "inputs", "artifacts", "models", "ended", "retired"), 0)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return move_home(monkeypatch, tmp_path)


@pytest.fixture
def there(home: Path) -> Experiment:
    return open_experiment(home, "tiny")


def silent(_: str) -> None:
    pass


def run_of(there: Experiment, key: str = "key-same_lr-0") -> TrackedRun:
    found = there.find(key)
    assert found is not None
    return found


def history(there: Experiment, run: TrackedRun, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in there.client.get_metric_history(run.info.run_id, key)]


def test_everything_of_a_run_is_sent(home: Path, there: Experiment) -> None:
    tracking.track(PARAMS, write_study(home, PARAMS), silent)
    run = run_of(there)
    assert run.info.run_name == "toy/same_lr/0"
    assert run.info.status == "FINISHED"
    assert (run.info.start_time, run.info.end_time) == (1767323045000, 1767323051000)  # provenance's, in ms
    assert run.data.params["prepare.short_side"] == "48"
    assert run.data.tags["mlflow.source.git.commit"] == "a" * 40
    assert run.data.tags["current"] == "true"
    assert history(there, run, "val/acc") == [(1, 0.1), (2, 0.2), (3, pytest.approx(0.3))]
    assert history(there, run, "lr/all") == [(1, 0.002), (2, 0.002), (3, 0.002)]
    results = {
        "best/epoch": 3,
        "best/val/acc": 0.3,
        "test/loss": 1.25,
        "test/acc": 4 / 6,
        "test/acc5": 1.0,
        "cost/seconds": 6.0,
        "cost/start_seconds": 1.5,
        "cost/data_seconds": 0.5,
        "cost/compute_seconds": 4.5,
        "cost/evaluation_seconds": 1.0,
        "cost/saving_seconds": 0.25,
        "cost/images_per_second": 15.0,
        "cost/total_parameters": 2_227_715,
        "cost/peak_memory_mb": 300.0,
        "cost/activation_mb": 120.0,
        "cost/flops_per_image": 12_000_000,
        "cost/trainable_parameters": 2_000_000,
    }
    assert {key: run.data.metrics[key] for key in results} == results
    artifacts = {artifact.path for artifact in there.client.list_artifacts(run.info.run_id)}
    assert artifacts == {"run.json", "audit.csv", "curves.png", "confusion_matrix.png"}
    [data] = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("toy", "c58f30108f718f92721af3b95e74349a")
    assert {tag.key: tag.value for tag in data.tags} == {
        "mlflow.data.context": "training",
        "archive.md5": "c58f30108f718f92721af3b95e74349a",
        "edition": "sample",
    }
    assert there.model_id(run) is not None


def test_again_sends_nothing_and_says_so(home: Path, there: Experiment) -> None:
    layout, said = write_study(home, PARAMS), []
    tracking.track(PARAMS, layout, silent)
    assert tracking.track(PARAMS, layout, said.append) == NOTHING
    assert said == [f"MLflow at {there.uri}: has all 1 runs already, nothing to send"]
    assert history(there, run_of(there), "train/loss") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]


def test_only_the_epochs_that_the_server_lacks_are_sent(home: Path, there: Experiment) -> None:
    with pytest.raises(SystemExit), Live(PARAMS) as live:
        live.started(RECORD)
        live.epoch(epochs()[1])
        raise SystemExit(1)
    sent = tracking.track(PARAMS, write_study(home, PARAMS), silent)
    assert (sent["runs"], sent["epochs"], sent["ended"]) == (0, 2, 1)
    assert sorted(history(there, run_of(there), "train/acc")) == [
        (1, 0.2),
        (2, 0.4),
        (3, pytest.approx(0.6)),
    ]
    assert run_of(there).info.status == "FINISHED"
    assert run_of(there).data.tags["current"] == "true"


def test_a_single_value_that_the_server_lacks_is_sent(home: Path, there: Experiment) -> None:
    run = there.create(RECORD)
    rows = [{k: v for k, v in row.items() if k != "val/acc" or row["epoch"] != 2} for row in epochs()]
    for row in rows:
        there.client.log_batch(run.info.run_id, [Metric(k, v, 0, row["epoch"]) for k, v in row.items() if k != "epoch"])
    assert tracking.track(PARAMS, write_study(home, PARAMS), silent)["epochs"] == 1
    assert sorted(history(there, run_of(there), "val/acc")) == [(1, 0.1), (2, 0.2), (3, pytest.approx(0.3))]
    assert len(history(there, run_of(there), "val/loss")) == 3


def test_a_live_training_lacks_only_its_results(home: Path, there: Experiment) -> None:
    with Live(PARAMS) as live:
        live.started(RECORD)
        for row in epochs():
            live.epoch(row)
        live.finished()
    sent = tracking.track(PARAMS, write_study(home, PARAMS), silent)
    expected = {"runs": 0, "epochs": 0, "inputs": 1, "artifacts": 4, "models": 1, "ended": 0, "retired": 0}
    assert {kind: sent[kind] for kind in expected} == expected


def test_a_lost_artifact_is_sent_again(home: Path, there: Experiment) -> None:
    layout = write_study(home, PARAMS)
    tracking.track(PARAMS, layout, silent)
    [lost] = (home / "mlartifacts").rglob("curves.png")
    lost.unlink()
    assert tracking.track(PARAMS, layout, silent) == NOTHING | {"artifacts": 1}
    assert lost.is_file()


def test_a_model_that_arrived_by_half_is_sent_again(home: Path, there: Experiment) -> None:
    run = there.create(RECORD)
    half = there.client.create_logged_model(there.id, "classifier", run.info.run_id)
    there.client.log_outputs(run.info.run_id, [LoggedModelOutput(half.model_id, 0)])
    assert tracking.track(PARAMS, write_study(home, PARAMS), silent)["models"] == 1
    assert there.model_id(run) not in (None, half.model_id)


def test_without_a_validation_split_there_are_no_validation_metrics(home: Path, there: Experiment) -> None:
    write_run(home, PARAMS, RUN, val=False)
    tracking.track(PARAMS, Layout(home), silent)
    assert not [key for key in run_of(there).data.metrics if "val/" in key]


def test_a_retrained_run_takes_the_place_of_the_old_one(home: Path, there: Experiment) -> None:
    tracking.track(PARAMS, write_study(home, PARAMS), silent)
    write_run(home, PARAMS, RUN, key="another-key")
    sent = tracking.track(PARAMS, Layout(home), silent)
    assert (sent["runs"], sent["retired"]) == (1, 1)
    old = run_of(there).data.tags
    assert (old["current"], old["superseded_by"]) == ("false", run_of(there, "another-key").info.run_id)


def test_going_back_to_an_earlier_training_makes_it_current_again(home: Path, there: Experiment) -> None:
    layout = write_study(home, PARAMS)
    tracking.track(PARAMS, layout, silent)
    write_run(home, PARAMS, RUN, key="another-key")
    tracking.track(PARAMS, layout, silent)
    write_run(home, PARAMS, RUN)
    sent = tracking.track(PARAMS, layout, silent)
    assert (sent["runs"], sent["retired"]) == (0, 1)
    assert run_of(there).data.tags["current"] == "true"
    assert "superseded_by" not in run_of(there).data.tags
    assert run_of(there, "another-key").data.tags["current"] == "false"


def test_the_same_training_with_other_numbers_is_another_run(home: Path, there: Experiment) -> None:
    layout = write_study(home, PARAMS)
    tracking.track(PARAMS, layout, silent)
    first = run_of(there).info.run_id
    write_run(home, PARAMS, RUN, shift=0.25)
    provenance = runs.read_json(layout.run(RUN) / runs.PROVENANCE) | {"started": "2026-01-03T00:00:00+00:00"}
    runs.write_json(layout.run(RUN) / runs.PROVENANCE, provenance)
    assert tracking.track(PARAMS, layout, silent)["runs"] == 1
    second = run_of(there)
    assert second.info.run_id != first
    assert history(there, second, "train/loss") == [(1, 1.25), (2, 0.75), (3, pytest.approx(1 / 3 + 0.25))]
    assert there.client.get_run(first).data.tags["superseded_by"] == second.info.run_id
    assert tracking.track(PARAMS, layout, silent) == NOTHING


def test_a_strategy_that_left_the_study_leaves_the_comparison(home: Path, there: Experiment) -> None:
    both = make_params(strategies=("same_lr", "from_scratch"))
    tracking.track(both, write_study(home, both), silent)
    assert tracking.track(PARAMS, Layout(home), silent) == NOTHING | {"retired": 1}
    tags = run_of(there, "key-from_scratch-0").data.tags
    assert tags["current"] == "false"
    assert "superseded_by" not in tags


def test_another_studys_runs_stay_as_they_are(home: Path, there: Experiment) -> None:
    other = Experiment(there.client, there.uri, there.id, "other", aside=False).create(RECORD | {"run_key": "other"})
    tracking.track(PARAMS, write_study(home, PARAMS), silent)
    assert there.client.get_run(other.info.run_id).data.tags["current"] == "true"


@pytest.mark.parametrize(
    ("process", "status", "current"),
    [
        (f"{platform.node()}:{2**22 + 1}:1", "KILLED", "false"),  # above Linux's largest process id
        (f"{platform.node()}:{os.getpid()}:1", "KILLED", "false"),  # another process has its number now
        (this_process(), "RUNNING", "true"),
        ("another-machine:1:2", "RUNNING", "true"),
    ],
    ids=["dead", "number reused", "alive", "elsewhere"],
)
def test_a_run_whose_process_died_is_ended(
    home: Path, there: Experiment, process: str, status: str, current: str
) -> None:
    stale = there.create(RECORD | {"run_key": "stale"})
    there.client.set_tag(stale.info.run_id, "process", process)
    tracking.track(PARAMS, write_study(home, PARAMS), silent)
    assert run_of(there, "stale").info.status == status
    assert run_of(there, "stale").data.tags["current"] == current


def test_a_missing_run_is_said_before_anything_is_sent(home: Path, there: Experiment) -> None:
    both = make_params(strategies=("same_lr", "from_scratch"))
    layout = write_study(home, both)
    shutil.rmtree(layout.run(Run("toy", "from_scratch", 0)))
    with pytest.raises(InputError, match=r"from_scratch/0/run\.json: no such file"):
        tracking.track(both, layout, silent)
    assert there.find("key-same_lr-0") is None


def test_a_missing_evaluation_is_said(home: Path) -> None:
    layout = write_study(home, PARAMS)
    (layout.evaluation(RUN) / runs.PREDICTIONS).unlink()
    with pytest.raises(InputError, match=r"predictions\.csv: no such file"):
        tracking.track(PARAMS, layout, silent)


def test_an_evaluation_of_another_training_is_refused(home: Path) -> None:
    layout = write_study(home, PARAMS)
    path = layout.evaluation(RUN) / runs.METRICS
    runs.write_json(path, runs.read_json(path) | {"run_key": "older"})
    with pytest.raises(InputError, match=r"is of run older, but .* holds key-same_lr-0"):
        tracking.track(PARAMS, layout, silent)


def test_an_unreachable_server_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = write_study(home, PARAMS)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=r"^MLflow at http://127\.0\.0\.1:9: "):
        tracking.track(PARAMS, layout, silent)


def test_under_mlflow_run_one_run_is_completed_in_place(
    home: Path, there: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = there.client.create_run(there.id, run_name="bold-newt-123")
    there.client.log_param(made.info.run_id, "dataset", "toy")  # as `mlflow run -P` does
    there.client.set_tag(made.info.run_id, "mlflow.source.type", "PROJECT")
    there.client.set_tag(made.info.run_id, "mlflow.source.name", "git@example.org:study.git#")
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    tracking.track_run(PARAMS, write_study(home, PARAMS), RUN)
    run = there.client.get_run(made.info.run_id)
    assert run.info.run_name == "toy/same_lr/0"
    assert run.info.status == "RUNNING"  # `mlflow run` ends it
    assert run.data.metrics["test/acc"] == 4 / 6
    assert run.data.tags["mlflow.source.type"] == "PROJECT"
    assert run.data.tags["mlflow.source.name"] == "git@example.org:study.git#"
    assert run.data.tags["mlflow.source.git.commit"] == "a" * 40
    assert len(there.client.search_runs([there.id])) == 1


def test_the_hash_that_data_dvc_has_is_sent_beside_the_archives(home: Path, there: Experiment) -> None:
    out = {"path": "data/toy", "md5": "abc.dir", "nfiles": 9}
    (home / "data.dvc").write_text(yaml.safe_dump({"outs": [out]}))
    tracking.track(PARAMS, write_study(home, PARAMS), silent)
    [data] = run_of(there).inputs.dataset_inputs
    tags = {tag.key: tag.value for tag in data.tags}
    assert (tags["dvc.md5"], tags["archive.md5"]) == ("abc.dir", "c58f30108f718f92721af3b95e74349a")


# What the run was trained on


def write_sheets(root: Path, digest: str = "5d", image_size: int = 32, fraction: float = 1.0) -> None:
    """Sheets of the store and recipe that `write_run` names, by default."""
    recipe = PARAMS.training_for("toy", "same_lr").model_copy(update={"image_size": image_size})
    facts = {"digest": digest, "fraction": fraction, "seen": data_facts.seen_by(recipe.model_dump(mode="json"))}
    runs.write_json(root / "sheets" / "toy" / data_facts.FACTS, facts)
    for name in (data_facts.SHEET, data_facts.AUGMENTED):
        (root / "sheets" / "toy" / name).write_text(name)


def artifacts(there: Experiment, run: TrackedRun, folder: str) -> set[str]:
    return {artifact.path for artifact in there.client.list_artifacts(run.info.run_id, folder)}


@pytest.mark.parametrize(
    ("digest", "image_size", "fraction", "sent"),
    [
        ("5d", 32, 1.0, {"sheet", "augmented"}),
        ("5d", 48, 1.0, {"sheet"}),
        ("5d", 32, 0.5, {"sheet"}),
        ("other", 32, 1.0, set()),
    ],
)
def test_the_sheets_of_a_runs_own_store_and_recipe_are_sent_once(
    home: Path, there: Experiment, digest: str, image_size: int, fraction: float, sent: set[str]
) -> None:
    write_sheets(home, digest, image_size, fraction)
    layout = write_study(home, PARAMS)
    assert tracking.track(PARAMS, layout, silent)["artifacts"] == 4 + len(sent)
    assert artifacts(there, run_of(there), "data") == {f"data/{name}.png" for name in sent}
    assert tracking.track(PARAMS, layout, silent) == NOTHING


def test_a_sheet_that_is_drawn_later_is_sent_later(home: Path, there: Experiment) -> None:
    layout = write_study(home, PARAMS)
    tracking.track(PARAMS, layout, silent)
    write_sheets(home)
    assert tracking.track(PARAMS, layout, silent) == NOTHING | {"artifacts": 2}


def test_a_run_outside_dvc_draws_the_sheets_of_its_store(home: Path, there: Experiment, toy_inputs: Path) -> None:
    layout = replace(write_side_run(home), inputs=toy_inputs)
    path = layout.run(RUN) / runs.RUN
    digest = runs.read_json(toy_inputs / "prepared" / "toy" / "meta.json")["digest"]
    runs.write_json(path, runs.read_json(path) | {"store_digest": digest})
    own = PARAMS.model_copy(update={"datasets": {"toy": DatasetParams(reader="class_folders")}})
    tracking.track_run(own, layout, RUN)
    assert artifacts(there, side_run_of(there), "data") == {"data/sheet.png", "data/augmented.png"}
    assert tracking.track(PARAMS, Layout(home), silent) == NOTHING


# Runs outside DVC


def write_side_run(home: Path, folder: str = "a", run_id: str | None = None, of: str = "tiny") -> Layout:
    """A whole run outside DVC of the study's one cell."""
    layout = Layout(home / ".finetune" / "runs" / folder)
    write_run(layout.root, PARAMS, RUN, "aside")
    tracking.note_side_run(make_params(strategies=("same_lr",), name=of), layout, RUN, run_id)
    return layout


def side_run_of(there: Experiment, key: str = "aside") -> TrackedRun:
    found = there.beside(RECORD).find(key)
    assert found is not None
    return found


def test_a_run_outside_dvc_is_sent_and_stands_back_for_the_studys_own(home: Path, there: Experiment) -> None:
    layout, said = write_study(home, PARAMS), []
    write_side_run(home)
    sent = tracking.track(PARAMS, layout, said.append)
    assert (sent["runs"], sent["models"], sent["retired"]) == (2, 2, 0)
    assert said[1].startswith(f"toy/same_lr/0 in {home}/.finetune/runs/a: sent 1 runs, ")
    side = side_run_of(there)
    assert (side.info.status, side.data.metrics["test/acc"]) == ("FINISHED", 4 / 6)
    assert side.data.tags["current"] == "false"
    assert run_of(there).data.tags["current"] == "true"
    assert tracking.track(PARAMS, layout, silent) == NOTHING


def test_runs_outside_dvc_are_sent_before_the_study_has_begun(home: Path, there: Experiment) -> None:
    write_side_run(home)
    assert tracking.track(PARAMS, Layout(home), silent)["runs"] == 1
    assert side_run_of(there).data.tags["current"] == "true"
    assert tracking.track(PARAMS, Layout(home), silent) == NOTHING
    assert tracking.track(PARAMS, write_study(home, PARAMS), silent)["retired"] == 1
    assert side_run_of(there).data.tags["superseded_by"] == run_of(there).info.run_id
    assert tracking.track(PARAMS, Layout(home), silent) == NOTHING


def test_a_run_of_mlflow_run_is_completed_in_its_own_experiment(home: Path, there: Experiment) -> None:
    mine = there.client.create_experiment("mine", (home / "mine").as_uri())
    made = there.client.create_run(mine, run_name="bold-newt-123").info.run_id
    write_side_run(home, made, run_id=made)
    layout = write_study(home, PARAMS)
    assert tracking.track(PARAMS, layout, silent)["runs"] == 1  # the study's own
    tags = there.client.get_run(made).data.tags
    assert (tags["run_key"], tags["current"], tags["outside_dvc"]) == ("aside", "true", "true")
    assert there.client.get_run(made).info.status == "FINISHED"
    assert tracking.track(PARAMS, layout, silent) == NOTHING


def test_the_same_training_in_two_folders_is_sent_once(home: Path, there: Experiment) -> None:
    write_side_run(home, "a")
    write_side_run(home, "b")
    assert tracking.track(PARAMS, Layout(home), silent)["runs"] == 1
    assert tracking.track(PARAMS, Layout(home), silent) == NOTHING


def test_a_run_outside_dvc_that_its_user_deleted_stays_deleted(home: Path, there: Experiment) -> None:
    write_side_run(home)
    tracking.track(PARAMS, Layout(home), silent)
    there.client.delete_run(side_run_of(there).info.run_id)
    assert tracking.track(PARAMS, Layout(home), silent) == NOTHING
    assert there.beside(RECORD).find("aside") is None


def test_another_studys_run_outside_dvc_is_left_alone(home: Path, there: Experiment) -> None:
    write_side_run(home, of="other")
    assert tracking.track(PARAMS, write_study(home, PARAMS), silent)["runs"] == 1


def test_a_broken_run_outside_dvc_is_named_and_passed_over(home: Path, there: Experiment) -> None:
    layout, said = write_study(home, PARAMS), []
    (write_side_run(home).run(RUN) / runs.MODEL).unlink()
    assert tracking.track(PARAMS, layout, said.append)["runs"] == 1
    assert said[0].startswith(f"{home}/.finetune/runs/a: passed over, it is not whole (")


def test_a_run_outside_dvc_notes_the_run_it_was_sent_into(home: Path, there: Experiment) -> None:
    layout = write_side_run(home)
    tracking.track_run(PARAMS, layout, RUN)
    note = runs.read_json(layout.root / "side_run.json")
    assert note["run_id"] == side_run_of(there).info.run_id
    assert tracking.track(PARAMS, Layout(home), silent) == NOTHING
