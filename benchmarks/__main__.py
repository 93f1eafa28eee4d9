"""`make bench`: this project beside a plain loop and timm, each way in a process of its own, in turn.

Prints one table per size, with the medians and the ratios of each round, and how long a training takes from the command
to its first step; writes benchmarks/results/latest.json and a dated copy, with machine and commit. timm is measured
where it is installed (requirements-bench.lock).
"""

import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks import prepare_speed, start
from benchmarks.command import ONE_OR_MORE, Command
from benchmarks.engine import sensible, timms_best_flags
from finetune import datasets, kernel_library
from finetune.errors import reason
from finetune.params import PrepareParams
from finetune.prepare import prepare
from finetune.processor import cores, cpu_has_bf16, cpu_name

# The real images where they lie beside the checkout; else those that were pulled, whose small pictures say little.
ARCHIVES = (Path("../shared/data/cub200/CUB_200_2011.tgz"), Path("data/cub200/CUB_200_2011.tgz"))
RESULTS = Path("benchmarks/results")
THREADS_SLEEP = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}  # as `finetune` has it
PRECISIONS = {"ours": "fp32", "ours_bf16": "bf16"}
NAMES = {  # way -> the key of ours, at the faster of its precisions, against it
    "plain": "vs_plain",
    "timm_default": "vs_timm_default",
    "timm_best": "vs_timm_best",
    "timm_same_allocator": "vs_timm_same_allocator",
    "ours": "vs_own_fp32",
    "ours_torch": "vs_own_torch_kernels",
}


def training(
    size: int, steps: int, warm_up: int, rounds: int, ways: tuple[str, ...], images: Path, store: Path
) -> dict[str, Any]:
    """Rates and ratios at one size; each round measures every way once."""
    rates: dict[str, list[float]] = {way: [] for way in ways}
    feeds: dict[str, list[float]] = {way: [] for way in ways if way in PRECISIONS}
    for turn in range(rounds):
        for way in ways:
            words = [way, "--size", str(size), "--steps", str(steps), "--warm-up", str(warm_up)]
            words += ["--images", str(images), "--store", str(store)]
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.engine", *words],
                env=environment(way),
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise click.ClickException(f"{way} failed:\n{done.stderr}")
            measured = json.loads(done.stdout.splitlines()[-1])
            rates[way].append(measured["images_per_second"])
            if way in feeds:
                feeds[way].append(measured["feed_ratio"])
            print(f"  {size} px, round {turn + 1}/{rounds}: {way} {rates[way][-1]:.1f} images/s", flush=True)
    found = compared(rates, feeds)
    print(f"\n{size} px, batch 32, medians of {rounds} rounds in turn; ours is {found['fastest']}")
    print(f"  {'way':22}{'images/s':>10}{'least':>9}{'most':>9}{'ours is':>10}{'least':>9}{'most':>9}")
    for way, values in rates.items():
        line = f"  {way:22}{statistics.median(values):10.1f}{min(values):9.1f}{max(values):9.1f}"
        if (key := NAMES.get(way, "")) in found["spread"]:
            least, most = found["spread"][key]
            line += f"{found[key]:8.2f} x{least:9.2f}{most:9.2f}"
        print(line)
    fed = ", ".join(f"{precision} {ratio:.3f}" for precision, ratio in found["feed_ratios"].items())
    print(f"  fed, of the rate on one ready batch: {fed}")
    if "timm_best" in rates:
        print(f"  timm's best flags on this CPU: {timms_best_flags()}")
    return found


def environment(way: str) -> dict[str, str]:
    """A user's environment; where a way sets up the process as ours does, with OpenMP's threads told to sleep."""
    users = {name: value for name, value in os.environ.items() if name not in THREADS_SLEEP}
    return users | (THREADS_SLEEP if way.startswith("ours") or way == "timm_same_allocator" else {})


