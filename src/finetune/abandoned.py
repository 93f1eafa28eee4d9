"""Trainings that were left unfinished because settings have changed since: said, and never resumed by another run."""

from pathlib import Path

from filelock import FileLock, Timeout

from finetune import checkpoint, runs
from finetune.errors import InputError
from finetune.params_file import flat
from finetune.study import CELL
from finetune.work_lock import lock_of

# What the numbers depend on, in run.json.
_SETTINGS = ("plan", "options", "training", "prepare", "edition", "store_digest", "backbone", "fraction")


def lines(work: Path) -> list[str]:
    """One sentence for each unfinished training of the same data set, strategy and seed as the one in work area `work`
    that has other settings, and so a work area of its own, and has saved a checkpoint there."""
    own = runs.read_json(work / "unfinished" / runs.RUN)
    name = "/".join(str(own[key]) for key in CELL)
    said = []
    for path in sorted(work.parent.glob(f"*/unfinished/{runs.RUN}")):
        other = path.parents[1]
        if other == work or not (other / checkpoint.FILE).is_file():
            continue
        try:
            found = runs.read_json(path)
            if any(found[key] != own[key] for key in CELL) or _under_way(other):
                continue
            before, now = (dict(flat({key: run[key] for key in _SETTINGS})) for run in (found, own))
        except (InputError, OSError):  # it is being written, or was by another version
            continue
        changed = [f"{k} {before.get(k)} -> {now.get(k)}" for k in now | before if before.get(k) != now.get(k)]
        what = ", ".join(changed) or "the code"
        said.append(
            f"{name}: starts afresh; an unfinished training with other settings ({what}) stays in {other}: "
            "to go on with it set them back, else delete it"
        )
    return said


def _under_way(work: Path) -> bool:
    """Whether a process trains there."""
    try:
        with FileLock(lock_of(work), timeout=0):
            return False
    except Timeout:
        return True
