"""A training of the study, killed by SIGKILL at seeded random moments and started again each time, beside one that was
never killed: when each kill met it and what it left, and whether the two runs' files are the same bytes in the end.

    python -m benchmarks.kills cifar10 same_lr --kills 12 --pace

Run it in the root of a checkout whose study has been prepared (prepared/, models/backbone.safetensors).
"""

import hashlib
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.command import ONE_OR_MORE, Command
from benchmarks.moments import MOMENTS
from finetune import runs
from finetune.batches import training_steps
from finetune.checkpoint import FILE, Pace

ENDINGS = tuple(moment for moment in MOMENTS if moment != "saving")
IN_PLACE = "the run in its place"


@dataclass(frozen=True)
class Aim:
    """Where a kill is to fall."""

    moment: str = ""  # of MOMENTS; "" for whatever the training does then
    share: float = 1.0  # of the run's steps


class Place:
    """A folder with the study's inputs, in which one run is trained."""

    def __init__(self, checkout: Path, root: Path, dataset: str, strategy: str) -> None:
        self.root, self.run = root, root / "runs" / dataset / strategy / "0"
        root.mkdir()
        shutil.copy(checkout / "params.yaml", root)
        for name in ("prepared", "models"):
            (root / name).symlink_to(checkout / name)
        self.words = ["train", "--dataset", dataset, "--strategy", strategy, "--seed", "0", "--tracking", "off"]
        self.environment = os.environ | {"PYTHONPATH": f"{checkout / 'src'}:{checkout}", "DVC_ROOT": str(root)}

    def train(
        self, seconds: float | None = None, moment: str = "", nth: int = 1, share: float = 0.5
    ) -> tuple[int | None, list[str]]:
        """Train, for so long at most, then kill; returns the exit status, None if killed, and what was said.

        Args:
            moment: where it kills itself; `saving`: when that share of the nth checkpoint is in its file.
        """
        program = ["benchmarks.moments", moment, str(nth), str(share)] if moment else ["finetune"]
        with tempfile.TemporaryFile("w+") as told:
            command = [sys.executable, "-m", *program, *self.words]
            process = subprocess.Popen(command, cwd=self.root, env=self.environment, stdout=told, stderr=told)
            try:
                status: int | None = process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                status = process.wait()
            told.seek(0)
            return None if status == -signal.SIGKILL else status, told.read().splitlines()

    def left(self, since: float) -> list[str]:
        """What lies in the work area, half-saved since then or saved, and whether the run is in its place."""
        area = self._area()
        found = [path.name for path in area.iterdir() if path.stat().st_mtime >= since or path.name != f".{FILE}"]
        found += [f"unfinished/{runs.CURVES}"] * (area / "unfinished" / runs.CURVES).exists()
        return sorted(found) + [IN_PLACE] * (self.run / runs.MODEL).exists()

    def saved(self) -> tuple[int, int]:
        """Epochs, and steps of the next, from which the next attempt goes on."""
        import torch

        path = self._area() / FILE
        if not path.exists():
            return 0, 0
        content = torch.load(path, mmap=True, weights_only=True)
        return content["progress"]["epoch"], len(content["part"].get("losses", ()))

    def hashes(self) -> dict[str, str]:
        return {name: hashlib.sha256((self.run / name).read_bytes()).hexdigest() for name in runs.DETERMINISTIC}

    def _area(self) -> Path:
        work = self.root / ".finetune" / "work"
        work.mkdir(parents=True, exist_ok=True)
        return next((path for path in work.glob("*") if path.is_dir()), work)


def paced(kills: int, draw: random.Random) -> Iterator[Aim]:
    """The k-th kill in the k-th part of the run's first nine tenths, every second one within a save; the last ones as
    the run ends."""
    parts = kills - len(ENDINGS)
    for number in range(parts):
        yield Aim("saving" if number % 2 else "", 0.9 * (number + draw.random()) / parts)
    yield from map(Aim, ENDINGS)


def steps_of_an_epoch(run: dict[str, Any]) -> int:
    """As run.json has it."""
    batches = training_steps(run["images"]["train"], run["training"]["batch_size"])
    return math.ceil(batches / run["training"]["accumulation"])


