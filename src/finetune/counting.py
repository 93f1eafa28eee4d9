"""How far a long step is: a live bar on a terminal, else a flushed line every ten seconds."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

PATIENCE = 10.0  # seconds between two lines


@contextmanager
def counted(what: str, total: int | None, unit: str) -> Iterator[Callable[..., None]]:
    """Give what to call with how many are done so far, and with another total where that becomes known better.

    Args:
        what: is being done, such as "prepare cub200".
        total: how many there will be, where that is known.
        unit: of what is counted: "images", or "B" for bytes.
    """
    began = told = time.monotonic()
    done = 0

    def line(now: float, last: bool) -> str:
        scale, shown = (1e6, "MB") if unit == "B" else (1, unit)
        rate = done / max(now - began, 1e-9)
        of = f" of {total / scale:,.0f}" if total and not last else ""
        left = f", {duration((total - done) / rate)} left" if total and rate and not last else ""
        took = f" in {duration(now - began)}" if last else ""
        per_second = f"{rate / scale:,.0f}" if rate / scale >= 10 else f"{rate / scale:.1f}"
        return f"{what}: {done / scale:,.0f}{of} {shown}{took}, {per_second} {shown}/s{left}"

    with tqdm(desc=what, total=total, unit=f" {unit}" if unit != "B" else "B", unit_scale=unit == "B",
              dynamic_ncols=True, disable=None) as bar:  # fmt: skip

        def advance(so_far: int, of: int | None = None) -> None:
            nonlocal told, done, total
            if of is not None and of != total:
                bar.total = total = of
            bar.update(so_far - done)
            done = so_far
            if bar.disable and (now := time.monotonic()) - told >= PATIENCE:
                told = now
                print(line(now, False), flush=True)

        yield advance
    if bar.disable and unit != "B":
        print(line(time.monotonic(), True), flush=True)


def duration(seconds: float) -> str:
    """Such as 4 s, 3 min 20 s, or 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def size(count: float) -> str:
    """Bytes as 3.1 GB, 42 MB or 7 kB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}" if count < 10 * scale else f"{count / scale:.0f} {unit}"
    return f"{count / 1e3:.0f} kB"
