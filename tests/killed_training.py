"""A process that forks trainings and kills them; PyTorch is imported once for all of them.

    python killed_training.py INPUTS ROOT PARAMS SEED KILLS

trains a run at ROOT/whole and ROOT/again undisturbed, and the same one at ROOT/killed, where it is killed KILLS times
and each time started again, and, when it got to its end, begun anew. Prints as JSON what each kill left, which moment
was meant to be met ("" for any), and which of the run's files ever differed from those of the undisturbed one.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from benchmarks.moments import MOMENTS, die_when

from finetune import checkpoint, runs
from finetune.study import Layout
from toy_training import LOG, RUN, differ, train

# What appears in the work area as the run is written, as it is moved; and for how many seconds more that takes.
ENDINGS = ((f"unfinished/{runs.CURVES}", 0.2), ("finished", 0.004))


def forked(inputs: Path, root: Path, settings: Path, moment: str = "", nth: int = 1, share: float = 0.5) -> int:
    """Start the training in a process of its own, which dies at that moment if one is named."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        if moment:
            die_when(moment, nth, share)
        train(inputs, root, settings)
        code = 0
    finally:
        os._exit(code)


def in_place(root: Path) -> int:
    """Tells one folder of the run from the next; 0 where there is none."""
    place = Layout(root).run(RUN)
    return place.stat().st_ino if place.exists() else 0


def lies_there(root: Path, before: int) -> str:
    """What a kill left; `before`: what was in the run's place until then."""
    work = next((path for path in (root / ".finetune" / "work").glob("*") if path.is_dir()), root / "none")
    names = (f".{checkpoint.FILE}", checkpoint.FILE, f"unfinished/{runs.CURVES}", "finished")
    found = [name for name in names if (work / name).exists()]
    aside = work / f".{checkpoint.FILE}"
    found += ["part of a checkpoint"] * (aside.exists() and aside.stat().st_size > 0)
    now = in_place(root)
    return ", ".join([*found, *(["vacated"] if not now else ["placed"] if now != before else [])])


def main() -> None:
    inputs, root, settings = map(Path, sys.argv[1:4])
    draw = random.Random(int(sys.argv[4]))
    for name in ("whole", "again", "killed"):
        (root / name).mkdir(parents=True)
    for name in ("whole", "again"):
        began = time.monotonic()
        os.waitpid(forked(inputs, root / name, settings), 0)
        life = time.monotonic() - began
    killed = root / "killed"
    runs.write_text(Layout(killed).run(RUN) / "old", "of an earlier training")  # to be replaced
    left: list[str] = []
    met: list[str] = []
    wrong: list[str] = []
    attempts = 0
    while len(left) < int(sys.argv[5]):
        attempts += 1
        assert attempts < 10 * int(sys.argv[5]), f"a moment is never met: {left}"
        number, kind = divmod(len(left), 4)
        # Every fourth time at an exact moment, every fourth time at its end, while it writes the run or moves it.
        moment = list(MOMENTS)[number % len(MOMENTS)] if kind == 1 else ""
        sign, seconds = ENDINGS[number % 2] if kind == 3 else ("", life)
        before = in_place(killed)
        pid = forked(inputs, killed, settings, moment, draw.randint(1, 3), draw.random())
        until = time.monotonic() + (60 if sign or moment else draw.uniform(0, seconds))
        status = None
        while status is None and time.monotonic() < until:
            if sign and next(killed.glob(f".finetune/work/*/{sign}"), None):
                sign, until = "", time.monotonic() + draw.uniform(0, seconds)
            ended, code = os.waitpid(pid, os.WNOHANG)
            status = code if ended else None
            time.sleep(0.0002)
        if status is None:
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
        if os.WIFSIGNALED(status):
            left.append(lies_there(killed, before))
            met.append(moment)
        else:
            assert status == 0, (killed / LOG).read_text()
            wrong += differ(root / "whole", killed)
    assert os.waitpid(forked(inputs, killed, settings), 0)[1] == 0, (killed / LOG).read_text()
    wrong += differ(root / "whole", killed)
    stray = [path.name for path in Layout(killed).run(RUN).parent.iterdir() if path.name != str(RUN.seed)]
    told = {"left": left, "met": met, "wrong": wrong, "stray": stray, "twice": differ(root / "whole", root / "again")}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
