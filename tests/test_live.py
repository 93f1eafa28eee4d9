import contextlib
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow.entities import Run as TrackedRun

from finetune import live as live_module
from finetune.experiment import Experiment, open_experiment
from finetune.live import Live
from finetune.study import Run
from tracked_study import epochs, make_params, move_home, run_record
from waiting import until

PARAMS = make_params()
RECORD = run_record(PARAMS, Run("toy", "same_lr", 0))
RETRAINED = run_record(PARAMS, Run("toy", "same_lr", 0), key="another-key")


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    return open_experiment(move_home(monkeypatch, tmp_path), "tiny")


def run_of(there: Experiment, record: dict) -> TrackedRun:
    found = there.find(record["run_key"])
    assert found is not None
    return found


def steps(there: Experiment, record: dict, key: str = "train/loss") -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in there.client.get_metric_history(run_of(there, record).info.run_id, key)]


def train(record: dict, rows: list) -> None:
    with Live(PARAMS) as live:
        live.started(record)
        for row in rows:
            live.epoch(row)
        live.finished()


def test_epochs_arrive_as_they_happen(there: Experiment) -> None:
    with Live(PARAMS) as live:
        live.started(RECORD)
        live.epoch(epochs()[0])
        until(lambda: steps(there, RECORD, "val/acc") == [(1, 0.1)])
        assert run_of(there, RECORD).info.status == "RUNNING"
        live.epoch(epochs()[1])
        live.finished()
    assert steps(there, RECORD, "val/acc") == [(1, 0.1), (2, 0.2)]
    assert run_of(there, RECORD).info.status == "FINISHED"


def test_the_run_is_named_tagged_and_has_its_parameters(there: Experiment) -> None:
    train(RECORD, epochs())
    run = run_of(there, RECORD)
    assert run.info.run_name == "toy/same_lr/0"
    tags = {"dataset": "toy", "strategy": "same_lr", "seed": "0", "plan": "same_lr", "edition": "sample"}
    tags |= {"study": "tiny", "run_key": "key-same_lr-0", "current": "true"}
    assert tags.items() <= run.data.tags.items()
    assert run.data.params["training.lr"] == "0.002"


def test_a_resumed_training_goes_on_in_its_run_and_repeats_no_epoch(there: Experiment) -> None:
    first, second, third = epochs()
    with contextlib.suppress(SystemExit), Live(PARAMS) as live:
        live.started(RECORD)
        live.epoch(first)
        raise SystemExit(143)
    with Live(PARAMS) as live:
        live.started(RECORD)
        live.resumed([first, second])  # the second had not arrived
        live.epoch(third)
        live.finished()
    assert [step for step, _ in steps(there, RECORD)] == [1, 2, 3]
    assert len(there.client.search_runs([there.id])) == 1
    assert run_of(there, RECORD).data.tags["current"] == "true"


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_an_interrupted_training_ends_its_run_honestly(
    there: Experiment, error: type[BaseException], status: str
) -> None:
    with pytest.raises(error), Live(PARAMS) as live:
        live.started(RECORD)
        raise error
    run = run_of(there, RECORD)
    assert run.info.status == status
    assert run.data.tags["current"] == "false"


@pytest.mark.parametrize("step", ["create", "complete"])
@pytest.mark.parametrize("then", ["fails", "takes long"])
def test_told_to_end_as_its_run_begins_it_ends_that(
    there: Experiment, monkeypatch: pytest.MonkeyPatch, step: str, then: str
) -> None:
    done = getattr(Experiment, step)

    def begun(*given: object, **named: object) -> object:
        made = done(*given, **named)
        if then == "fails":
            raise OSError("connection lost")
        time.sleep(0.5)
        return made

    monkeypatch.setattr(Experiment, step, begun)
    monkeypatch.setattr(live_module, "_BEGINNING", 0.1)
    with contextlib.suppress(SystemExit), Live(PARAMS) as live:
        live.started(RECORD)
        raise SystemExit(143)
    run = run_of(there, RECORD)
    assert (run.info.status, run.data.tags["current"]) == ("KILLED", "false")


@contextlib.contextmanager
def written_by_another(there: Experiment) -> Iterator[None]:
    """Within, another program writes to the tracking database, and nobody else can."""
    with contextlib.closing(sqlite3.connect(there.uri.removeprefix("sqlite:///"))) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


