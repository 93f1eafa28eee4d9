"""Finished runs that stay in their work area until DVC has noted them: DVC deletes what a stage wrote where it ends, or
DVC itself does, before dvc.lock is written, and the next call then adopts the kept run instead of training again.

They are for the very code that made them: DVC runs a stage again for code that has changed since.
"""

import hashlib
import shutil
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from finetune import runs
from finetune.errors import InputError
from finetune.study import CELL, work_area
from finetune.work_lock import lock_of

FINISHED = "finished"  # the folder in a work area
_CODE = "code"  # beside it: a digest of what made it


def claim(work: Path) -> None:
    """Clear the area of a run that other code made; note this process's code as that of what it holds or will hold."""
    noted = work / _CODE
    if noted.is_file() and noted.read_bytes() != _code().encode():
        _clear(work)
    if not noted.is_file():
        runs.write_text(noted, _code())


def forget(run_key: str) -> None:
    """Clear the work area of a run that was kept, unless somebody trains it again, or its record has been edited and
    the key is a way out of the work areas."""
    work = work_area(run_key)
    if work.name == run_key and (work / FINISHED).is_dir():
        with suppress(Timeout), FileLock(lock_of(work), timeout=0):
            _clear(work)
            shutil.rmtree(work, ignore_errors=True)


def forget_others(work: Path, record: Mapping[str, Any]) -> None:
    """Clear the areas of kept runs of the same data set, strategy and seed, whose settings have changed since."""
    for path in work.parent.glob(f"*/{FINISHED}/{runs.RUN}"):
        with suppress(InputError):
            other = runs.read_json(path)
            if path.parents[1] != work and all(other[key] == record[key] for key in CELL):
                forget(path.parents[1].name)


def _clear(work: Path) -> None:
    """Drop a finished run at once: what is left of it, should this be cut short, is never taken for one."""
    gone = work / "gone"
    shutil.rmtree(gone, ignore_errors=True)
    with suppress(FileNotFoundError):  # somebody else did
        (work / FINISHED).rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
    (work / _CODE).unlink(missing_ok=True)


@cache
def _code() -> str:
    """A digest of this package's source, as it was when this process imported it."""
    hashed = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        hashed.update(file.read_bytes())
    return hashed.hexdigest()


_code()
