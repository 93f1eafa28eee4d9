"""Tracking, registry and live training against a real `mlflow server` on loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune import registry, tracking
from finetune.experiment import Experiment, open_experiment
from finetune.live import Live
from finetune.serving import Classifier
from finetune.study import Layout, Run
from tracked_study import epochs, image_file, make_params, move_home, run_record, write_run, write_study
from waiting import until

PARAMS = make_params()  # same_lr and from_scratch, seed 0
FIRST = Run("toy", "same_lr", 0)
COMPARISON = {"datasets": {"toy": {"winner": {"strategy": "same_lr", "seed": 0, "run_key": "key-same_lr-0"}}}}


class Server:
    """An `mlflow server` over the database and artifacts of one folder, on one port."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri, self._folder = f"http://127.0.0.1:{self.port}", folder
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | quiet
        log = (self._folder / "server.log").open("w")
        # In a session of its own, so that its workers can be ended with it.
        self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        until = time.monotonic() + 120
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < until, Path(log.name).read_text()
            time.sleep(0.2)

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return move_home(monkeypatch, tmp_path)


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    folder = home / "server"
    folder.mkdir()
    (home / "mlflow.db").rename(folder / "mlflow.db")
    made = Server(folder)
    made.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", made.uri)
    yield made
    made.kill()


def silent(_: str) -> None:
    pass


def test_a_study_is_tracked_registered_and_served_through_the_server(home: Path, server: Server) -> None:
    layout = write_study(home, PARAMS)
    assert tracking.track(PARAMS, layout, silent)["models"] == 2
    assert not any(tracking.track(PARAMS, layout, silent).values())
    assert registry.register(COMPARISON, layout, PARAMS, silent) == {"toy": "1"}
    assert registry.register(COMPARISON, layout, PARAMS, silent) == {"toy": "1"}
    there = open_experiment(home, "tiny")
    run = there.find("key-same_lr-0")
    assert run is not None
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    assert run.data.metrics["test/acc"] == 4 / 6
    classifier = registry.champion("toy").classifier
    assert classifier.predict([image_file()]) == Classifier(layout.run(FIRST)).predict([image_file()])
    assert not (home / "mlflow.db").exists()


def epochs_of(there: Experiment) -> list[int]:
    run = there.find("key-same_lr-0")
    assert run is not None
    return [m.step for m in there.client.get_metric_history(run.info.run_id, "train/loss")]


def test_training_outlives_the_server_and_track_repairs(
    home: Path, server: Server, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    one = make_params(strategies=("same_lr",))
    first, *rest = epochs()
    with Live(one) as live:
        live.started(run_record(one, FIRST))
        live.epoch(first)
        until(lambda: epochs_of(open_experiment(home, "tiny")) == [1])
        server.kill()
        began = time.monotonic()
        for row in rest * 20:
            live.epoch(row)
        live.finished()
        assert time.monotonic() - began < 5  # one failed request, not forty
    assert capsys.readouterr().err.count("tracking failed") == 1
    write_run(home, one, FIRST)
    server.start()
    there = open_experiment(home, "tiny")
    before = there.find("key-same_lr-0")
    assert before is not None
    assert before.info.status == "RUNNING"
    sent = tracking.track(one, Layout(home), silent)
    assert (sent["runs"], sent["epochs"], sent["ended"]) == (0, 2, 1)
    history = there.client.get_metric_history(before.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert there.client.get_run(before.info.run_id).info.status == "FINISHED"


def test_a_server_that_hangs_holds_a_training_up_once(
    home: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as deaf:  # takes connections, never answers
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        began = time.monotonic()
        with Live(PARAMS) as live:
            live.started(run_record(PARAMS, FIRST))
            for row in epochs():
                live.epoch(row)
            live.finished()
    assert time.monotonic() - began < 4
    assert capsys.readouterr().err.count("tracking failed") == 1
