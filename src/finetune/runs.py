"""The run folder and the work area: file names, atomic writes, moving into place, reading back."""

import csv
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from finetune.errors import InputError

# Deterministic: the same run on the same machine writes the same bytes.
RUN, AUDIT, CURVES, METRICS, MODEL = "run.json", "audit.csv", "curves.csv", "metrics.json", "model.safetensors"
# Exempt: times, machine, versions.
PROVENANCE, COST = "provenance.json", "cost.json"
FILES = (RUN, AUDIT, CURVES, METRICS, MODEL, PROVENANCE, COST)
# Of an evaluation folder.
PREDICTIONS = "predictions.csv"


@dataclass(frozen=True)
class RunFolder:
    """A finished run, read back."""

    path: Path
    run: dict[str, Any]
    metrics: dict[str, Any]
    cost: dict[str, Any]
    provenance: dict[str, Any]
    curves: list[dict[str, float]]  # one row per epoch, keyed as in curves.csv
    audit: list[dict[str, str]]


def read(folder: Path) -> RunFolder:
    """Read a finished run.

    Raises:
        InputError: a file of the run is missing.
    """
    for name in FILES:
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: no such file, but the study lists this run; make it with `dvc repro`")
    with (folder / AUDIT).open(newline="") as file:
        audit = list(csv.DictReader(file))
    return RunFolder(
        path=folder,
        run=read_json(folder / RUN),
        metrics=read_json(folder / METRICS),
        cost=read_json(folder / COST),
        provenance=read_json(folder / PROVENANCE),
        curves=read_curves(folder / CURVES),
        audit=audit,
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read one of our own JSON files."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; make it with `dvc repro`") from None
    except ValueError:
        raise InputError(f"{path}: not valid JSON; make it again with `dvc repro -f`") from None


def read_curves(path: Path) -> list[dict[str, float]]:
    """curves.csv, one row per epoch; a missing value (no validation split) is NaN."""
    with path.open(newline="") as file:
        return [{k: float(v) if v else float("nan") for k, v in row.items()} for row in csv.DictReader(file)]


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically: aside, then renamed."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal keys as CSV, atomically; floats as their shortest exact text."""
    assert rows
    lines = [list(rows[0])] + [["" if v is None else v for v in row.values()] for row in rows]
    aside = _aside(path)
    with aside.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)
    aside.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    aside = _aside(path)
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def move_into_place(aside: Path, place: Path) -> None:
    """Put the finished folder `aside` at `place`, replacing what is there; never leaves half a folder at `place`."""
    place.parent.mkdir(parents=True, exist_ok=True)
    near, old = (place.with_name(f".{place.name}.{word}.{os.getpid()}") for word in ("new", "old"))
    if place.exists():
        place.rename(old)
    try:
        aside.rename(place)
    except OSError:  # another file system; `aside` stays whole until the copy is in place
        shutil.copytree(aside, near)
        near.rename(place)
        shutil.rmtree(aside)
    if old.exists():
        shutil.rmtree(old)


@contextmanager
def locked(work: Path) -> Iterator[Path]:
    """Hold the work area `work` (made if need be). The lock dies with its process.

    Raises:
        InputError: another process trains this run.
    """
    work.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work.with_name(work.name + ".lock"), timeout=0):
            yield work
    except Timeout:
        raise InputError(
            f"{work}: another process is training this very run; wait for it to finish, or stop it first"
        ) from None


def _aside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}")
