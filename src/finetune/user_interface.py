"""The MLflow UI on loopback, opened at the study's comparison."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

from finetune import study
from finetune.errors import InputError
from finetune.experiment import open_experiment, ui_address
from finetune.params import Params
from finetune.tracking_store import redacted, reported
from finetune.unsignalled import communicated, signals_later

_PATIENCE = 5.0  # seconds that the server has to end by itself


def serve(params: Params, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve the study's tracking store until interrupted; where a server has it already, only name the address.

    However this process ends, short of SIGKILL, the server ends with it.

    Raises:
        InputError: host or port cannot be listened on, MLflow cannot be reached, or its server ended by itself.
    """
    root = study.anchor()
    with reported(root):
        experiment = open_experiment(root, params.study.name)
    there = urlsplit(experiment.uri)
    if there.scheme in ("http", "https"):
        say(f"the tracking server is {redacted(experiment.uri)}; the comparison:")
        say(ui_address(there._replace(netloc=there.netloc.rpartition("@")[2]).geturl(), experiment.id))
        return
    _check_free(host, port)
    address = ui_address(f"http://{host}:{port}", experiment.id)
    say(f"the comparison of study {params.study.name}:\n{address}\nCtrl-C ends it")
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    command += ["--backend-store-uri", experiment.uri, "--workers", "1"]
    # Without it the server starts workers for jobs that nobody here asks for.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    # In a session of its own, so that it can be ended with its workers: a signal to it alone would leave them.
    server = None
    try:
        with signals_later():
            server = subprocess.Popen(command, env={**os.environ, **quiet}, start_new_session=True)
        communicated(server)
    except KeyboardInterrupt:
        say("ended")
    else:
        raise InputError(
            f"mlflow server ended with exit code {server.returncode}; mend what it names above, and repeat"
        )
    finally:
        if server is not None:
            with signals_later(dropped=True):  # a second Ctrl-C would leave it
                _end(server)


def _check_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            ours = not isinstance(error, socket.gaierror) and error.errno != errno.EADDRNOTAVAIL
            mend = "name another with --port" if ours else "name an IPv4 address of this machine with --host"
            raise InputError(f"{host}:{port}: cannot be listened on ({error.strerror}); {mend}") from None


def _end(server: subprocess.Popen[bytes]) -> None:
    """End a server and its workers, which are one process group."""
    with suppress(ProcessLookupError):  # none of them is left
        os.killpg(server.pid, signal.SIGTERM)
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            server.poll()
            os.killpg(server.pid, 0)
            time.sleep(0.05)
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