def met(left: list[str], starting: bool) -> str:
    """What a kill interrupted, by what it left; `starting`: it came before the first step could be taken."""
    signs = {IN_PLACE: "placed", "finished": "finished", f"unfinished/{runs.CURVES}": "writing", f".{FILE}": "saving"}
    found = [MOMENTS[moment] for sign, moment in signs.items() if sign in left]
    return next(iter(found), "while it started" if starting else "while it trained")


@click.command(cls=Command)
@click.argument("dataset")
@click.argument("strategy")
@click.option("--kills", default=20, type=ONE_OR_MORE, show_default=True)
@click.option("--seed", default=7, show_default=True, help="Of the moments.")
@click.option("--most", default=25.0, show_default=True, help="Seconds that an attempt may live, without --pace.")
@click.option("--pace", is_flag=True, help="The k-th kill falls in the k-th part of the run, the last ones at its end.")
def main(dataset: str, strategy: str, kills: int, seed: int, most: float, pace: bool) -> None:
    """Kill the training of DATASET by STRATEGY, seed 0."""
    draw, checkout = random.Random(seed), Path.cwd()
    if pace and kills <= len(ENDINGS):
        raise click.UsageError(f"--kills: found {kills}, expected more than {len(ENDINGS)}, which are for the end")
    with tempfile.TemporaryDirectory() as scratch:
        whole, killed = (Place(checkout, Path(scratch) / name, dataset, strategy) for name in ("whole", "killed"))
        began = time.perf_counter()
        status, said = whole.train()
        if status != 0:
            raise SystemExit("\n".join(said))
        run, cost = (runs.read_json(whole.run / name) for name in (runs.RUN, runs.COST))
        epoch = steps_of_an_epoch(run)
        steps, training = epoch * run["training"]["epochs"], cost["seconds"] + cost["saving_seconds"]
        print(f"{dataset}/{strategy}/0, never killed: {time.perf_counter() - began:.1f} s, {steps} steps", flush=True)

        runs.write_text(killed.run / "old", "of an earlier training")  # to be replaced

        def saved() -> int:
            epochs, more = killed.saved()
            return epochs * epoch + more

        for number, aim in enumerate(paced(kills, draw) if pace else [Aim()] * kills, 1):
            ahead = (aim.share - saved() / steps) * training  # seconds
            life = None if aim.moment else max(0.0, cost["start_seconds"] + ahead) if pace else draw.uniform(0, most)
            before, since, began = killed.left(0), time.time(), time.perf_counter()
            status, said = killed.train(life, aim.moment, max(1, int(ahead / Pace().seconds)), draw.random())
            seconds = time.perf_counter() - began
            went_on = "with the whole run" if "finished" in before else resumed(said)
            if status == 0 and pace:  # the length is an estimate
                print(f"attempt {number} ended by itself after {seconds:.2f} s: began {went_on}", flush=True)
                continue
            if status is not None:
                raise SystemExit(f"attempt {number} ended by itself with {status}:\n" + "\n".join(said))
            left = killed.left(since)
            moment = MOMENTS.get(aim.moment) or met(left, seconds < cost["start_seconds"])
            where = f", aimed at {100 * aim.share:.0f} % of the run" if aim.share < 1 else ""
            print(f"kill {number} after {seconds:.2f} s{where}, {moment}: began {went_on}; ", end="")
            print(f"left {', '.join(left) or 'nothing'}; {saved()} steps saved", flush=True)
        status, said = killed.train()
        print(f"then to its end, status {status}: began {resumed(said)}")
        one, other = whole.hashes(), killed.hashes()
        for name in runs.DETERMINISTIC:
            print(f"{name}: {one[name][:16]} {other[name][:16]} {'same' if one[name] == other[name] else 'DIFFERS'}")
        raise SystemExit(int(one != other))


def resumed(said: list[str]) -> str:
    """From where an attempt says that it goes on."""
    told = (line.partition("goes on ")[2] for line in said if "goes on " in line)
    return next(told, "from the start")


if __name__ == "__main__":
    main()