def compared(rates: dict[str, list[float]], feeds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians of the ratios of each round, and their least and most as `spread`.

    Args:
        rates: images per second, by way, of each round.
        feeds: of our ways, the rate on batches from the store as a fraction of that on a ready batch, of each round;
            `feed_ratio` is that of the faster precision.
    """
    fastest = max(feeds, key=lambda way: statistics.median(rates[way]))
    of_rounds = {"feed_ratio": feeds[fastest]}
    for way, key in NAMES.items():
        if way in rates and (way != "ours" or len(feeds) > 1):
            of_rounds[key] = [round(a / b, 3) for a, b in zip(rates[fastest], rates[way], strict=True)]
    return {
        "images_per_second": statistics.median(rates[fastest]),
        "fastest": fastest,
        "rounds": rates,
        "feed_rounds": feeds,
        **{key: round(statistics.median(values), 3) for key, values in of_rounds.items()},
        "feed_ratios": {PRECISIONS[way]: round(statistics.median(values), 3) for way, values in feeds.items()},
        "spread": {key: [round(min(values), 3), round(max(values), 3)] for key, values in of_rounds.items()},
    }


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=False).stdout
    return {
        "commit": commit or None,
        "dirty": bool(dirty.strip()),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, {cores()} cores, {processor()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": version("timm") if importlib.util.find_spec("timm") else None,
        "timm_best": timms_best_flags(),
        "compiler": kernel_library.built().compiler if kernel_library.available() else None,  # of our kernels
        "environment": {"ours, timm_same_allocator": THREADS_SLEEP},
    }


def processor() -> str:
    """Its name, and whether it computes in bf16."""
    return f"{cpu_name()}, {'bf16' if cpu_has_bf16() else 'no bf16'}"


def written(file: Path, found: dict[str, Any]) -> None:
    """Write what is measured so far, as what comes next may fail."""
    file.write_text(json.dumps(found, indent=2) + "\n")


def _numbers(_: click.Context, __: click.Parameter, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise click.BadParameter(f"found '{text}', expected pixels, comma separated, such as 96,224")
    return [int(part) for part in parts]


@click.command(cls=Command)
@click.option("--archive", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A CUB_200_2011.tgz.")
@click.option("--sizes", default="96,224", show_default=True, callback=_numbers, help="Pixels.")
@click.option("--rounds", default=3, type=ONE_OR_MORE, show_default=True)
@click.option("--steps", default=16, type=ONE_OR_MORE, show_default=True, help="Of 32 images, per round and way.")
@click.option("--warm-up", default=4, type=ONE_OR_MORE, show_default=True, help="Steps before them.")
@click.option(
    "--starts", default=5, type=ONE_OR_MORE, show_default=True, help="Trainings started with tracking, and without."
)
@click.option("--out", default=RESULTS, show_default=True, type=click.Path(path_type=Path), help="For the JSON files.")
def main(archive: Path | None, sizes: list[int], rounds: int, steps: int, warm_up: int, starts: int, out: Path) -> None:
    """Measure preparing and training on the images of CUB-200-2011, and the start of a training of the sample."""
    archive = archive or next((path for path in ARCHIVES if path.is_file()), None)
    if archive is not None and archive.name != ARCHIVES[0].name:
        raise click.UsageError(f"{archive}: expected the archive under its own name, {ARCHIVES[0].name}")
    if archive is None:
        raise click.UsageError(f"no {ARCHIVES[1]}; bring it with `dvc pull data/cub200`, or name one with --archive")
    ways = sensible()
    if "timm_best" not in ways:
        print("timm is not installed, so left out: .venv/bin/pip install --no-deps -r requirements-bench.lock")
    if not cpu_has_bf16():
        print("this CPU has no instructions for bf16, so bf16 is left out, of timm's best flags, too")
    found: dict[str, Any] = {**machine(), "archive_bytes": archive.stat().st_size}
    out.mkdir(parents=True, exist_ok=True)
    dated = out / f"{found['date'].replace(':', '').partition('+')[0]}.json"
    try:
        found["prepare"] = prepare_speed.measure(archive, 256, rounds)
    except (EOFError, tarfile.TarError) as error:  # click takes the first for the end of what a user types
        raise click.UsageError(f"{archive}: is no whole archive ({reason(error)}); bring it again") from None
    written(dated, found)
    with tempfile.TemporaryDirectory() as scratch:
        images, store = prepare_speed.unpack(archive, Path(scratch)), Path(scratch) / "store"
        prepare(datasets.load("cub200"), "any", PrepareParams(short_side=256), archive.parent, store)
        for size in sizes:
            found[f"train_{size}"] = training(size, steps, warm_up, rounds, ways, images, store)
            written(dated, found)
    found |= start.measure(starts)
    for file in (dated, out / "latest.json"):
        written(file, found)
    print(f"\n{out / 'latest.json'}")


if __name__ == "__main__":
    main()
