"""A training of the study, killed by SIGKILL at seeded random moments and started again each time, beside one that was
never killed: what each kill left, and whether the two runs' files are the same bytes in the end.

    python -m benchmarks.kills cifar10 same_lr --kills 20 --seed 7

Run it in the root of a checkout whose study has been prepared (prepared/, models/backbone.safetensors).
"""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

DETERMINISTIC = ("run.json", "audit.csv", "curves.csv", "metrics.json", "model.safetensors")


class Place:
    """A folder with the study's inputs, in which one run is trained."""

    def __init__(self, checkout: Path, root: Path, dataset: str, strategy: str) -> None:
        self.root, self.run = root, root / "runs" / dataset / strategy / "0"
        root.mkdir()
        shutil.copy(checkout / "params.yaml", root)
        for name in ("prepared", "models"):
            (root / name).symlink_to(checkout / name)
        command = ("train", "--dataset", dataset, "--strategy", strategy, "--seed", "0", "--tracking", "off")
        self.command = [sys.executable, "-m", "finetune", *command]
        self.environment = os.environ | {"PYTHONPATH": str(checkout / "src"), "DVC_ROOT": str(root)}

    def train(self, seconds: float | None = None) -> tuple[int | None, list[str]]:
        """Train, for so long at most, then kill; returns the exit status, None if killed, and what was said."""
        with tempfile.TemporaryFile("w+") as told:
            process = subprocess.Popen(
                self.command, cwd=self.root, env=self.environment, stdout=told, stderr=told, text=True
            )
            try:
                status: int | None = process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                status = None
            told.seek(0)
            return status, told.read().splitlines()

    def left(self) -> str:
        """What lies in the work area, saved or half-saved."""
        area = next((path for path in (self.root / ".finetune" / "work").glob("*") if path.is_dir()), None)
        found = sorted(path.name for path in area.iterdir()) if area else []
        return ", ".join(found) or "nothing"

    def hashes(self) -> dict[str, str]:
        return {name: hashlib.sha256((self.run / name).read_bytes()).hexdigest() for name in DETERMINISTIC}


@click.command()
@click.argument("dataset")
@click.argument("strategy")
@click.option("--kills", default=20, show_default=True)
@click.option("--seed", default=7, show_default=True, help="Of the moments.")
@click.option("--most", default=25.0, show_default=True, help="Seconds that an attempt may live.")
def main(dataset: str, strategy: str, kills: int, seed: int, most: float) -> None:
    """Kill the training of DATASET by STRATEGY, seed 0."""
    draw, checkout = random.Random(seed), Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        whole, killed = (Place(checkout, Path(scratch) / name, dataset, strategy) for name in ("whole", "killed"))
        began = time.perf_counter()
        status, said = whole.train()
        if status != 0:
            raise SystemExit("\n".join(said))
        print(f"{dataset}/{strategy}/0, never killed: {time.perf_counter() - began:.1f} s", flush=True)
        for number in range(1, kills + 1):
            seconds = draw.uniform(0, most)
            status, said = killed.train(seconds)
            if status is not None:
                raise SystemExit(f"attempt {number} ended by itself with {status}:\n" + "\n".join(said))
            resumed = next((line for line in said if "resum" in line or "goes on" in line), "from the start")
            print(f"kill {number} after {seconds:.2f} s: began {resumed!r}; left {killed.left()}", flush=True)
        status, said = killed.train()
        resumed = next((line for line in said if "resum" in line or "goes on" in line), "from the start")
        print(f"then to its end, status {status}: began {resumed!r}")
        one, other = whole.hashes(), killed.hashes()
        for name in DETERMINISTIC:
            print(f"{name}: {one[name][:16]} {other[name][:16]} {'same' if one[name] == other[name] else 'DIFFERS'}")
        raise SystemExit(int(one != other))


if __name__ == "__main__":
    main()
