"""Whether a training under `deterministic: true` gives the same bytes again: in another process, which compiles anew,
and where it was interrupted after an epoch and gone on with.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import finetune.__main__  # noqa: F401  settings that must stand before PyTorch is imported
from benchmarks.gpu.study import everywhere, few, tiny_settings
from finetune import interruption, runs, stages
from finetune.params import load
from finetune.resolved import resolve
from finetune.study import Layout, Run

EPOCHS, IMAGES = 4, 2048
MINUTES = 5.0
_ROOT = Path(__file__).parents[2]
_SAVED = 128 + signal.SIGTERM  # the exit status of a training that was told to end, and saved


class _Training:
    """A run that is trained in a process of its own, under a root of its own."""

    def __init__(self, root: Path, params: Path, inputs: Path, run: Run, settings: list[str], device: str) -> None:
        root.mkdir()
        self._place = Layout(root).run(run)
        words = [params.absolute(), inputs.absolute(), root, run.dataset, run.strategy, run.seed, device, *settings]
        self._command = [sys.executable, "-m", "benchmarks.gpu.repeat", *map(str, words)]
        given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        path = [str(_ROOT), str(_ROOT / "src"), *filter(None, given)]
        self._environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(str(Path(part).absolute()) for part in path),
            "DVC_ROOT": str(root),
            "TORCHINDUCTOR_CACHE_DIR": str(root / "compiled"),
        }
        self.process = self._started()

    def _started(self) -> subprocess.Popen[str]:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(self._command, env=self._environment, **pipes)

    def interrupt(self) -> None:
        """Have it end when it has trained an epoch, or within its second one, and begin again."""
        assert self.process.stdout is not None
        said = []
        for line in self.process.stdout:
            said.append(line)
            if ": epoch 1/" in line:
                self.process.send_signal(signal.SIGTERM)
                break
        rest, _ = self.process.communicate()
        if self.process.returncode != _SAVED:
            raise RuntimeError(f"told to end, it ended with {self.process.returncode}:\n{''.join(said)[-600:]}{rest}")
        self.process = self._started()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def files(self) -> tuple[dict[str, bytes], str]:
        """Its deterministic files when it has ended, and from where it went on."""
        said, _ = self.process.communicate()
        if self.process.returncode != 0:
            raise RuntimeError(f"a training ended with {self.process.returncode}: {said[-600:]}")
        went_on = next((line.partition("goes on ")[2] for line in said.splitlines() if "goes on " in line), "")
        return {name: (self._place / name).read_bytes() for name in runs.DETERMINISTIC}, went_on


def _kill(trainings: list[_Training]) -> None:
    for training in trainings:
        training.process.kill()


def measure(
    params_file: Path, overrides: tuple[str, ...], inputs: Path, device: str, tiny: bool, minutes: float = MINUTES
) -> dict[str, Any]:
    """Train the study's first run three times, all at once, on so many images: as it is, again, and interrupted.

    Returns:
        `same` where all files are the same bytes, `again` and `gone_on` by file, and where the last one went on from.

    Raises:
        InputError: the run cannot be worked out.
        RuntimeError: a training failed, with what it said; or was not done after so many minutes.
    """
    params = load(params_file, overrides)
    run = Run(params.study.datasets[0], params.study.strategies[0], params.study.seeds[0])
    layout = Layout(inputs, inputs)
    settings = [*overrides, *(tiny_settings(params, layout) if tiny else few(params, layout, IMAGES))]
    settings += everywhere(params, {"deterministic": True, "epochs": EPOCHS})
    recipe = resolve(load(params_file, tuple(settings)), layout, run, device).recipe.model_dump(mode="json")
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as ended:
        trainings: list[_Training] = []
        for name in ("first", "again", "interrupted"):
            trainings.append(_Training(Path(scratch) / name, params_file, inputs, run, settings, device))
            ended.callback(trainings[-1].end)
        late = threading.Timer(60 * minutes, _kill, [trainings])
        late.start()
        ended.callback(late.cancel)
        first, again, interrupted = trainings
        interrupted.interrupt()
        expected, _ = first.files()
        repeated, _ = again.files()
        gone_on, whence = interrupted.files()
    if not whence:
        raise RuntimeError("the training that was interrupted did not go on from where it had ended")
    found = {
        name: {"again": repeated[name] == bits, "gone_on": gone_on[name] == bits} for name, bits in expected.items()
    }
    same = all(equal for ways in found.values() for equal in ways.values())
    print(f"{run.name} under {', '.join(settings)}: {'the same bytes' if same else f'DIFFERS: {found}'}", flush=True)
    return {"run": run.name, "recipe": recipe, "settings": settings, "went_on": whence, "files": found, "same": same}


def _train(
    params: str, inputs: str, root: str, dataset: str, strategy: str, seed: str, device: str, *settings: str
) -> None:
    with interruption.handled():
        layout, run = Layout(Path(root), Path(inputs)), Run(dataset, strategy, int(seed))
        stages.train(resolve(load(Path(params), settings), layout, run, device), layout)


if __name__ == "__main__":
    _train(*sys.argv[1:])
