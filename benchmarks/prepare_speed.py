"""Archive -> store, against the plain way: images per second in turn, and their ratio; processor time per image, too,
which other work on the machine disturbs less.

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
from typing import Any, NamedTuple

import click
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, PILToTensor, Resize

from benchmarks.command import ONE_OR_MORE, Command
from benchmarks.unpacking import unpack_files
from finetune import datasets
from finetune.params import PrepareParams
from finetune.prepare import prepare
from finetune.processor import cores

WORKERS = 2


class Figures(NamedTuple):
    rate: float  # images/s
    processor: float  # ms of one core, an image


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a CUB-200-2011 archive into `folder`; returns the folder of its class folders."""
    with tarfile.open(archive) as tar:
        files = [member for member in tar if not Path(member.name).name.startswith("._")]  # macOS' own
        unpack_files(tar, folder, files)
    return folder / "CUB_200_2011" / "images"


def ours(archives: Path, short_side: int, place: Path) -> Figures:
    """From the archive's first byte to the store in place."""
    settings = PrepareParams(short_side=short_side)
    shutil.rmtree(place, ignore_errors=True)
    return timed(
        lambda: sum(prepare(datasets.load("cub200"), "any", settings, archives, place).meta["counts"].values())
    )


def plain(folder: Path, short_side: int, workers: int) -> Figures:
    """One by one as their sizes differ."""
    images = ImageFolder(str(folder), Compose([Resize(short_side), PILToTensor()]))
    return timed(lambda: sum(1 for _ in DataLoader(images, batch_size=None, num_workers=workers)))


def batched(folder: Path, short_side: int, workers: int) -> Figures:
    """The same with 32 images at a time, which spares the workers some messages."""
    images = ImageFolder(str(folder), Compose([Resize(short_side), PILToTensor()]))
    return timed(lambda: sum(map(len, DataLoader(images, batch_size=32, num_workers=workers, collate_fn=list))))


def timed(work: Callable[[], int]) -> Figures:
    """Do `work`, which returns its number of images."""
    began, processor = time.perf_counter(), _processor_seconds()
    images = work()
    return Figures(images / (time.perf_counter() - began), 1000 * (_processor_seconds() - processor) / images)


def measure(archive: Path, short_side: int, rounds: int) -> dict[str, Any]:
    """Measure in turn and print; returns the medians, and the median of the ratios to each plain way."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        images = unpack(archive, folder)
        ways: dict[str, Callable[[], Figures]] = {
            "finetune prepare": lambda: ours(archive.parent, short_side, folder / "store"),
            f"ImageFolder, {WORKERS} workers": lambda: plain(images, short_side, WORKERS),
            f"ImageFolder, {WORKERS} workers, 32 at a time": lambda: batched(images, short_side, WORKERS),
        }
        found: dict[str, list[Figures]] = {name: [] for name in ways}
        for turn in range(rounds + 1):  # the first warms up
            for name, way in ways.items():
                figures = way()
                if turn:
                    found[name].append(figures)
    own, one_by_one, in_batches = found.values()
    print(f"short side {short_side} px, {cores()} cores, medians of {rounds} rounds in turn")
    for name, values in found.items():
        rate, processor = (statistics.median(column) for column in zip(*values, strict=True))
        print(
            f"{name}: {rate:.0f} images/s, ours is {_ratio(own, values):.2f} x; {processor:.2f} ms of processor time "
            f"an image, ours is {processor / statistics.median(one.processor for one in own):.2f} x",
            flush=True,
        )
    return {
        "images_per_second": round(statistics.median(one.rate for one in own)),
        "vs_plain": round(_ratio(own, one_by_one), 3),
        "vs_plain_in_batches": round(_ratio(own, in_batches), 3),
        "processor_ms": [round(statistics.median(one.processor for one in values), 3) for values in found.values()],
    }


def _ratio(own: list[Figures], others: list[Figures]) -> float:
    return statistics.median(a.rate / b.rate for a, b in zip(own, others, strict=True))


def _processor_seconds() -> float:
    """Of this process and of its children that have ended, the loader's workers."""
    return sum(os.times()[:4])


@click.command(cls=Command)
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--short-side", default=256, type=ONE_OR_MORE, show_default=True, help="Pixels.")
@click.option("--rounds", default=5, type=ONE_OR_MORE, show_default=True)
def main(archive: Path, short_side: int, rounds: int) -> None:
    """Measure on the images of a CUB-200-2011 archive."""
    measure(archive, short_side, rounds)


if __name__ == "__main__":
    main()
