"""Real processes: the same bits in each, and the same after SIGKILL at any moment."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).parent
KILLS = 20


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, toy_inputs: Path, tiny_content: Mapping[str, Any]) -> dict[str, Any]:
    """What tests/killed_training.py tells of a run of 9 steps, each saved, that was killed 20 times."""
    root = tmp_path_factory.mktemp("killed")
    settings = root / "params.yaml"
    settings.write_text(yaml.safe_dump({**tiny_content, "training": {**tiny_content["training"], "epochs": 3}}))
    command = [sys.executable, str(HERE / "killed_training.py"), str(toy_inputs), str(root), str(settings), "7"]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(KILLS)], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_two_processes_give_the_same_bytes(told: dict[str, Any]) -> None:
    assert told["twice"] == []


def test_a_run_killed_at_twenty_moments_ends_with_the_same_bytes(told: dict[str, Any]) -> None:
    assert len(told["left"]) == KILLS
    assert told["wrong"] == []


def test_the_kills_met_it_while_it_saved_wrote_and_moved(told: dict[str, Any]) -> None:
    left = " | ".join(told["left"])
    assert ".checkpoint.pt" in left
    assert "curves.csv" in left or "finished" in left


def test_nothing_is_left_beside_it(told: dict[str, Any]) -> None:
    assert told["stray"] == []
