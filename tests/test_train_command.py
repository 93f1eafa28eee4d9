"""What `finetune train` and `finetune run` do around a training."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from finetune import cli, interruption, live, params, stages, workflow
from finetune.cli import stages as commands
from finetune.errors import InputError
from finetune.live import Live
from finetune.study import Layout
from finetune.training import Listener
from signalled import ended_by_a_signal, terminated
from tracked_study import move_home


def test_a_tracking_server_that_does_not_answer_holds_up_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny: dict[str, Any]
) -> None:
    # Signals are not heard there: the run is whole.
    move_home(monkeypatch, tmp_path)
    monkeypatch.setattr(stages, "train", lambda *_, **__: Path("place"))
    monkeypatch.setattr(Live, "_finish", lambda self: time.sleep(30))
    assert commands._PATIENCE <= 6  # and what may come before and after it within 10 s of a signal
    monkeypatch.setattr(commands, "_PATIENCE", 0.1)
    began = time.monotonic()
    assert commands.train_run(params.parse(tiny), Layout(tmp_path), None, "auto") == Path("place")
    assert time.monotonic() - began < 5
    assert "no answer in time; the run is whole" in capsys.readouterr().err


def test_a_signal_as_the_run_moves_into_its_place_waits_for_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Any]
) -> None:
    def trained(_: object, __: Layout, listeners: tuple[Listener, ...], **___: object) -> Path:
        listeners[0].epoch({"epoch": 1})
        with interruption.finishing():
            terminated()  # it is only noted
        return Path("place")

    move_home(monkeypatch, tmp_path)
    monkeypatch.setattr(stages, "train", trained)
    monkeypatch.setattr(Live, "_send", lambda *_: time.sleep(30))
    monkeypatch.setattr(live, "_PATIENCE", 0.5)
    began = time.monotonic()
    with ended_by_a_signal():
        commands.train_run(params.parse(tiny), Layout(tmp_path), None, "auto")
    assert time.monotonic() - began < 8


def test_a_run_outside_dvc_counts_its_start_up_from_the_commands_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Any]
) -> None:
    began = []

    def run_alone(*given: Any) -> None:
        began.append(given[3])
        raise InputError("enough")

    tiny["study"]["datasets"], tiny["datasets"] = ["cifar10"], {"cifar10": {}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tiny))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workflow, "run_alone", run_alone)
    before = signal.getsignal(signal.SIGTERM)
    CliRunner().invoke(cli.cli, ["run", "--dataset", "cifar10", "--strategy", "same_lr"])
    signal.signal(signal.SIGTERM, before)
    assert began == [cli.BEGAN]
