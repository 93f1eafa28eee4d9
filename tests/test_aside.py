"""Stores that are being made: alone, aside, and cleared away after a kill."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from finetune.aside import clear_abandoned
from small_store import store_of

_HOLDER = """
import sys, time
from pathlib import Path
from finetune.aside import alone, aside
place = Path(sys.argv[1])
with alone(place):
    aside(place).mkdir()
    print("at work", flush=True)
    time.sleep(60)
"""


def test_what_another_process_is_making_is_left_until_that_is_killed(tmp_path: Path) -> None:
    maker = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path / "toy")],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": "src"},
    )
    assert maker.stdout is not None
    assert maker.stdout.readline() == "at work\n"
    assert clear_abandoned(tmp_path) == []
    assert (tmp_path / ".toy.aside").is_dir()
    maker.send_signal(signal.SIGKILL)
    maker.wait(30)
    assert clear_abandoned(tmp_path) == [tmp_path / ".toy.aside"]
    assert not (tmp_path / ".toy.aside").exists()


def test_what_a_killed_move_left_is_cleared_but_no_store(tmp_path: Path) -> None:
    for name in (".a.b.new.1", ".a.b.old.22", "a.b", ".toy.new.x", ".finetune"):
        (tmp_path / name).mkdir()
    assert clear_abandoned(tmp_path) == [tmp_path / ".a.b.new.1", tmp_path / ".a.b.old.22"]


def test_where_no_folder_is_there_is_nothing_to_clear(tmp_path: Path) -> None:
    assert clear_abandoned(tmp_path / "prepared") == []


def test_checking_stores_clears_what_was_left(tmp_path: Path) -> None:
    from finetune.cli import cli

    store = store_of(tmp_path, {"train": [(0, 4, 5), (1, 6, 3), (0, 7, 7)], "test": [(0, 3, 3)]})
    left = store.path.with_name(".gone.aside")
    left.mkdir()
    (tmp_path / "params.yaml").write_text(
        "study: {name: s, edition: any, datasets: [toy], strategies: [same_lr], seeds: [0], baseline: same_lr}\n"
        "datasets: {toy: {reader: class_folders}}\nstrategies: {same_lr: {}}\n"
    )
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        found = CliRunner().invoke(cli, ["store", "check"])
    finally:
        os.chdir(before)
    assert found.exit_code == 0
    assert f"{left.name}: was left by a killed prepare, deleted" in found.output
    assert not left.exists()
