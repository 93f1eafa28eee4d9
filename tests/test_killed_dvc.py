"""A training that is told to end, or whose DVC or `finetune study run` is gone: it saves, ends honestly, and is gone on
with.

The tests go on from one another, in one checkout with one training of 20 epochs; the last adds two longer ones.
"""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from dvc_checkout import Checkout
from finetune import lock_file
from finetune.runs import DETERMINISTIC

pytestmark = pytest.mark.dvc

CELL = "cifar10/same_lr/0"
EPOCHS = 20


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which all is ready for the one training of its study."""
    made = Checkout(tmp_path_factory.mktemp("killed"), datasets=("cifar10",))
    params = made.params()
    params["study"]["strategies"], params["strategies"] = ["same_lr"], {"same_lr": {}}
    params["training"]["epochs"] = EPOCHS
    made.write_params(params)
    made.dvc("repro", "prepare", "backbone", "plan")
    made.commit()
    return made


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What the process says up to the line with `text`."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(f"'{text}' was not said:\n{said}")


def rest(process: subprocess.Popen[str]) -> str:
    """What it and its children say until all of them have ended."""
    return process.communicate(timeout=60)[0]


def trainer_below(process: subprocess.Popen[str]) -> psutil.Process:
    found = [p for p in psutil.Process(process.pid).children(recursive=True) if p.name() not in ("sh", "bash", "dash")]
    (trainer,) = [p for p in found if "train" in p.cmdline()]
    return trainer


def wait_for_end_of(processes: list[psutil.Process]) -> None:
    """Trainers end within 10 seconds, what is above them soon after."""
    began = time.monotonic()
    trainers = [process for process in processes if is_trainer(process)]
    for some, seconds in ((trainers, 10), (processes, 20)):
        while not all(map(is_gone, some)):
            assert time.monotonic() - began < seconds
            time.sleep(0.05)


def is_trainer(process: psutil.Process) -> bool:
    return not is_gone(process) and "train" in process.cmdline()


def is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE  # nobody has waited for it yet
    except psutil.NoSuchProcess:
        return True


def tracked(checkout: Checkout) -> tuple[list[Run], MlflowClient]:
    client = MlflowClient(f"sqlite:///{checkout.root / 'mlflow.db'}")
    return client.search_runs([e.experiment_id for e in client.search_experiments()]), client


def epochs_sent(run: Run, client: MlflowClient) -> list[int]:
    return [metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss")]


def go_on(checkout: Checkout) -> subprocess.Popen[str]:
    """`dvc repro` again, after the mend that the README names where the kill hit DVC while it wrote dvc.lock."""
    if fault := lock_file.fault((checkout.root / "dvc.lock").read_bytes()):
        print(f"dvc.lock {fault}: git checkout dvc.lock")
        checkout.git("checkout", "dvc.lock")
    return start(checkout, "-m", "dvc", "repro")


# DVC starts a stage through a shell: bash becomes the stage's process, dash stays between the two.
@pytest.mark.parametrize(("number", "shell"), [(signal.SIGTERM, "/bin/bash"), (signal.SIGKILL, "/bin/sh")])
def test_a_training_whose_dvc_is_killed_saves_and_ends(
    checkout: Checkout, number: signal.Signals, shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", shell)
    dvc = go_on(checkout)
    read_until(dvc, f"/{EPOCHS}, train loss")
    trainer = trainer_below(dvc)
    dvc.send_signal(number)
    began = time.monotonic()
    said = rest(dvc)  # the trainer has the same stdout
    assert time.monotonic() - began < 10
    assert f"{CELL}: ended by SIGTERM; saved after epoch" in said
    assert "`dvc repro` goes on from there" in said
    assert is_gone(trainer)
    [run], _ = tracked(checkout)
    assert (run.info.status, run.data.tags["current"]) == ("KILLED", "false")


def test_after_ctrl_c_on_dvc_repro_the_training_is_saved(checkout: Checkout) -> None:
    dvc = go_on(checkout)
    read_until(dvc, "goes on after epoch")
    read_until(dvc, f"/{EPOCHS}, train loss")
    trainer = trainer_below(dvc)
    os.killpg(dvc.pid, signal.SIGINT)  # as a terminal does
    began = time.monotonic()
    said = rest(dvc)
    assert time.monotonic() - began < 10
    assert f"{CELL}: ended by SIGINT; saved after epoch" in said
    assert dvc.returncode == 255  # DVC was there to the end: its stage failed
    assert is_gone(trainer)
    [run], _ = tracked(checkout)
    assert (run.info.status, run.data.tags["current"]) == ("KILLED", "false")


def test_a_dvc_started_at_once_waits_for_the_trainer_that_the_killed_one_left(checkout: Checkout) -> None:
    dvc = go_on(checkout)
    read_until(dvc, "goes on after epoch")
    read_until(dvc, f"/{EPOCHS}, train loss")
    first = trainer_below(dvc)
    first.suspend()  # as slow as can be: the lock stays held
    try:
        dvc.kill()
        dvc.wait()  # DVC takes a process that nobody has waited for as alive
        again = go_on(checkout)
        said = read_until(again, "waiting 15 s for its end")
    finally:
        first.resume()
    assert "ended by SIGTERM" in rest(dvc)
    said += read_until(again, f"{CELL}: epoch {EPOCHS}/{EPOCHS}")
    said += rest(again)
    assert again.returncode == 0, said
    assert said.count("goes on after epoch") == 1


def test_the_study_is_finished_and_each_epoch_is_tracked_once(checkout: Checkout) -> None:
    assert checkout.ran(checkout.dvc("repro")) == []
    assert (checkout.root / "report" / "report.md").is_file()
    [run], client = tracked(checkout)
    assert (run.info.status, run.data.tags["current"]) == ("FINISHED", "true")
    assert epochs_sent(run, client) == list(range(1, EPOCHS + 1))


def test_a_tracking_database_that_another_has_locked_holds_neither_the_training_nor_its_end_up(
    checkout: Checkout,
) -> None:
    process = start_run(checkout)
    read_until(process, f"/{EPOCHS}, train loss")
    with closing(sqlite3.connect(checkout.root / "mlflow.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        for _ in range(2):
            read_until(process, f"/{EPOCHS}, train loss")
        assert time.monotonic() - began < 10  # SQLite waits for 20 s
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        said = rest(process)
        assert time.monotonic() - began < 10
    assert process.returncode == 143
    assert f"{CELL}: ended by SIGTERM; saved after epoch" in said
    assert said.count("tracking failed: no answer in time; what was trained is saved") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_outside_dvc_that_is_interrupted_says_how_to_go_on(
    checkout: Checkout, number: signal.Signals, code: int
) -> None:
    process = start_run(checkout)
    read_until(process, f"/{EPOCHS}, train loss")
    process.send_signal(number)
    began = time.monotonic()
    said = rest(process)
    assert time.monotonic() - began < 10
    assert process.returncode == code
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if "ended by" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"{CELL}: ended by {number.name}; saved after epoch")
    assert lines[0].endswith("the same command goes on from there")
    runs, _ = tracked(checkout)
    assert sorted(run.info.status for run in runs) == ["FINISHED", "KILLED"]


def test_it_is_gone_on_with_and_gives_the_stages_bytes(checkout: Checkout) -> None:
    process = start_run(checkout)
    read_until(process, "goes on after epoch")
    said = rest(process)
    assert process.returncode == 0, said
    runs, client = tracked(checkout)
    assert len(runs) == 2
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert [epochs_sent(run, client) for run in runs] == [list(range(1, EPOCHS + 1))] * 2
    (own,) = (checkout.root / ".finetune" / "runs").glob(f"*/runs/{CELL}")
    for name in DETERMINISTIC:
        assert (own / name).read_bytes() == (checkout.root / "runs" / CELL / name).read_bytes(), name
    assert not [path for path in (checkout.root / ".finetune" / "work").iterdir() if path.is_dir()]


def test_after_ctrl_c_on_mlflow_run_the_next_goes_on(checkout: Checkout) -> None:
    project = ("-m", "mlflow", "run", ".", "-e", "train", "--env-manager", "local", "--experiment-name", "trial")
    words = (*project, "-P", "strategy=same_lr", "-P", "seed=1")
    process = start(checkout, *words)
    read_until(process, f"/{EPOCHS}, train loss")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert "ended by SIGINT; saved after epoch" in rest(process)
    again = start(checkout, *words)
    said = read_until(again, "goes on after epoch") + rest(again)
    assert again.returncode == 0, said
    runs, client = tracked(checkout)
    status = {run.info.status: run for run in runs if run.data.tags.get("seed") == "1"}
    # `mlflow run` itself makes FAILED of our KILLED: it looks for the status's name among the statuses' numbers.
    assert set(status) == {"FAILED", "FINISHED"}
    assert status["FAILED"].data.tags["current"] == "false"
    assert epochs_sent(status["FINISHED"], client) == list(range(1, EPOCHS + 1))


def test_a_study_run_that_was_killed_leaves_nothing_behind_and_the_next_waits_for_that(checkout: Checkout) -> None:
    params = checkout.params()
    params["study"]["seeds"], params["training"]["epochs"] = [0, 1], 40
    checkout.write_params(params)
    lock = checkout.root / "dvc.lock"
    study = start(checkout, "-m", "finetune", "study", "run")
    run = read_until(study, "/40, train loss").splitlines()[-1].partition(":")[0]
    below = psutil.Process(study.pid).children(recursive=True)
    trainers = [process for process in below if is_trainer(process)]
    trainers[0].suspend()  # as slow as can be: the DVC above it stays
    content = lock.read_bytes()
    lock.write_bytes(content[: content.rindex(b"md5: ") + 20])  # as if one of the DVCs had been killed as it wrote it
    study.kill()
    again = start(checkout, "-m", "finetune", "study", "run")
    read_until(again, "waiting 15 s for that")
    trainers[0].resume()
    wait_for_end_of(below)
    assert list((checkout.root / ".finetune" / "work").glob(f"*-{run[-1]}/checkpoint.pt"))  # of that seed
    read_until(again, "the last committed one is put back")
    below = psutil.Process(again.pid).children(recursive=True)
    again.send_signal(signal.SIGHUP)  # the terminal is closed
    rest(again)
    assert again.returncode == 129
    wait_for_end_of(below)
    assert lock_file.fault(lock.read_bytes()) is None


def start_run(checkout: Checkout) -> subprocess.Popen[str]:
    return start(checkout, "-m", "finetune", "run", "--dataset", "cifar10", "--strategy", "same_lr")


def start(checkout: Checkout, *words: str) -> subprocess.Popen[str]:
    """Start Python in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=checkout.root,
        env=checkout.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_a_finished_training_is_not_lost_with_the_dvc_that_has_not_noted_it(checkout: Checkout) -> None:
    params = checkout.params()
    params["study"]["seeds"] = [7]
    params["training"]["epochs"] = 2
    checkout.write_params(params)
    dvc = start(checkout, "-m", "dvc", "repro", "train@cifar10-same_lr-7")
    read_until(dvc, "runs/cifar10/same_lr/7: finished")
    dvc.kill()
    rest(dvc)
    again = go_on(checkout)
    said = rest(again)
    assert again.returncode == 0, said
    assert "cifar10/same_lr/7: was trained to its end before; that is put in its place" in said
    assert "cifar10/same_lr/7: epoch" not in said, "trained again"
    assert not [path for path in (checkout.root / ".finetune" / "work").iterdir() if path.name.endswith("-7")]
    [run] = [run for run in tracked(checkout)[0] if run.info.run_name == "cifar10/same_lr/7"]
    assert (run.info.status, run.data.tags["current"]) == ("FINISHED", "true")
