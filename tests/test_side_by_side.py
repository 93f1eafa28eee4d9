"""Trainings at once, with a stand-in for DVC that notes what it is asked and when."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from finetune import side_by_side

DVC = """
import os, pathlib, signal, sys, time
words, root = sys.argv[1:], pathlib.Path.cwd()
if "prepare" in words:
    (root / "prepared").touch()
    sys.exit(int(os.environ.get("BROKEN", 0)))
if "--dry" in words:
    for cell in os.environ["CELLS"].split():
        print(f"Running stage 'train@{cell}':")
    sys.exit(int(os.environ.get("DRY", 255)))
cell = words[-1].partition("@")[2]
tries = root / f"{cell}.tries"
tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
if cell == "busy" and len(tries.read_text()) < 3:
    print("ERROR: Unable to acquire lock", flush=True)
    sys.exit(1)
if cell == "last_blocks":
    print("Updating lock file 'dvc.lock'", flush=True)
    print(f"{cell}/0: epoch 1/1", flush=True)
    print("finetune: the loss is not finite", flush=True)
    sys.exit(1)
if cell == "long":
    signal.signal(signal.SIGINT, lambda *_: (root / "interrupted").touch() or sys.exit(130))
(root / f"{cell}.began").write_text(str(time.time()))
print("Running stage 'train':", flush=True)
print("> python -m finetune train", flush=True)
print(f"{cell}: epoch 1/1 {' '.join(words[:2])}", flush=True)
time.sleep(30 if cell == "long" else 1)
(root / f"{cell}.ended").write_text(str(time.time()))
"""


@pytest.fixture
def dvc(tmp_path: Path) -> list[str]:
    script = tmp_path / "dvc.py"
    script.write_text(DVC)
    return [sys.executable, str(script)]


def train(root: Path, dvc: list[str], cells: str, at_once: int) -> list[str]:
    said: list[str] = []
    side_by_side.train(cells.split(), at_once, root, dvc, dict(os.environ), said.append)
    return said


def out_of_date(root: Path, dvc: list[str], cells: str, **more: str) -> list[str]:
    return side_by_side.out_of_date(root, dvc, {**os.environ, "CELLS": cells, **more})


def most_at_once(root: Path, cells: str) -> int:
    spans = [[float((root / f"{c}.{end}").read_text()) for end in ("began", "ended")] for c in cells.split()]
    return max(sum(began <= moment < ended for began, ended in spans) for moment, _ in spans)


@pytest.mark.parametrize("at_once", [2, 3])
def test_as_many_run_at_once_as_are_asked_for(at_once: int, dvc: list[str], tmp_path: Path) -> None:
    cells = "a-b-0 a-b-1 a-c-0 a-c-1"
    said = train(tmp_path, dvc, cells, at_once)
    assert most_at_once(tmp_path, cells) == at_once
    assert said[0] == f"4 trainings, {at_once} at a time"
    assert sorted(said[1:]) == sorted(f"{cell}: epoch 1/1 repro -s" for cell in cells.split())


def test_what_is_out_of_date_is_what_a_dry_run_would_train(dvc: list[str], tmp_path: Path) -> None:
    assert out_of_date(tmp_path, dvc, "a-b-0 a_c-d-1") == ["a-b-0", "a_c-d-1"]


def test_where_nothing_is_out_of_date_nothing_is_prepared(dvc: list[str], tmp_path: Path) -> None:
    assert out_of_date(tmp_path, dvc, "", DRY="0") == []
    assert not (tmp_path / "prepared").exists()


def test_where_preparing_fails_nothing_is_left_to_begin(dvc: list[str], tmp_path: Path) -> None:
    assert out_of_date(tmp_path, dvc, "a-b-0 a-b-1", BROKEN="1") == []


def test_a_busy_lock_is_tried_again_and_a_failure_is_not(dvc: list[str], tmp_path: Path) -> None:
    said = train(tmp_path, dvc, "busy last_blocks fine", 2)
    assert (tmp_path / "busy.tries").read_text() == "xxx"
    assert (tmp_path / "last_blocks.tries").read_text() == "x"
    assert (tmp_path / "busy.ended").exists() and (tmp_path / "fine.ended").exists()
    assert "finetune: the loss is not finite" in said


def test_an_interruption_reaches_what_still_runs(dvc: list[str], tmp_path: Path) -> None:
    code = f"""
        import os, signal, sys
        from pathlib import Path
        from finetune import side_by_side
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        side_by_side.train(["long", "fine"], 2, Path({str(tmp_path)!r}), {dvc!r}, dict(os.environ), print)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    waited = time.monotonic() + 20
    while not (tmp_path / "long.began").exists() and time.monotonic() < waited:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143
    assert (tmp_path / "interrupted").exists()


def test_a_signal_that_came_to_another_thread_is_seen(dvc: list[str], tmp_path: Path) -> None:
    code = f"""
        import os, signal, sys, threading
        from pathlib import Path
        from finetune import side_by_side
        def say(line):
            if "long" in line:
                signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        side_by_side.train(["long"], 1, Path({str(tmp_path)!r}), {dvc!r}, dict(os.environ), say)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    assert process.wait(15) == 143
    assert (tmp_path / "interrupted").exists()


@pytest.mark.parametrize(("cores", "threads", "expected"), [(2, 1, 2), (2, 2, 1), (1, 4, 1), (8, 2, 4), (64, 1, 4)])
def test_jobs_fill_the_cores_but_not_dvcs_lock(
    cores: int, threads: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(cores), raising=False)
    assert side_by_side.jobs(threads) == expected
