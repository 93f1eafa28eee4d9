"""A process that forks trainings and kills them; PyTorch is imported once for all of them.

    python killed_training.py INPUTS ROOT PARAMS SEED KILLS

trains a run at ROOT/whole and ROOT/again undisturbed, and the same one at ROOT/killed, where it is killed KILLS times
and each time started again, and, when it got to its end, begun anew. Prints as JSON what each kill left, and which of
the run's files ever differed from those of the undisturbed one.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from finetune import checkpoint, params, resolved, runs, stages, training
from finetune.checkpoint import Pace
from finetune.study import Layout, Run

RUN = Run("toy", "separate_lr", 1)
DETERMINISTIC = (runs.RUN, runs.AUDIT, runs.CURVES, runs.METRICS, runs.MODEL)
# What appears in the work area as the run is written, as it is moved; and for how many seconds more that takes.
ENDINGS = ((f"unfinished/{runs.CURVES}", 0.2), ("finished", 0.004))


def train(inputs: Path, root: Path, settings: Path) -> int:
    """Start the training in a process of its own."""
    if pid := os.fork():
        return pid
    os.environ["DVC_ROOT"] = str(root)
    sys.stdout = sys.stderr = open(root / "log", "a")  # noqa: PTH123, SIM115
    training.Pace = lambda: Pace(seconds=0, share=1)  # type: ignore[assignment]
    layout = Layout(root, inputs)
    try:
        stages.train(resolved.resolve(params.load(settings), layout, RUN), layout)
        os._exit(0)
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)


def lies_there(root: Path) -> str:
    """What a kill left."""
    work = next((path for path in (root / ".finetune" / "work").glob("*") if path.is_dir()), root / "none")
    names = (f".{checkpoint.FILE}", checkpoint.FILE, f"unfinished/{runs.CURVES}", "finished")
    found = [name for name in names if (work / name).exists()]
    return ", ".join([*found, *(["placed"] if Layout(root).run(RUN).exists() else [])])


def differ(root: Path, other: str = "killed") -> list[str]:
    """The files of the run ROOT/`other` that are not as those of ROOT/whole."""
    one, two = (Layout(root / name).run(RUN) for name in ("whole", other))
    return [name for name in DETERMINISTIC if (one / name).read_bytes() != (two / name).read_bytes()]


def main() -> None:
    inputs, root, settings = map(Path, sys.argv[1:4])
    draw = random.Random(int(sys.argv[4]))
    for name in ("whole", "again", "killed"):
        (root / name).mkdir(parents=True)
    for name in ("whole", "again"):
        began = time.monotonic()
        os.waitpid(train(inputs, root / name, settings), 0)
        life = time.monotonic() - began
    left: list[str] = []
    wrong: list[str] = []
    while len(left) < int(sys.argv[5]):
        pid = train(inputs, root / "killed", settings)
        # Every fourth time at its end, while it writes the run or moves it into place.
        sign, seconds = (ENDINGS[len(left) // 4 % 2]) if len(left) % 4 == 3 else ("", life)
        until = time.monotonic() + (60 if sign else draw.uniform(0, seconds))
        status = None
        while status is None and time.monotonic() < until:
            if sign and next((root / "killed").glob(f".finetune/work/*/{sign}"), None):
                sign, until = "", time.monotonic() + draw.uniform(0, seconds)
            ended, code = os.waitpid(pid, os.WNOHANG)
            status = code if ended else None
            time.sleep(0.0002)
        if status is None:
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
        if os.WIFSIGNALED(status):
            left.append(lies_there(root / "killed"))
        else:
            assert status == 0, (root / "killed" / "log").read_text()
            wrong += differ(root)
    assert os.waitpid(train(inputs, root / "killed", settings), 0)[1] == 0, (root / "killed" / "log").read_text()
    wrong += differ(root)
    stray = [path.name for path in Layout(root / "killed").run(RUN).parent.iterdir() if path.name != str(RUN.seed)]
    print(json.dumps({"left": left, "wrong": wrong, "stray": stray, "twice": differ(root, "again")}))


if __name__ == "__main__":
    main()
