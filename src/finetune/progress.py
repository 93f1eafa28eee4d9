"""How far a training is: a live bar on a terminal, else a flushed line per epoch."""

import sys
import time

from tqdm import tqdm

from finetune.training import Listener, Row


def progress(name: str, epochs: int, images: int) -> Listener:
    """A listener that shows the progress of run `name`, which trains `epochs` epochs of `images` images each."""
    if sys.stderr.isatty():
        return _bar(name, epochs)
    return _lines(name, epochs, images)


def _bar(name: str, epochs: int) -> Listener:
    bar = tqdm(desc=name, unit=" steps", dynamic_ncols=True)

    def resumed(rows: list[Row]) -> None:
        bar.write(f"{name}: goes on after epoch {len(rows)}", file=sys.stderr)

    def step(epoch: int, step: int, steps: int) -> None:
        if bar.total is None:
            bar.reset(total=(epochs - epoch + 1) * steps)
        bar.update()

    def epoch(row: Row) -> None:
        bar.set_postfix_str(f"epoch {row['epoch']}/{epochs}, {_figures(row)}")
        if row["epoch"] == epochs:
            bar.close()

    return Listener(resumed, step, epoch)


def _lines(name: str, epochs: int, images: int) -> Listener:
    clock = {"began": time.monotonic(), "epochs": 0}

    def resumed(rows: list[Row]) -> None:
        print(f"{name}: goes on after epoch {len(rows)}", flush=True)

    def epoch(row: Row) -> None:
        clock["epochs"] += 1
        each = (time.monotonic() - clock["began"]) / clock["epochs"]
        left = each * (epochs - int(row["epoch"] or 0))
        rate = f"{images / each:.0f} images/s, {_duration(left)} left"
        print(f"{name}: epoch {row['epoch']}/{epochs}, {_figures(row)}, {rate}", flush=True)

    return Listener(resumed=resumed, epoch=epoch)


def _figures(row: Row) -> str:
    shown = [("train loss", row["train/loss"], ".3f"), ("train acc", row["train/acc"], ".3f")]
    shown += [("val loss", row["val/loss"], ".3f"), ("val acc", row["val/acc"], ".3f")]
    return ", ".join(f"{label} {value:{form}}" for label, value, form in shown if value is not None)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
