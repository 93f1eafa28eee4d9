"""Moments at which a training dies by a SIGKILL of its own: some last too short for a killer outside to meet them.

    python -m benchmarks.moments saving 2 0.5 train --dataset cifar10 --strategy same_lr

is `finetune train …`, killed when half of its second checkpoint is written.
"""

import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any
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
        share: of that checkpoint's bytes, which are written.
    """
    import torch

    from finetune import runs, stages

    if moment == "saving":
        patch.object(torch, "save", _until(nth, share, torch.save)).start()
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


def _until(nth: int, share: float, save: Callable[..., None]) -> Callable[..., None]:
    """`save`, but the nth time only a part of the bytes."""
    from finetune.checkpoint import size

    numbers = itertools.count(1)

    def write(content: Any, file: IO[bytes]) -> None:
        save(content, _Cut(file, int(share * size(content))) if next(numbers) == nth else file)

    return write


class _Cut:
    """A file whose writer dies after so many bytes."""

    def __init__(self, file: IO[bytes], left: int) -> None:
        self._file, self._left = file, left

    def write(self, data: Any) -> int:
        piece = memoryview(data).cast("B")[: max(self._left, 0)]
        self._file.write(piece)
        self._left -= len(piece)
        if self._left <= 0:
            self._file.flush()
            _die()
        return len(piece)


def main() -> None:
    moment, nth, share = sys.argv[1:4]
    sys.argv[1:4] = []
    die_when(moment, int(nth), float(share))
    finetune.__main__.main()


if __name__ == "__main__":
    main()
