"""Real processes: the same bits in each, and the same after SIGKILL at any moment."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from toy_training import LOG, differ

HERE = Path(__file__).parent
KILLS = 20
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{HERE.parent / 'src'}:{HERE.parent}", "OMP_NUM_THREADS": "1"}


def settings(place: Path, content: Mapping[str, Any], **changes: Any) -> Path:
    """A params.yaml of a run of 9 steps, if nothing else is said."""
    place.write_text(yaml.safe_dump({**content, "training": {**content["training"], "epochs": 3, **changes}}))
    return place


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, toy_inputs: Path, tiny_content: Mapping[str, Any]) -> dict[str, Any]:
    """What tests/killed_training.py tells of a run of 9 steps, each saved, that was killed 20 times."""
    root = tmp_path_factory.mktemp("killed")
    asked = (str(toy_inputs), str(root), str(settings(root / "params.yaml", tiny_content)), "7", str(KILLS))
    command = [sys.executable, str(HERE / "killed_training.py"), *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_two_processes_give_the_same_bytes(told: dict[str, Any]) -> None:
    assert told["twice"] == []


def test_a_run_killed_at_twenty_moments_ends_with_the_same_bytes(told: dict[str, Any]) -> None:
    assert len(told["left"]) == KILLS
    assert told["wrong"] == []


@pytest.mark.parametrize("sign", [".checkpoint.pt", "unfinished/curves.csv", "finished", "vacated", "placed"])
def test_kills_met_it_while_it_saved_wrote_and_moved(told: dict[str, Any], sign: str) -> None:
    assert [left for left in told["left"] if sign in left.split(", ")]


@pytest.mark.parametrize(
    ("moment", "there", "not_there"),
    [
        ("saving", {".checkpoint.pt", "part of a checkpoint"}, {"finished", "placed"}),
        ("writing", {"unfinished/curves.csv", "checkpoint.pt"}, {".checkpoint.pt", "finished", "placed"}),
        ("finished", {"finished", "checkpoint.pt"}, {"unfinished/curves.csv", "placed"}),
        ("moving", {"finished", "checkpoint.pt", "vacated"}, {"placed"}),
        ("placed", {"placed", "checkpoint.pt"}, {"finished"}),
    ],
)
def test_each_of_these_moments_was_met(told: dict[str, Any], moment: str, there: set[str], not_there: set[str]) -> None:
    [left] = [set(left.split(", ")) for left, met in zip(told["left"], told["met"], strict=True) if met == moment]
    assert there <= left
    assert not not_there & left


def test_nothing_is_left_beside_it(told: dict[str, Any]) -> None:
    assert told["stray"] == []


@pytest.mark.parametrize("changes", [{"threads": 2}, {"precision": "bf16"}], ids=["two threads", "bf16"])
def test_of_two_processes_one_killed_and_gone_on_with_by_a_third_the_bytes_are_the_same(
    changes: dict[str, Any], tmp_path: Path, toy_inputs: Path, tiny_content: Mapping[str, Any]
) -> None:
    asked = settings(tmp_path / "params.yaml", tiny_content, epochs=2, **changes)

    def start(root: Path, *moment: str) -> subprocess.Popen[bytes]:
        root.mkdir(exist_ok=True)
        command = [sys.executable, str(HERE / "toy_training.py"), str(toy_inputs), str(root), str(asked), *moment]
        return subprocess.Popen(command, env=ENVIRONMENT)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    # Saved by then: after three steps, after their epoch, after the next step.
    both = start(whole), start(killed, "saving", "6")
    assert [process.wait(120) for process in both] == [0, -signal.SIGKILL]
    assert start(killed).wait(120) == 0
    assert "goes on after epoch 1 and 1 step of the next" in (killed / LOG).read_text()
    assert differ(whole, killed) == []
