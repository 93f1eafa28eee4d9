"""One trainer in a work area at a time."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from finetune import work_lock
from finetune.errors import InputError
from finetune.work_lock import locked

HOLD = """
import sys, time
from pathlib import Path
from finetune.work_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    """Another process that holds the work area `work`."""
    source = str(Path(work_lock.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "work")],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": source},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_lock, "PATIENCE", 0.2)
    with pytest.raises(InputError, match="another process is training this very run"), locked(tmp_path / "work"):
        pass


def test_a_second_process_waits_for_one_that_is_about_to_end(
    tmp_path: Path, holder: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ending = threading.Timer(0.3, holder.kill)
    ending.start()
    with locked(tmp_path / "work") as work:
        assert work.is_dir()
        assert holder.wait() < 0
    assert "waiting 15 s for its end" in capsys.readouterr().out


def test_the_lock_dies_with_its_process(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    time.sleep(0.05)
    with locked(tmp_path / "work") as work:
        assert work.is_dir()


def test_another_runs_work_area_is_free(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with locked(tmp_path / "other") as work:
        assert work == tmp_path / "other"


def test_the_lock_is_let_go_of_at_the_end(tmp_path: Path) -> None:
    for _ in range(2):
        with locked(tmp_path / "work"):
            pass
