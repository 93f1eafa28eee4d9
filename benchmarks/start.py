"""From command to first step: `finetune train` of the sample's cifar10, as a user starts it on a terminal.

Each is a process of its own in a copy of the checkout that has a prepared store and a backbone, timed from its start
until its bar counts the first step, and then told to end.
"""

import os
import pty
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import Any

import click
import psutil

from benchmarks.command import ONE_OR_MORE, Command
from finetune import datasets, params, samples
from finetune.model import prepare_backbone
from finetune.prepare import prepare
from finetune.study import Layout

ROOT = Path(__file__).parents[1]
_GIT = ("-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "commit.gpgsign=false")
TRACKING = ("auto", "off")
_COUNTED = re.compile(rb"\d+/\d+ \[")  # the bar, as soon as it knows how many steps there are


def measure(rounds: int) -> dict[str, Any]:
    """`start_seconds`, with tracking, and how it came about; each round starts a training with it and one without."""
    with tempfile.TemporaryDirectory() as scratch:
        checkout = Path(scratch).resolve()
        make_checkout(checkout)
        first_step(checkout, "auto", seed=0)  # compiles the modules, makes the tracking database
        seconds: dict[str, list[float]] = {tracking: [] for tracking in TRACKING}
        processor: dict[str, list[float]] = {tracking: [] for tracking in TRACKING}
        for turn in range(rounds):
            for tracking in TRACKING:
                wall, used = first_step(checkout, tracking, seed=turn + 1)
                seconds[tracking].append(round(wall, 2))
                processor[tracking].append(round(used, 2))
    middle = {tracking: statistics.median(taken) for tracking, taken in seconds.items()}
    print(f"\nfrom command to first step, medians of {rounds} trainings in turn")
    for tracking, taken in seconds.items():
        spread, used = f"{min(taken):.1f} to {max(taken):.1f}", statistics.median(processor[tracking])
        print(f"  --tracking {tracking:5}{middle[tracking]:5.1f} s ({spread}), {used:.1f} s of processor time")
    return {
        "start_seconds": middle["auto"],
        "start": {"without_tracking": middle["off"], "seconds": seconds, "processor_seconds": processor},
    }


def make_checkout(root: Path) -> None:
    """The code and the sample study at `root`, in git, with what a training of cifar10 needs."""
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "studies" / "sample.yaml", root / "params.yaml")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "state"]):
        subprocess.run(["git", *_GIT, *words], cwd=root, check=True)
    study, layout = params.load(root / "params.yaml"), Layout(root)
    samples.draw_one("cifar10", layout.archives("cifar10"))
    settings = study.prepare_for("cifar10")
    prepare(datasets.load("cifar10"), "sample", settings, layout.archives("cifar10"), layout.store("cifar10"))
    prepare_backbone("sample", "", ROOT / "samples" / "backbone.safetensors", layout.backbone)


def first_step(root: Path, tracking: str, seed: int) -> tuple[float, float]:
    """Seconds, and seconds of processor time, from the start of a training to the end of its first step."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "DVC_"))}
    words = ["--dataset", "cifar10", "--strategy", "same_lr", "--device", "cpu", "--seed", str(seed)]
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (25, 120))
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune", "train", *words, "--tracking", tracking],
        cwd=root,
        env=clean | {"PYTHONPATH": "src", "DVC_ROOT": str(root)},
        stdout=subprocess.DEVNULL,
        stderr=its,
    )
    os.close(its)
    said = b""
    while not _COUNTED.search(said):
        if not (more := _read(ours)):
            raise RuntimeError(f"a training ended before its first step: {said.decode()}")
        said += more
    wall, used = time.perf_counter() - began, psutil.Process(process.pid).cpu_times()
    process.terminate()
    while _read(ours):
        pass
    process.wait()
    os.close(ours)
    return wall, used.user + used.system


def _read(terminal: int) -> bytes:
    """What a process writes to its terminal next; nothing once it has ended."""
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux's word for the end of a terminal
        return b""


@click.command(cls=Command)
@click.option("--rounds", default=5, type=ONE_OR_MORE, show_default=True)
def main(rounds: int) -> None:
    """Start trainings of the sample's cifar10 and print how long they take to their first step."""
    measure(rounds)


if __name__ == "__main__":
    main()
