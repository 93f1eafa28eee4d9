"""How far a training is: a live bar on a terminal, else a flushed line per epoch."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from tqdm import tqdm

from finetune.counting import duration
from finetune.interruption import Interrupted
from finetune.training import Listener, Row


@contextmanager
def progress(name: str, epochs: int, images: int) -> Iterator[Listener]:
    """A listener that shows the progress of run `name`, which trains `epochs` epochs of `images` images each."""
    if not sys.stderr.isatty():
        yield _lines(name, epochs, images)
        return
    with tqdm(desc=name, unit=" steps", dynamic_ncols=True) as bar:  # closed before an error is said on the terminal
        yield _bar(bar, name, epochs)


def _bar(bar: "tqdm[NoReturn]", name: str, epochs: int) -> Listener:
    def resumed(rows: list[Row], steps: int) -> None:
        bar.write(f"{name}: goes on after {_point(len(rows), steps)}", file=sys.stderr)

    def step(epoch: int, step: int, steps: int) -> None:
        if bar.total is None:
            bar.reset(total=(epochs - epoch + 1) * steps - step + 1)
        bar.update()

    def epoch(row: Row) -> None:
        bar.set_postfix_str(f"epoch {row['epoch']}/{epochs}, {_figures(row)}")

    def interrupted(why: Interrupted, done: int, steps: int) -> None:
        bar.close()
        _say(_ending(name, why, done, steps))

    return Listener(resumed=resumed, step=step, epoch=epoch, interrupted=interrupted)


def _lines(name: str, epochs: int, images: int) -> Listener:
    began, seen = time.monotonic(), 0  # epochs since then
    done_before: float | None = None  # of the first of them, by another attempt

    def resumed(rows: list[Row], steps: int) -> None:
        _say(f"{name}: goes on after {_point(len(rows), steps)}")

    def step(epoch: int, step: int, steps: int) -> None:
        nonlocal done_before
        if done_before is None:
            done_before = (step - 1) / steps

    def epoch(row: Row) -> None:
        nonlocal seen, done_before
        if done_before is None:  # no step was taken: only the validation was left, or a head is solved
            done_before = 1.0
        seen += 1
        rate, trained = "", seen - done_before
        if trained > 0:
            each = (time.monotonic() - began) / trained
            left = each * (epochs - int(row["epoch"] or 0))
            rate = f", {images / each:.0f} images/s" + (f", {duration(left)} left" if left else "")
        _say(f"{name}: epoch {row['epoch']}/{epochs}, {_figures(row)}{rate}")

    def interrupted(why: Interrupted, done: int, steps: int) -> None:
        _say(_ending(name, why, done, steps))

    return Listener(resumed=resumed, step=step, epoch=epoch, interrupted=interrupted)


def _point(epochs: int, steps: int) -> str:
    return f"epoch {epochs}" + (f" and {steps} step{'s' * (steps > 1)} of the next" if steps else "")


def _ending(name: str, why: Interrupted, epochs: int, steps: int) -> str:
    """What is saved, and how to go on."""
    command = "`dvc repro`" if "DVC_STAGE" in os.environ else "the same command"
    if (epochs, steps) == (0, 0):
        return f"{name}: ended by {why.signal} before there was anything to save; {command} begins anew"
    return f"{name}: ended by {why.signal}; saved after {_point(epochs, steps)}, {command} goes on from there"


def _say(text: str) -> None:
    with suppress(OSError):  # whoever listened may be gone
        print(text, flush=True)


def _figures(row: Row) -> str:
    shown = [("train loss", row["train/loss"], ".3f"), ("train acc", row["train/acc"], ".3f")]
    shown += [("val loss", row["val/loss"], ".3f"), ("val acc", row["val/acc"], ".3f")]
    return ", ".join(f"{label} {value:{form}}" for label, value, form in shown if value is not None)
