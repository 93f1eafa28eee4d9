"""One training of the toy in a process of its own, which saves after each step.

    python toy_training.py INPUTS ROOT PARAMS [MOMENT NTH]

trains the run at ROOT; where one of benchmarks.moments.MOMENTS is named, it is killed then, by the NTH save.
"""

import os
import sys
from pathlib import Path

from finetune import params, resolved, runs, stages, training
from finetune.checkpoint import Pace
from finetune.study import Layout, Run

RUN = Run("toy", "separate_lr", 1)
LOG = "log"


def train(inputs: Path, root: Path, settings: Path) -> None:
    """Train the run; what it says goes to ROOT/log."""
    os.environ["DVC_ROOT"] = str(root)
    sys.stdout = sys.stderr = open(root / LOG, "a")  # noqa: PTH123, SIM115
    training.Pace = lambda: Pace(seconds=0, share=1)  # type: ignore[assignment]
    layout = Layout(root, inputs)
    try:
        stages.train(resolved.resolve(params.load(settings), layout, RUN), layout)
    except BaseException as error:
        print(repr(error), flush=True)
        raise


def differ(one: Path, other: Path) -> list[str]:
    """The files of the run that are not the same bytes under both roots."""
    places = [Layout(root).run(RUN) for root in (one, other)]
    return [name for name in runs.DETERMINISTIC if len({(place / name).read_bytes() for place in places}) > 1]


if __name__ == "__main__":
    if sys.argv[4:]:
        from benchmarks.moments import die_when

        die_when(sys.argv[4], int(sys.argv[5]))
    train(*map(Path, sys.argv[1:4]))
