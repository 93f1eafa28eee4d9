"""How OpenMP's threads wait, and what that costs a training on a CPU, on idle cores and beside a process that keeps one
of them busy: as they come (they spin), asleep at once, and asleep after a short spin, which is what `finetune` sets.

    python -m benchmarks.threads

Steps of MobileNetV2 on one batch that lies ready, each way in a process of its own, in turn.
"""

import multiprocessing
import os
import statistics
import subprocess
import sys
import time

import click

from benchmarks.command import ONE_OR_MORE, Command

WAYS = {
    "spinning, as they come": {},
    "asleep at once": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"},
    "asleep after a short spin": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"},
}
STEPS, WARM_UP = 20, 5


def rate(size: int, batch: int, threads: int) -> float:
    """Images per second of this process."""
    from benchmarks.step_profile import steps_of

    step = steps_of("ours fp32", size, batch, threads)
    for _ in range(WARM_UP):
        step()
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    return STEPS * batch / (time.perf_counter() - began)


def _spin() -> None:
    while True:
        pass


@click.command(cls=Command)
@click.option("--size", default=48, type=ONE_OR_MORE, show_default=True, help="Pixels.")
@click.option("--batch-size", default=32, type=ONE_OR_MORE, show_default=True)
@click.option("--threads", default=2, type=ONE_OR_MORE, show_default=True)
@click.option("--rounds", default=3, type=ONE_OR_MORE, show_default=True)
@click.option("--alone", is_flag=True, help="Measure this process once, and print nothing but images per second.")
def main(size: int, batch_size: int, threads: int, rounds: int, alone: bool) -> None:
    """Print images per second of each way of waiting."""
    if alone:
        print(rate(size, batch_size, threads))
        return
    words = ["--size", str(size), "--batch-size", str(batch_size), "--threads", str(threads), "--alone"]
    users = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    print(f"{size} px, batches of {batch_size}, {threads} threads: images/s, medians of {rounds} rounds in turn\n")
    print("| OpenMP's threads | idle cores | one of them busy |\n| --- | --: | --: |")
    rates: dict[tuple[str, bool], list[float]] = {(way, busy): [] for way in WAYS for busy in (False, True)}
    for _ in range(rounds):
        for (way, busy), measured in rates.items():
            other = multiprocessing.Process(target=_spin, daemon=True)
            if busy:
                other.start()
            command = [sys.executable, "-m", "benchmarks.threads", *words]
            done = subprocess.run(command, env=users | WAYS[way], capture_output=True, text=True, check=True)
            measured.append(float(done.stdout))
            if busy:
                other.kill()
                other.join()
    for way in WAYS:
        print(f"| {way} | {' | '.join(f'{statistics.median(rates[way, busy]):.0f}' for busy in (False, True))} |")


if __name__ == "__main__":
    main()
