"""Moments at which a training dies by a SIGKILL of its own: some last too short for a killer outside to meet them.

    python -m benchmarks.moments saving 2 0.5 train --dataset cifar10 --strategy same_lr

is `finetune train …`, killed when half of its second checkpoint is in its file.
"""

import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO
from unittest.mock import patch

import finetune.__main__  # settings that must stand before PyTorch is imported

MOMENTS = {
    "saving": "while it wrote a checkpoint",
    "writing": "while it wrote the run's files",
    "finished": "when the run was whole, before it was moved",
    "moving": "when the old run was out of its place, before the new one was in it",
    "placed": "when the run was in its place, before the work area was cleared",
}


def die_when(moment: str, nth: int = 1, share: float = 0.5) -> None:
    """Have this process killed at one of `MOMENTS`.

    Args:
        nth: of the checkpoints that this process writes, from 1.
        share: of that checkpoint's bytes, which are in its file then.
    """
    from finetune import checkpoint, runs, stages

    if moment == "saving":
        patch.object(checkpoint, "_write", _until(nth, share, checkpoint._write)).start()
    elif moment == "writing":
        patch.object(stages, "save", _die).start()
    elif moment == "finished":
        patch.object(runs, "move_into_place", _die).start()
    elif moment == "moving":
        rename = Path.rename
        patch.object(Path, "rename", lambda old, new: (_die if old.name == "finished" else rename)(old, new)).start()
    elif moment == "placed":
        move = runs.move_into_place
        patch.object(runs, "move_into_place", lambda aside, place: _die(move(aside, place))).start()
    else:
        raise ValueError(f"{moment}: no such moment; there are {', '.join(MOMENTS)}")


def _die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _until(nth: int, share: float, write: Callable[[BinaryIO, memoryview], None]) -> Callable[..., None]:
    """`write`, but the nth time only a part of the bytes."""
    numbers = itertools.count(1)

    def cut(file: BinaryIO, data: memoryview) -> None:
        if next(numbers) == nth:
            write(file, data[: int(share * len(data))])
            file.flush()
            _die()
        write(file, data)

    return cut


def main() -> None:
    if len(sys.argv) < 5 or sys.argv[1] not in MOMENTS:
        sys.exit(__doc__)
    moment, nth, share = sys.argv[1:4]
    sys.argv[1:4] = []
    die_when(moment, int(nth), float(share))
    finetune.__main__.main()


if __name__ == "__main__":
    main()
