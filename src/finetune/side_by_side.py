"""A study's trainings side by side: as many `dvc repro -s` at once as the cores bear. `dvc repro` itself runs one
stage after another, and a training of small images keeps one core busy, not two.

Only a head start: whatever fails or is left out here, the `dvc repro` that follows runs, and says what is wrong.
"""

import re
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

from finetune import dvc_process
from finetune.processor import cores

_MOST = 4  # at once: each loads PyTorch, and they take turns at DVC's lock
_TRIES = 3  # where another process held one of DVC's lesser locks, for which it waits 3 s, for too long
_GLANCE = 0.5  # seconds; two signals at once may both go to another thread, and this one, which handles them, waits on
_STARTING = re.compile(r"^Running stage 'train@(.+)':", re.MULTILINE)
_LEADING_TO_ONE = re.compile(r"^Running stage '(prepare|backbone|plan|train)\b", re.MULTILINE)
_BUSY = re.compile(r"Unable to acquire lock|is busy, it is being blocked by")  # DVC's words
_NOISE = re.compile(r"^(> |Running stage |Updating lock file|To track the changes|\s*git add|To enable auto staging|$)")


def jobs(threads: int) -> int:
    """How many trainings of `threads` threads each the cores that this process may use bear."""
    return max(1, min(_MOST, cores() // threads))


def out_of_date(root: Path, dvc: Sequence[str], environment: dict[str, str]) -> list[str]:
    """The cells of the matrix, `data set-strategy-seed`, whose training DVC would run; what they need is made first.

    Args:
        dvc: the command, such as `python -m dvc`.
    """

    def dry() -> subprocess.CompletedProcess[str]:
        return dvc_process.run([*dvc, "repro", "--dry"], root, environment, subprocess.PIPE, subprocess.PIPE)

    first = dry()  # does not tell that a training will follow, as long as what it depends on is not made anew
    if first.returncode == 0 and not _LEADING_TO_ONE.search(first.stdout):
        return []
    ready = dvc_process.run([*dvc, "repro", "prepare", "backbone", "plan"], root, environment)
    # A dry run stops at the first evaluation whose run is not there, after all trainings.
    return [] if ready.returncode else _STARTING.findall(dry().stdout)


def train(
    cells: Sequence[str],
    at_once: int,
    root: Path,
    dvc: Sequence[str],
    environment: dict[str, str],
    say: Callable[[str], None],
) -> None:
    """Train and evaluate `cells`, `at_once` at a time; their lines come as they are said."""
    say(f"{len(cells)} trainings, {at_once} at a time")
    working = _Working()
    with ThreadPoolExecutor(at_once) as pool:
        try:
            left = {pool.submit(working.run, [*dvc, "repro", "-s"], c, root, environment, say) for c in cells}
            while left:
                done, left = wait(left, _GLANCE, FIRST_COMPLETED)
                for each in done:
                    each.result()
        finally:
            working.stop()


class _Working:
    """Cells that are trained, until it is told to stop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stopped = False

    def run(
        self, command: list[str], cell: str, root: Path, environment: dict[str, str], say: Callable[[str], None]
    ) -> None:
        """Train and evaluate one cell of the matrix; try again where DVC's lock was held by another."""
        for _ in range(_TRIES):
            with self._lock:
                if self._stopped:
                    return
                process = dvc_process.start(
                    [*command, f"train@{cell}", f"evaluate@{cell}"],
                    root,
                    environment,
                    subprocess.PIPE,
                    subprocess.STDOUT,
                )
            busy = False
            try:
                for line in process.stdout or ():
                    busy = busy or _BUSY.search(line) is not None
                    if not _NOISE.match(line):
                        say(line.rstrip())
            except OSError:  # nobody listens any more
                self.stop()
                raise
            finally:
                failed = process.wait()
                dvc_process.ended(process)
            if not (failed and busy):
                return

    def stop(self) -> None:
        """Interrupt what still runs, DVC and the training beneath it, as Ctrl-C would."""
        with self._lock:
            if not self._stopped:
                self._stopped = True
                dvc_process.interrupt_with_patience()
