"""A process that cannot import this repository, as where an exported model is loaded."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import finetune

SOURCE = Path(finetune.__file__).resolve().parents[1]


def told_elsewhere(code: str, cwd: Path) -> dict:
    """What `code` prints as JSON in a process that cannot import this repository."""
    without = f"""
        import importlib.util, json, pathlib, sys
        sys.path = [p for p in sys.path if pathlib.Path(p) != pathlib.Path({str(SOURCE)!r})]
        sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
        assert importlib.util.find_spec("finetune") is None
        import pandas as pd, mlflow.pyfunc
        def rows(frame):
            return json.loads(frame.to_json(orient="split", double_precision=15))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(without) + textwrap.dedent(code)],
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
