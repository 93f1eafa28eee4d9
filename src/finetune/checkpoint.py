"""Atomic save and resume at epoch boundaries, with the run's fingerprint."""

import os
from pathlib import Path
from typing import Any

import torch

FILE = "checkpoint.pt"


def save(work: Path, fingerprint: str, content: dict[str, Any]) -> None:
    """Write the checkpoint of the run in work area `work`: whole or not at all, also when the power fails."""
    aside = work / f".{FILE}"
    with aside.open("wb") as file:
        torch.save({"fingerprint": fingerprint, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(work / FILE)


def load(work: Path, fingerprint: str) -> dict[str, Any] | None:
    """The last checkpoint in `work`; None when there is none, it is another run's, or it cannot be read."""
    path = work / FILE
    if not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # of damaged bytes torch's reader makes errors of many kinds
        return None
    return content if isinstance(content, dict) and content.get("fingerprint") == fingerprint else None
