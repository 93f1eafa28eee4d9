"""`finetune study run` that is told to end, or killed: nothing below it goes on. With a stand-in for DVC."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

import tiny_archives
from finetune import starter

SOURCE = str(Path(starter.__file__).parents[1])
# Starts a stage through a shell and waits for its end, as DVC does; notes the stage's exit code.
DVC = """
import os, pathlib, signal, subprocess, sys
cells, words = os.environ["CELLS"].split(), sys.argv[1:]
if pathlib.Path("dvc.lock").exists():  # none of these tests has a whole one
    sys.exit(251)
if "--dry" in words:
    print(*(f"Running stage 'train@{cell}':" for cell in cells), sep="\\n")
    sys.exit(255 if cells else 0)
if "prepare" in words:
    sys.exit()
name = words[-1].partition("@")[2] or "all"
command = f"exec '{sys.executable}' stage.py {name}"
stage = subprocess.Popen(["/bin/sh", "-c", command], env={**os.environ, "DVC_STAGE": f"train@{name}"})
signal.signal(signal.SIGINT, signal.SIG_IGN)
pathlib.Path(f"{name}.code").write_text(str(stage.wait()))
sys.exit(255)  # so that the study ends here
"""
STAGE = """
import os, pathlib, sys, time
from finetune.interruption import Interrupted, handled
name = sys.argv[1]
try:
    with handled():
        pathlib.Path(f"{name}.pids").write_text(f"{os.getpid()} {os.getppid()}")
        time.sleep(float(os.environ["SECONDS_"]))
    pathlib.Path(f"{name}.done").touch()
except Interrupted as why:
    pathlib.Path(f"{name}.signal").write_text(why.signal)
    raise
"""
# Two at once, whatever this machine has.
COMMAND = "import os; os.sched_getaffinity = lambda _: {0, 1}; from finetune.__main__ import main; main()"
BESIDE = "cifar10-same_lr-0 cifar10-from_scratch-0"  # what is trained side by side


@pytest.fixture
def root(tmp_path: Path, tiny: dict) -> Path:
    """A study's folder, and a package `dvc`."""
    tiny["study"] |= {"datasets": ["cifar10"], "strategies": ["same_lr", "from_scratch"], "seeds": [0]}
    tiny |= {"datasets": {"cifar10": {}}, "strategies": {"same_lr": {}, "from_scratch": {}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tiny))
    tiny_archives.write("cifar10", tmp_path / "data" / "cifar10", classes=3, train=8, test=4)
    (tmp_path / "package" / "dvc").mkdir(parents=True)
    (tmp_path / "package" / "dvc" / "__init__.py").touch()
    (tmp_path / "package" / "dvc" / "__main__.py").write_text(DVC)
    (tmp_path / "stage.py").write_text(STAGE)
    return tmp_path


@pytest.fixture
def below(root: Path) -> Iterator[Callable[[str], list[psutil.Process]]]:
    """Waits until the stages of these cells are at work; gives them and the DVCs above them."""
    seen: list[psutil.Process] = []

    def wait(cells: str) -> list[psutil.Process]:
        files = [root / f"{cell}.pids" for cell in cells.split() or ["all"]]
        last = time.monotonic() + 40
        while not all(file.is_file() and len(file.read_text().split()) == 2 for file in files):
            assert time.monotonic() < last, "no stage began"
            time.sleep(0.05)
        for file in files:
            seen.extend(psutil.Process(int(pid)) for pid in file.read_text().split())
        return seen

    yield wait
    for process in seen:
        if process.is_running():
            process.kill()


def start(root: Path, cells: str, seconds: float = 60, command: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "CELLS": cells,
        "SECONDS_": str(seconds),
        "PYTHONPATH": f"{root / 'package'}{os.pathsep}{SOURCE}",
    }
    words = [*command, sys.executable, "-c", COMMAND, "study", "run"]
    return subprocess.Popen(words, cwd=root, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("cells", [BESIDE, ""], ids=["side by side", "one after another"])
@pytest.mark.parametrize(
    ("number", "code", "received"),
    [
        (signal.SIGKILL, -9, "SIGTERM"),  # each stage sees it itself
        (signal.SIGTERM, 143, "SIGINT"),
        (signal.SIGHUP, 129, "SIGINT"),  # the terminal is closed
        (signal.SIGINT, 1, "SIGINT"),
    ],
    ids=["SIGKILL", "SIGTERM", "SIGHUP", "SIGINT"],
)
def test_nothing_outlasts_it(
    number: signal.Signals, code: int, received: str, cells: str, root: Path, below: Callable
) -> None:
    study = start(root, cells)
    processes = below(cells)
    began = time.monotonic()
    os.killpg(study.pid, number)
    assert study.wait(10) == code
    _, left = psutil.wait_procs(processes, 10)
    assert not left
    assert time.monotonic() - began < 10
    for cell in cells.split() or ["all"]:
        assert (root / f"{cell}.signal").read_text() == received
        # DVC was there to the end, and knows that the stage has failed.
        assert (root / f"{cell}.code").read_text() == str(128 + signal.Signals[received])


def test_a_second_signal_breaks_nothing_off(root: Path, below: Callable) -> None:
    study = start(root, BESIDE)
    processes = below(BESIDE)
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
        study.send_signal(number)
    assert study.wait(10) == 129
    assert not psutil.wait_procs(processes, 10)[1]
    assert {(root / f"{cell}.signal").read_text() for cell in BESIDE.split()} == {"SIGINT"}


def test_with_nohup_it_goes_on_when_the_terminal_is_closed(root: Path, below: Callable) -> None:
    study = start(root, "", seconds=1.5, command=("nohup",))
    processes = below("")
    os.killpg(study.pid, signal.SIGHUP)
    for process in processes:
        process.send_signal(signal.SIGHUP)
    study.wait(20)
    assert (root / "all.done").exists()
    assert (root / "all.code").read_text() == "0"


TORN = "schema: '2.0'\nstages:\n  train@a-b-0:\n    cm"


def test_a_lock_file_that_was_torn_is_mended_first(root: Path) -> None:
    (root / "dvc.lock").write_text(TORN)
    start(root, "", seconds=0).wait(20)
    assert (root / "all.done").exists()
    assert not (root / "dvc.lock").exists()
    assert (root / ".finetune" / "dvc.lock.damaged").read_text() == TORN


def test_a_lock_file_that_its_own_end_has_torn_is_mended_at_last(root: Path, below: Callable) -> None:
    study = start(root, "")
    below("")
    (root / "dvc.lock").write_text(TORN)
    study.terminate()
    assert study.wait(15) == 143
    assert not (root / "dvc.lock").exists()
