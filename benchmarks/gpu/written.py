"""Figures in the output folder: written as soon as they are there, and read again where a benchmark goes on."""

import json
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torchvision


def write(path: Path, figures: dict[str, Any], device: str) -> None:
    """Write figures with the machine, the commit and the date they were measured on; whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.aside")
    aside.write_text(json.dumps(machine(device) | figures, indent=2) + "\n", encoding="utf-8")
    aside.replace(path)


def earlier(path: Path, device: str) -> dict[str, Any]:
    """The figures at `path`, where they were measured on this machine and commit; else none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    same = {key: value for key, value in machine(device).items() if key != "date"}
    return found if isinstance(found, dict) and same.items() <= found.items() else {}


def machine(device: str) -> dict[str, Any]:
    """Where and when, and with what."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def _commit() -> str | None:
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:  # a bare machine has no git
        return None
    return git.stdout.strip() or None