def test_a_database_that_another_has_locked_does_not_hold_the_training_up(there: Experiment) -> None:
    with Live(PARAMS) as live:
        live.started(RECORD)
        with written_by_another(there):
            began = time.monotonic()
            for row in epochs():
                live.epoch(row)
            assert time.monotonic() - began < 1
        live.finished()
    assert [step for step, _ in steps(there, RECORD)] == [1, 2, 3]
    assert run_of(there, RECORD).info.status == "FINISHED"


def test_a_database_that_another_has_locked_does_not_hold_the_end_up(
    there: Experiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(live_module, "_PATIENCE", 0.2)
    with contextlib.ExitStack() as lock, pytest.raises(SystemExit), Live(PARAMS) as live:
        live.started(RECORD)
        lock.enter_context(written_by_another(there))
        live.epoch(epochs()[0])
        began = time.monotonic()
        raise SystemExit(143)
    assert time.monotonic() - began < 3
    assert capsys.readouterr().err == (
        "tracking failed: no answer in time; what was trained is saved, and `finetune track` sends the rest later\n"
    )


@pytest.mark.parametrize(("why", "status"), [(SystemExit(143), "KILLED"), (ValueError("a bug"), "FAILED")])
def test_a_run_is_ended_also_where_the_server_once_failed(
    there: Experiment, monkeypatch: pytest.MonkeyPatch, why: BaseException, status: str
) -> None:
    def locked(*_: object) -> None:
        raise OSError("database is locked")

    with contextlib.suppress(SystemExit, ValueError), Live(PARAMS) as live:
        live.started(RECORD)
        with monkeypatch.context() as patch:
            patch.setattr(live_module, "epoch_metrics", locked)
            live.epoch(epochs()[0])
        raise why
    assert run_of(there, RECORD).info.status == status


def test_a_finished_training_takes_the_place_of_the_earlier_one(there: Experiment) -> None:
    train(RECORD, epochs())
    with Live(PARAMS) as live:
        live.started(RETRAINED)
        assert run_of(there, RECORD).data.tags["current"] == "true"  # until the new one is whole
        live.finished()
    tags = run_of(there, RECORD).data.tags
    assert tags["current"] == "false"
    assert tags["superseded_by"] == run_of(there, RETRAINED).info.run_id
    assert run_of(there, RETRAINED).data.tags["current"] == "true"


def test_other_runs_of_the_study_stay_current(there: Experiment) -> None:
    other = run_record(PARAMS, Run("toy", "same_lr", 1))
    train(other, epochs())
    train(RECORD, epochs())
    assert run_of(there, other).data.tags["current"] == "true"


@pytest.fixture
def in_experiment(there: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Goes where a temporary experiment of DVC's runs its stages; DVC_ROOT stays the workspace there."""
    folder = tmp_path / ".dvc" / "tmp" / "exps" / "standalone" / "x"
    folder.mkdir(parents=True)
    return lambda: monkeypatch.chdir(folder)


def test_a_temporary_experiment_of_dvcs_leaves_the_workspaces_run_current(
    there: Experiment, in_experiment: Callable[[], None]
) -> None:
    train(RECORD, epochs())
    in_experiment()
    train(RETRAINED, epochs())
    assert run_of(there, RECORD).data.tags["current"] == "true"
    assert run_of(there, RETRAINED).data.tags["current"] == "false"


def test_a_temporary_experiment_that_repeats_the_workspaces_training_leaves_its_run_current(
    there: Experiment, in_experiment: Callable[[], None]
) -> None:
    train(RECORD, epochs())
    in_experiment()
    train(RECORD, epochs())
    assert run_of(there, RECORD).data.tags["current"] == "true"


@pytest.fixture
def attached(there: Experiment, monkeypatch: pytest.MonkeyPatch) -> Callable[[], TrackedRun]:
    """As `mlflow run` starts a process: with a run of an invented name, which it ends itself."""
    made = there.client.create_run(there.id, run_name="bold-newt-123")
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    return lambda: there.client.get_run(made.info.run_id)


def test_a_temporary_experiment_that_repeats_it_and_is_told_to_end_leaves_the_workspaces_run_as_it_was(
    there: Experiment, in_experiment: Callable[[], None]
) -> None:
    train(RECORD, epochs())
    in_experiment()
    with contextlib.suppress(SystemExit), Live(PARAMS) as live:
        live.started(RECORD)
        live.epoch(epochs()[0])
        raise SystemExit(143)
    run = run_of(there, RECORD)
    assert (run.info.status, run.data.tags["current"]) == ("FINISHED", "true")
    assert [step for step, _ in steps(there, RECORD)] == [1, 2, 3]


def test_under_mlflow_run_the_training_goes_into_its_run(there: Experiment, attached: Callable[[], TrackedRun]) -> None:
    train(RECORD, epochs())
    assert run_of(there, RECORD).info.run_id == attached().info.run_id
    assert attached().info.run_name == "toy/same_lr/0"
    assert attached().info.status == "RUNNING"
    assert [step for step, _ in steps(there, RECORD)] == [1, 2, 3]


def test_a_name_given_to_mlflow_run_stays(there: Experiment, attached: Callable[[], TrackedRun]) -> None:
    there.client.update_run(attached().info.run_id, name="my own run")
    train(RECORD, epochs())
    assert attached().info.run_name == "my own run"


def test_a_failure_is_said_once_and_stops_nothing(
    there: Experiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    train(RECORD, epochs())
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("tracking failed: ")
    assert said[0].endswith("; training goes on, and `finetune track` sends the rest later")


def test_the_trainings_own_error_passes_through_a_dead_server(
    there: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ZeroDivisionError), Live(PARAMS) as live:
        live.started(RECORD)
        raise ZeroDivisionError


def test_a_server_that_does_not_answer_holds_no_interruption_up(
    there: Experiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(live_module, "_PATIENCE", 0.1)
    monkeypatch.setattr(Live, "_fail", lambda self, status: time.sleep(30))
    began = time.monotonic()
    with pytest.raises(SystemExit), Live(PARAMS) as live:
        live.started(RECORD)
        began = time.monotonic()
        raise SystemExit(143)
    assert time.monotonic() - began < 5
    assert capsys.readouterr().err == (
        "tracking failed: no answer in time; what was trained is saved, and `finetune track` sends the rest later\n"
    )


def test_where_signals_wait_the_end_of_a_whole_run_does_not_wait_for_ever(
    there: Experiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(Live, "_finish", lambda self: time.sleep(30))
    with Live(PARAMS) as live:
        live.started(RECORD)
        began = time.monotonic()
        live.finished(at_most=0.1)
    assert time.monotonic() - began < 5
    assert capsys.readouterr().err == (
        "tracking failed: no answer in time; the run is whole, and `finetune track` sends the rest later\n"
    )


def test_a_server_that_answers_in_time_has_the_run_finished(there: Experiment) -> None:
    with Live(PARAMS) as live:
        live.started(RECORD)
        live.finished(at_most=60)
    assert run_of(there, RECORD).info.status == "FINISHED"


def test_told_to_end_it_ends_the_run_before_it_sends_what_waits(
    there: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Live._send

    def slowly(*given: object) -> None:
        time.sleep(0.2)
        send(*given)

    monkeypatch.setattr(Live, "_send", slowly)
    with pytest.raises(SystemExit), Live(PARAMS) as live:
        live.started(RECORD)
        for epoch in range(1, 51):  # 10 s of sending
            live.epoch(epochs()[0] | {"epoch": epoch})
        began = time.monotonic()
        raise SystemExit(143)
    assert time.monotonic() - began < 8  # 3 of them the server is waited for
    assert run_of(there, RECORD).info.status == "KILLED"
    assert live._background.wait(60)  # here the process lives on
    assert [step for step, _ in steps(there, RECORD)] == list(range(1, 51))


def test_told_to_end_as_it_waits_to_be_finished_it_is_not_called_whole(
    there: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(RECORD, epochs())
    hold = threading.Event()
    with pytest.raises(SystemExit), Live(PARAMS) as live:
        live.started(RETRAINED)
        monkeypatch.setattr(Live, "_send", lambda *_: hold.wait(20))
        live.epoch(epochs()[0])
        live.finished(at_most=0.1)
        threading.Timer(0.5, hold.set).start()
        raise SystemExit(143)
    assert live._background.wait(20)
    assert run_of(there, RETRAINED).info.status == "KILLED"
    assert run_of(there, RECORD).data.tags["current"] == "true"


def test_a_run_that_is_whole_stays_so_whatever_ends_the_process(there: Experiment) -> None:
    with pytest.raises(SystemExit), Live(PARAMS) as live:
        live.started(RECORD)
        live.finished()
        raise SystemExit(143)
    run = run_of(there, RECORD)
    assert (run.info.status, run.data.tags["current"]) == ("FINISHED", "true")


def test_an_epoch_has_the_time_at_which_it_ended(there: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    with Live(PARAMS) as live:
        live.started(RECORD)
        with written_by_another(there):
            before = time.time()
            live.epoch(epochs()[0])
            after = time.time()
            time.sleep(0.5)
    (sent,) = there.client.get_metric_history(run_of(there, RECORD).info.run_id, "train/loss")
    assert int(1000 * before) <= sent.timestamp <= 1000 * after


def test_a_reader_of_the_messages_that_is_gone_ends_nothing(there: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise BrokenPipeError

    def lost(*_: object) -> None:
        raise OSError("connection lost")

    with Live(PARAMS) as live:
        live.started(RECORD)
        with monkeypatch.context() as patch:
            patch.setattr("builtins.print", gone)
            patch.setattr(live_module, "epoch_metrics", lost)
            live.epoch(epochs()[0])
            live.finished(at_most=20)
    with Live(PARAMS) as live:
        live.started(RECORD)
        live.resumed(epochs())
        live.finished()
    assert [step for step, _ in steps(there, RECORD)] == [1, 2, 3]


def test_a_process_that_does_not_come_to_its_end_ends_its_run(there: Experiment) -> None:
    code = """
        import hashlib
        from finetune import last_resort
        from finetune.interruption import handled, held
        from test_live import PARAMS, RECORD, Live
        last_resort.WARNING, last_resort.LIMIT = 0.5, 3.5
        with handled(), Live(PARAMS) as live, held():
            live.started(RECORD)
            print("ready", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # as long as it takes, without a look at signals
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    try:
        assert process.wait(20) == 143
    finally:
        process.kill()
    run = run_of(there, RECORD)
    assert (run.info.status, run.data.tags["current"]) == ("KILLED", "false")


OUTSIDE = run_record(PARAMS, Run("toy", "same_lr", 0), key="other-settings")


def train_outside(record: dict) -> None:
    with Live(PARAMS, side=True) as live:
        live.started(record)
        live.finished()


@pytest.mark.parametrize("record", [OUTSIDE, RECORD], ids=["other settings", "the same settings"])
def test_a_training_outside_dvc_leaves_the_studys_own_current(there: Experiment, record: dict) -> None:
    train(RECORD, epochs())
    before = run_of(there, RECORD)
    train_outside(record)
    own, side = run_of(there, RECORD), run_of(there.beside(record), record)
    assert (own.info.run_id, own.data.tags) == (before.info.run_id, before.data.tags)
    assert side.info.run_id != own.info.run_id
    assert (side.data.tags["current"], side.info.status) == ("false", "FINISHED")


def test_a_training_outside_dvc_is_shown_until_the_studys_own_is_there(there: Experiment) -> None:
    train_outside(OUTSIDE)
    side = there.beside(OUTSIDE)
    assert run_of(side, OUTSIDE).data.tags["current"] == "true"
    train(RECORD, epochs())
    tags = run_of(side, OUTSIDE).data.tags
    assert (tags["current"], tags["superseded_by"]) == ("false", run_of(there, RECORD).info.run_id)


def test_in_an_experiment_of_its_own_every_setting_outside_dvc_is_shown(
    there: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(RECORD, epochs())
    mine = there.client.create_experiment("mine")
    ids = []
    for record in (OUTSIDE, RECORD, RECORD):  # the last is a repetition
        ids.append(there.client.create_run(mine).info.run_id)
        monkeypatch.setenv("MLFLOW_RUN_ID", ids[-1])
        train_outside(record)
    assert [there.client.get_run(id_).data.tags["current"] for id_ in ids] == ["true", "false", "true"]
    assert run_of(there, RECORD).data.tags["current"] == "true"


def test_a_failure_after_the_training_says_that_the_run_is_whole(capsys: pytest.CaptureFixture) -> None:
    def fail() -> None:
        raise OSError("no such server")

    with Live(PARAMS, side=True) as live:
        pass
    live.completed(fail)
    live.completed(fail)
    said = "tracking failed: no such server; the run is whole, and `finetune track` sends the rest later\n"
    assert capsys.readouterr().err == said
