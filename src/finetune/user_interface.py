"""The MLflow UI on loopback, opened at the study's comparison."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from urllib.parse import urlsplit

from finetune import study
from finetune.errors import InputError
from finetune.experiment import open_experiment, ui_address
from finetune.params import Params
from finetune.tracking_store import reported


def serve(params: Params, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve the study's tracking store until interrupted; where a server has it already, only name the address.

    Raises:
        InputError: the port is taken, or MLflow cannot be reached.
    """
    root = study.anchor()
    with reported(root):
        experiment = open_experiment(root, params.study.name)
    there = urlsplit(experiment.uri)
    if there.scheme in ("http", "https"):
        say(f"the tracking server is {experiment.uri}; the comparison:")
        say(ui_address(there.hostname or "", there.port or {"http": 80, "https": 443}[there.scheme], experiment.id))
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"{host}:{port}: cannot be listened on ({error.strerror}); name another with --port"
            ) from None
    say(f"the comparison of study {params.study.name}:\n{ui_address(host, port, experiment.id)}\nCtrl-C ends it")
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    command += ["--backend-store-uri", experiment.uri, "--workers", "1"]
    # Without it the server starts workers for jobs that nobody here asks for.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    try:
        subprocess.run(command, env={**os.environ, **quiet}, check=False)
    except KeyboardInterrupt:
        say("ended")
