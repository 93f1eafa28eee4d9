"""How far a training is: a live bar on a terminal, else a flushed line per epoch."""

import os
import sys
import time
from contextlib import suppress

from tqdm import tqdm

from finetune.interruption import Interrupted
from finetune.training import Listener, Row


def progress(name: str, epochs: int, images: int) -> Listener:
    """A listener that shows the progress of run `name`, which trains `epochs` epochs of `images` images each."""
    if sys.stderr.isatty():
        return _bar(name, epochs)
    return _lines(name, epochs, images)


def _bar(name: str, epochs: int) -> Listener:
    bar = tqdm(desc=name, unit=" steps", dynamic_ncols=True)

    def resumed(rows: list[Row], steps: int) -> None:
        bar.write(f"{name}: goes on after {_point(len(rows), steps)}", file=sys.stderr)

    def step(epoch: int, step: int, steps: int) -> None:
        if bar.total is None:
            bar.reset(total=(epochs - epoch + 1) * steps - step + 1)
        bar.update()

    def epoch(row: Row) -> None:
        bar.set_postfix_str(f"epoch {row['epoch']}/{epochs}, {_figures(row)}")
        if row["epoch"] == epochs:
            bar.close()

    def interrupted(why: Interrupted, done: int, steps: int) -> None:
        bar.close()
        _say(_ending(name, why, done, steps))

    return Listener(resumed=resumed, step=step, epoch=epoch, interrupted=interrupted)


def _lines(name: str, epochs: int, images: int) -> Listener:
    clock = {"began": time.monotonic(), "epochs": 0.0}  # epochs since then

    def resumed(rows: list[Row], steps: int) -> None:
        _say(f"{name}: goes on after {_point(len(rows), steps)}")

    def step(epoch: int, step: int, steps: int) -> None:
        clock.setdefault("done before", (step - 1) / steps)  # of the first epoch, by another attempt

    def epoch(row: Row) -> None:
        clock["epochs"] += 1
        rate, trained = "", clock["epochs"] - clock.get("done before", 1.0)
        if trained > 0:
            each = (time.monotonic() - clock["began"]) / trained
            left = each * (epochs - int(row["epoch"] or 0))
            rate = f", {images / each:.0f} images/s, {_duration(left)} left"
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


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
