"""Peak resident memory and rate of `prepare` over a growing number of generated JPEG images in class folders.

Run: `python -m benchmarks.prepare_memory 25000 50000 100000`.
"""

import json
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path

import click
import numpy as np
import simplejpeg

from benchmarks.command import ONE_OR_MORE, Command

CLASSES = 1000
HEIGHT, WIDTH = 240, 320  # pixels
SHORT_SIDE = 128


def generate(archive: Path, images: int) -> None:
    """A .tar of smooth random pictures, no two the same."""
    rows, columns = np.arange(HEIGHT, dtype=np.float32), np.arange(WIDTH, dtype=np.float32)
    with tarfile.open(archive, "w") as tar:
        for i in range(images):
            waves = np.random.default_rng(i).uniform(0.01, 0.2, (3, 2))
            planes = [127 + 120 * np.outer(np.sin(rows * a), np.cos(columns * b)) for a, b in waves]
            data = simplejpeg.encode_jpeg(np.ascontiguousarray(np.stack(planes, -1).astype(np.uint8)), quality=85)
            member = tarfile.TarInfo(f"{i % CLASSES:04d}/{i:07d}.jpg")
            member.size = len(data)
            tar.addfile(member, BytesIO(data))


def measured(folder: Path, place: Path) -> dict[str, float]:
    """Seconds and peak memory (bytes) of one `prepare`, in a process of its own."""
    code = f"import sys; from benchmarks.prepare_memory import work; work({str(folder)!r}, {str(place)!r})"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def work(folder: str, place: str) -> None:
    """What that process does."""
    from finetune.datasets import class_folders
    from finetune.params import PrepareParams
    from finetune.prepare import prepare

    began = time.perf_counter()
    prepare(class_folders.dataset("own"), "any", PrepareParams(short_side=SHORT_SIDE), Path(folder), Path(place))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # kilobytes on Linux
    print(json.dumps({"seconds": time.perf_counter() - began, "peak": peak}))


@click.command(cls=Command)
@click.argument("images", type=ONE_OR_MORE, nargs=-1, required=True)
def main(images: tuple[int, ...]) -> None:
    """Measure for each number of IMAGES."""
    for count in images:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "own"
            folder.mkdir()
            generate(folder / "own.tar", count)
            found = measured(folder, Path(scratch) / "store")
            stored = sum(file.stat().st_size for file in (Path(scratch) / "store").iterdir())
            print(
                f"{count:,} images of {HEIGHT} x {WIDTH} px to {SHORT_SIDE} px: {found['seconds']:.1f} s, "
                f"{count / found['seconds']:.0f} images/s, peak memory {found['peak'] / 2**20:.0f} MiB, "
                f"store {stored / 1e9:.2f} GB",
                flush=True,
            )


if __name__ == "__main__":
    main()
