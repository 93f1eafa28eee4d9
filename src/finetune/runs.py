"""The run folder: file names, atomic writes, moving into place, reading back.

A file of ours that is absent or damaged is an InputError that names the file and the stage that makes it again.
"""

import csv
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.errors import InputError

# Deterministic: the same run on the same machine writes the same bytes.
RUN, AUDIT, CURVES, METRICS, MODEL = "run.json", "audit.csv", "curves.csv", "metrics.json", "model.safetensors"
DETERMINISTIC = (RUN, AUDIT, CURVES, METRICS, MODEL)
# Exempt: times, machine, versions.
PROVENANCE, COST = "provenance.json", "cost.json"
FILES = (*DETERMINISTIC, PROVENANCE, COST)
# Of an evaluation folder.
PREDICTIONS = "predictions.csv"
# Top folder -> the stage that writes below it, and how many folders name what it writes.
_MAKERS = {
    "prepared": ("prepare", 1),
    "sheets": ("sheet", 1),
    "runs": ("train", 3),
    "evaluations": ("evaluate", 3),
    "comparison": ("compare", 0),
}


class _Content(dict[str, Any]):
    """What a file of ours holds; a key that it lacks is missed by whoever looks it up, with an InputError."""

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise damaged(self.path, f"lacks '{key}'")


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
        InputError: a file of the run is missing or damaged. What a file that can be read lacks is missed only when it
            is looked up.
    """
    for name in FILES:
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: no such file; {_make(folder / name)}")
    return RunFolder(
        path=folder,
        run=read_json(folder / RUN),
        metrics=read_json(folder / METRICS),
        cost=read_json(folder / COST),
        provenance=read_json(folder / PROVENANCE),
        curves=read_curves(folder / CURVES),
        audit=read_csv(folder / AUDIT),
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read one of our own JSON files. Looking up a key that it lacks raises InputError, at any depth.

    Raises:
        InputError: the file is missing, is not JSON or no mapping.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_hook=lambda section: _Content(path, section))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {_make(path)}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: not valid JSON; {make_again(path)}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: found a {type(content).__name__}, expected a mapping; {make_again(path)}")
    return content


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read one of our own CSV files, a mapping per row. Looking up a column that it lacks raises InputError.

    Raises:
        InputError: the file is missing, cut off or without a row, or is not CSV.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            text = file.read()
        rows: list[dict[str, str]] = [
            _Content(path, row) for row in csv.DictReader(io.StringIO(text, newline=""), strict=True)
        ]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {_make(path)}") from None
    except (csv.Error, UnicodeDecodeError):
        raise InputError(f"{path}: not valid CSV; {make_again(path)}") from None
    if not (rows and text.endswith("\n")) or any(None in (*row, *row.values()) for row in rows):
        found = "is cut off, or has a row of other columns" if rows else "holds no row"
        raise InputError(f"{path}: {found}; {make_again(path)}")
    return rows


def read_curves(path: Path) -> list[dict[str, float]]:
    """curves.csv, one row per epoch; a missing value (no validation split) is NaN."""
    rows = read_csv(path)
    try:
        return [_Content(path, {k: float(v or "nan") for k, v in row.items()}) for row in rows]
    except ValueError:
        raise InputError(f"{path}: holds what is no number; {make_again(path)}") from None


def damaged(path: Path, found: str) -> InputError:
    """What to raise for a file of ours that holds what it should not."""
    return InputError(f"{path}: {found}, so it is damaged or of another version; {make_again(path)}")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal keys as CSV, atomically; floats as their shortest exact text."""
    assert rows
    lines = [list(rows[0])] + [["" if v is None else v for v in row.values()] for row in rows]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    write_text(path, text.getvalue())


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: aside, then renamed.

    Raises:
        OSError: it cannot be written; `path` is named and left as it was, and nothing else is left.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        aside.write_bytes(content)
        aside.replace(path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def flush(folder: Path) -> None:
    """Have the files of `folder` written to the disk, so that a power failure finds them whole."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def move_into_place(aside: Path, place: Path) -> None:
    """Put the finished folder `aside` at `place`, replacing what is there.

    Whenever it is killed, neither ever is half a folder, and one of them is the whole new one.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    for left in (*place.parent.glob(f".{place.name}.new.*"), *place.parent.glob(f".{place.name}.old.*")):
        shutil.rmtree(left, ignore_errors=True)  # of moves that were killed
    near, old = (place.with_name(f".{place.name}.{word}.{os.getpid()}") for word in ("new", "old"))
    if place.exists():
        place.rename(old)
    try:
        aside.rename(place)
    except OSError:  # another file system; `aside` stays whole until the copy is in place
        copy_folder(aside, near)
        near.rename(place)
        gone = aside.with_name(f".{aside.name}.moved")
        shutil.rmtree(gone, ignore_errors=True)
        aside.rename(gone)
        shutil.rmtree(gone)
    if old.exists():
        shutil.rmtree(old)


def copy_folder(folder: Path, place: Path) -> None:
    """As shutil.copytree, but an error is the system's own, which names the file and is told in one sentence."""
    place.mkdir()
    for path in sorted(folder.rglob("*")):
        there = place / path.relative_to(folder)
        there.mkdir() if path.is_dir() else shutil.copy2(path, there)


def _make(path: Path) -> str:
    """What to do about a file of ours that is not there."""
    return "repeat what made its folder" if ".finetune" in path.parts else "make it with `dvc repro`"


def make_again(path: Path) -> str:
    """What to do about a damaged file of ours. Forced: DVC may have recorded the file as it is."""
    folders = path.parts[:-1]
    if ".finetune" in folders:  # made outside DVC
        return f"delete {path.parent} and repeat what made it"
    for top, (stage, depth) in _MAKERS.items():
        if len(folders) > depth and folders[-1 - depth] == top:
            item = "-".join(folders[len(folders) - depth :])
            return f"make it again with `dvc repro -f -s {stage}{'@' if item else ''}{item}`"
    return "make it again with `dvc repro`"
