"""The life of the server that `finetune ui` starts, with real processes on loopback."""

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
from typing import Any

import pytest
import yaml

from finetune import user_interface
from finetune.errors import InputError
from tracked_study import make_params, move_home

PARAMS = make_params()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield move_home(monkeypatch, tmp_path)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def in_use(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def silent(_: str) -> None:
    pass


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 0)])
def test_the_server_ends_with_the_command(home: Path, number: signal.Signals, code: int) -> None:
    content = yaml.safe_dump(PARAMS.model_dump(mode="json"))
    (home / "params.yaml").write_text(content.replace("toy", "cifar10"))  # which has a reader
    port, log = free_port(), home / "ui.log"
    command = [sys.executable, "-m", "finetune", "ui", "--port", str(port)]
    environment = {**os.environ, "PYTHONPATH": str(Path(user_interface.__file__).parents[1])}
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while not answers(port):
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        process.send_signal(number)  # to it alone, as a supervisor does
        assert process.wait(30) == code, log.read_text()
        assert not in_use(port)
    finally:
        process.kill()
    assert f"http://127.0.0.1:{port}/#/experiments/" in log.read_text()


def test_a_server_that_is_being_started_as_ctrl_c_comes_ends_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def told(_: object, **more: Any) -> subprocess.Popen[bytes]:
        begun.append(start([sys.executable, "-c", "import time; time.sleep(60)"], **more))
        os.kill(os.getpid(), signal.SIGINT)
        return begun[0]

    monkeypatch.setattr(user_interface.subprocess, "Popen", told)
    user_interface.serve(PARAMS, "127.0.0.1", free_port(), silent)
    assert begun[0].poll() == -signal.SIGTERM


def test_a_server_that_ends_by_itself_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_interface.sys, "executable", "/bin/false")
    with pytest.raises(InputError, match="mlflow server ended with exit code 1"):
        user_interface.serve(PARAMS, "127.0.0.1", free_port(), silent)


def test_a_taken_port_names_the_option(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"127\.0\.0\.1:{port}: cannot be listened on .*; .* with --port$"):
            user_interface.serve(PARAMS, "127.0.0.1", port, silent)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])  # unknown; not this machine's
def test_a_host_that_is_not_this_machine_names_the_option(home: Path, host: str) -> None:
    with pytest.raises(InputError, match=rf"^{host}:.*cannot be listened on .*; .* with --host$"):
        user_interface.serve(PARAMS, host, free_port(), silent)


@pytest.mark.parametrize("server", ["tracking.example", "tracking.example:8443", "example.org/mlflow/"])
def test_where_a_server_has_the_store_only_its_address_is_named(
    server: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = user_interface.open_experiment(home, "tiny")
    elsewhere = type(opened)(opened.client, f"https://me:secret@{server}", "7", "tiny", aside=False)
    monkeypatch.setattr(user_interface, "open_experiment", lambda *_: elsewhere)
    said: list[str] = []
    user_interface.serve(PARAMS, "127.0.0.1", 5000, said.append)
    assert said[0] == f"the tracking server is https://***@{server}; the comparison:"
    assert said[1].startswith(f"https://{server.rstrip('/')}/#/experiments/7/runs?")
    assert "secret" not in "".join(said)
