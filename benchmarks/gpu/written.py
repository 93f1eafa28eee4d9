"""Figures in the output folder: written as soon as they are there, and read again where a benchmark goes on."""

import hashlib
import json
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torchvision

import finetune
from finetune.params import Params
from finetune.store import open_store


def of(store: Path, tiny: bool, params: Params | None = None) -> dict[str, Any]:
    """What figures are of."""
    settings = hashlib.sha256(params.model_dump_json().encode()).hexdigest()[:12] if params else None
    return {"store": open_store(store).digest, "tiny": tiny} | ({"params": settings} if settings else {})


def write(path: Path, figures: dict[str, Any], device: str, of: dict[str, Any]) -> None:
    """Write figures with what they are `of`, and with the machine, the code and the date; whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.aside")
    aside.write_text(json.dumps(machine(device) | {"of": of} | figures, indent=2) + "\n", encoding="utf-8")
    aside.replace(path)


def earlier(path: Path, device: str, of: dict[str, Any]) -> dict[str, Any]:
    """The figures at `path`, where they are of the same and were measured on this machine, by this code; else none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    same = {key: value for key, value in machine(device).items() if key not in ("date", "commit")} | {"of": of}
    return found if isinstance(found, dict) and same.items() <= found.items() else {}


def machine(device: str) -> dict[str, Any]:
    """Where and when, and with what."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "code": _code(),
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def _code() -> str:
    """12 hex digits of the project's and the benchmarks' source."""
    hashed = hashlib.sha256()
    for folder in (Path(finetune.__path__[0]), Path(__file__).parent):
        for file in sorted(folder.rglob("*.py")):
            hashed.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return hashed.hexdigest()[:12]


def _commit() -> str | None:
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:  # a bare machine has no git
        return None
    return git.stdout.strip() or None
