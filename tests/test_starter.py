"""What a process that works for DVC, for `mlflow run` or for a `finetune study run` does when that is gone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from finetune import starter
from finetune.starter import Starter

SOURCE = str(Path(starter.__file__).parents[1])
STAGE = """
import sys, time
from finetune.interruption import Interrupted, handled
try:
    with handled():
        print("working", flush=True)
        time.sleep(float(sys.argv[1]))
    print("done", flush=True)
except Interrupted as why:
    print(f"ended by {why.signal}", flush=True)
"""
RUN = f'{sys.executable} -c "$STAGE" "$SECONDS_"'
SHELL = "/bin/bash"
MLFLOW = {"MLFLOW_RUN_ID": "0123", "MLFLOW_EXPERIMENT_ID": "1", "MLFLOW_TRACKING_URI": "sqlite:///x.db"}
DVC = {"DVC_STAGE": "train@x"}


@contextmanager
def started(command: list[str], seconds: float, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process of a session of its own that starts `command`, which is to run STAGE; both say what they say there."""
    environment = os.environ | {"PYTHONPATH": SOURCE, "STAGE": STAGE, "SECONDS_": str(seconds)} | environment
    process = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.run({command})"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        with process:
            yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def rest(process: subprocess.Popen[str]) -> str:
    """What it and its children say until all of them have ended."""
    assert process.stdout is not None
    return process.stdout.read()


@pytest.mark.parametrize(("command", "below"), [(RUN, 1), (f"{RUN}; true", 2)], ids=["shell gone", "shell stays"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stage_ends_with_its_dvc(command: str, below: int, number: signal.Signals) -> None:
    with started([SHELL, "-c", command], 30, **DVC) as dvc:
        assert dvc.stdout is not None
        assert dvc.stdout.readline() == "working\n"
        assert len(psutil.Process(dvc.pid).children(recursive=True)) == below
        dvc.send_signal(number)
        assert rest(dvc) == "ended by SIGTERM\n"


def test_what_no_dvc_has_started_outlives_its_parent() -> None:
    with started([SHELL, "-c", RUN], 1.5) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "working\n"
        parent.kill()
        assert rest(parent) == "done\n"


@pytest.mark.parametrize("command", [RUN, f"{RUN}; true"], ids=["shell gone", "shell stays"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_of_mlflows_ends_with_mlflow(command: str, number: signal.Signals) -> None:
    with started([SHELL, "-c", command], 30, **MLFLOW) as mlflow:
        assert mlflow.stdout is not None
        assert mlflow.stdout.readline() == "working\n"
        mlflow.send_signal(number)
        assert rest(mlflow) == "ended by SIGTERM\n"


def test_mlflow_run_itself_is_seen_to_be_killed(tmp_path: Path) -> None:
    (tmp_path / "MLproject").write_text("entry_points:\n  main:\n    command: python stage.py 60\n")
    (tmp_path / "stage.py").write_text(STAGE)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": SOURCE, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/db"}
    command = [sys.executable, "-m", "mlflow", "run", ".", "--env-manager", "local"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as mlflow:
        assert mlflow.stdout is not None
        assert mlflow.stdout.readline() == "working\n"
        mlflow.kill()
        assert rest(mlflow) == "ended by SIGTERM\n"


@pytest.mark.parametrize("environment", [DVC, MLFLOW], ids=["dvc", "mlflow"])
@pytest.mark.parametrize("command", [RUN, f"{RUN}; true"], ids=["shell gone", "shell stays"])
def test_it_does_not_begin_where_its_starter_died_while_it_started(command: str, environment: dict[str, str]) -> None:
    with started(
        [SHELL, "-c", f"echo shell; while kill -0 $PPID 2>/dev/null; do sleep 0.05; done; {command}"], 30, **environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "shell\n"
        process.kill()
        process.wait()
        assert rest(process) == (
            "finetune: what started this process is gone; it ends before it begins\nended by SIGTERM\n"
        )


@pytest.mark.parametrize(
    ("command", "environment"),
    [
        ([SHELL, "-c", RUN], {"MLFLOW_RUN_ID": "0123"}),
        ([SHELL, "script"], MLFLOW),
    ],
    ids=["only a run id", "no shell of mlflow's"],
)
def test_a_run_of_mlflows_that_somebody_goes_on_with_by_hand_outlives_its_parent(
    command: list[str], environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "script").write_text(f"{RUN}; true")
    monkeypatch.chdir(tmp_path)
    with started(command, 1.5, **environment) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "working\n"
        parent.kill()
        assert rest(parent) == "done\n"


STUDY = f"""
import os, subprocess, sys, time
from finetune import starter
environment = dict(os.environ) | starter.environment()
subprocess.Popen([{SHELL!r}, "-c", os.environ["BELOW"]], env=environment)
time.sleep(30)
"""


def test_it_ends_with_a_study_that_is_not_its_parent() -> None:
    environment = os.environ | {"PYTHONPATH": SOURCE, "STAGE": STAGE, "SECONDS_": "30", "BELOW": f"{RUN}; echo below"}
    with subprocess.Popen(
        [sys.executable, "-c", STUDY], stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as study:
        assert study.stdout is not None
        assert study.stdout.readline() == "working\n"
        study.kill()  # nobody waits for it: it becomes a zombie
        began = time.monotonic()
        assert rest(study) == "ended by SIGTERM\nbelow\n"  # what is between the two goes on to its own end
        assert time.monotonic() - began < 5


def test_who_began_at_another_time_is_another_process() -> None:
    own = starter.environment()["FINETUNE_STUDY"].partition(" ")[2]
    assert starter.lives(os.getpid(), own)
    assert not starter.lives(os.getpid(), "1")


def test_where_nothing_tells_when_a_process_began_its_number_must_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter, "_read", lambda *_: "")
    assert starter.environment() == {"FINETUNE_STUDY": f"{os.getpid()} "}
    assert starter.lives(os.getpid(), "")
    with subprocess.Popen(["true"]) as ended:
        pass
    assert not starter.lives(ended.pid, "")


def test_who_works_for_nobody_watches_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert starter.find() is None
    monkeypatch.setenv("FINETUNE_STUDY", "no process")
    assert starter.find() is None


@pytest.mark.parametrize(
    ("parent", "name", "stage", "expected"),
    [
        (1, "python3.11", True, False),  # DVC is all that runs in the container
        (1, "dvc", True, False),
        (1, "tini", True, True),
        (1, "tini", False, False),  # MLflow has started the container
        (0, "", False, False),  # and this process is the first in it
        (0, "", True, True),
    ],
)
def test_in_a_container_the_first_process_may_be_the_starter(
    parent: int, name: str, stage: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getsid", lambda _: 1)
    monkeypatch.setattr(starter, "_name", lambda _: name)
    if stage:
        monkeypatch.setenv("DVC_STAGE", "train@x")
    assert Starter(((os.getpid(), parent),), None).adopted() is expected
