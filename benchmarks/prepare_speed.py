"""Archive -> store, against the plain way: images per second in turn, and their ratio.

The plain way is what a user has without this project: the images unpacked into class folders, torchvision's
ImageFolder, Pillow's decoder, Resize to the same short side, a DataLoader with two workers; its pixels come out as
uint8 tensors and are let go. Ours reads the archive, decodes, resizes, hashes and writes the store to disk.
Run: `python -m benchmarks.prepare_speed CUB_200_2011.tgz`.
"""

import os
import shutil
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, PILToTensor, Resize

from finetune import datasets
from finetune.params import PrepareParams
from finetune.prepare import prepare

WORKERS = 2


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a CUB-200-2011 archive into `folder`; returns the folder of its class folders."""
    with tarfile.open(archive) as tar:
        files = [member for member in tar if not Path(member.name).name.startswith("._")]  # macOS' own
        tar.extractall(folder, files, filter="data")
    return folder / "CUB_200_2011" / "images"


def ours(archives: Path, short_side: int, place: Path) -> float:
    """Images per second, from the archive's first byte to the store in place."""
    settings = PrepareParams(short_side=short_side)
    began = time.perf_counter()
    store = prepare(datasets.load("cub200"), "any", settings, archives, place)
    seconds = time.perf_counter() - began
    shutil.rmtree(place)
    return sum(store.meta["counts"].values()) / seconds


def plain(folder: Path, short_side: int, workers: int) -> float:
    """Images per second, one by one as their sizes differ."""
    images = ImageFolder(str(folder), Compose([Resize(short_side), PILToTensor()]))
    began = time.perf_counter()
    seen = sum(1 for _ in DataLoader(images, batch_size=None, num_workers=workers))
    return seen / (time.perf_counter() - began)


def batched(folder: Path, short_side: int, workers: int) -> float:
    """The same with 32 images at a time, which spares the workers some messages."""
    images = ImageFolder(str(folder), Compose([Resize(short_side), PILToTensor()]))
    began = time.perf_counter()
    loader = DataLoader(images, batch_size=32, num_workers=workers, collate_fn=list)
    seen = sum(len(batch) for batch in loader)
    return seen / (time.perf_counter() - began)


def measure(archive: Path, short_side: int, rounds: int) -> dict[str, Any]:
    """Measure in turn and print; returns the medians, and the median of the ratios to each plain way."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        images = unpack(archive, folder)
        ways: dict[str, Callable[[], float]] = {
            "finetune prepare": lambda: ours(archive.parent, short_side, folder / "store"),
            f"ImageFolder, {WORKERS} workers": lambda: plain(images, short_side, WORKERS),
            f"ImageFolder, {WORKERS} workers, 32 at a time": lambda: batched(images, short_side, WORKERS),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds + 1):  # the first warms up
            for name, way in ways.items():
                rate = way()
                if turn:
                    rates[name].append(rate)
    own, one_by_one, in_batches = rates.values()
    print(f"short side {short_side} px, {os.cpu_count()} cores, medians of {rounds} rounds in turn")
    for name, values in rates.items():
        print(f"{name}: {statistics.median(values):.0f} images/s, ours is {_ratio(own, values):.2f} x", flush=True)
    return {
        "images_per_second": round(statistics.median(own)),
        "vs_plain": round(_ratio(own, one_by_one), 3),
        "vs_plain_in_batches": round(_ratio(own, in_batches), 3),
    }


def _ratio(own: list[float], others: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(own, others, strict=True))


@click.command()
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--short-side", default=256, show_default=True, help="Pixels.")
@click.option("--rounds", default=5, show_default=True)
def main(archive: Path, short_side: int, rounds: int) -> None:
    """Measure on the images of a CUB-200-2011 archive."""
    measure(archive, short_side, rounds)


if __name__ == "__main__":
    main()
