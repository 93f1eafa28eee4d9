"""All of the benchmarks in one go: agreement, sweep, timm, the same bytes again, the study's runs.

What one go measured, the next leaves.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.gpu import agreement, beside_timm, repeat, study, sweep, waiting
from benchmarks.gpu.written import earlier, of, write
from finetune.errors import InputError
from finetune.params import load
from finetune.study import Layout

CHECK, SWEEP, TIMM, STUDY = "agreement.json", "sweep.json", "beside_timm.json", "study.json"
REPEAT = "repeat.json"
_SHARES = {SWEEP: 0.45, TIMM: 0.3}  # of the time that is left when they begin; the study has the rest


def run(
    params_file: Path,
    inputs: Path,
    out: Path,
    archive: Path | None,
    minutes: float,
    device: str,
    tiny: bool,
    overrides: tuple[str, ...] = (),
) -> list[str]:
    """Measure all on the first data set of a params file, and train its runs.

    Returns:
        What went wrong, a line each.

    Raises:
        InputError: an input is missing.
    """
    end, layout = time.monotonic() + 60 * minutes, Layout(out, inputs)
    params = load(params_file, overrides)
    store = layout.store(params.study.datasets[0])
    subject = of(store, tiny)
    if not layout.backbone.is_file():
        raise InputError(f"{layout.backbone}: no such file; --inputs is a folder with prepared/ and models/")
    wrong: list[str] = []

    def left() -> float:
        return max(0.0, end - time.monotonic()) / 60

    def part(name: str, work: Callable[[], str | None]) -> None:
        click.echo(f"\n{name}: {left():.1f} minutes left")
        try:
            said = work()
        except Exception as error:  # the other parts shall not be lost
            said = f"{type(error).__name__}: {error}"
        if said:
            wrong.append(f"{name}: {said}")
            click.echo(wrong[-1], err=True)

    def checked() -> str | None:
        if not (found := earlier(out / CHECK, device, subject)):
            found = check(store, layout.backbone, device, tiny)
            write(out / CHECK, found, device, subject)
        return None if found["right"] else "the device differs from the CPU, or a step waits for it"

    def swept() -> str | None:
        path, share = out / SWEEP, _SHARES[SWEEP]
        found = sweep.measure(
            store,
            device,
            tiny,
            [],
            share * left(),
            lambda rows: write(path, rows, device, subject),
            earlier(path, device, subject),
        )
        return "every setting failed" if sweep.all_failed(found) else None

    def compared() -> str | None:
        path, share = out / TIMM, _SHARES[TIMM]
        setting = sweep.fastest(earlier(out / SWEEP, device, subject).get("rows", ())) or sweep.first(tiny)
        before = earlier(path, device, subject)
        if beside_timm.complete(before) and before.get("setting") == setting:
            return None
        if left() <= 0:
            click.echo("no time left")
            return None

        def keep(figures: dict[str, Any]) -> None:
            if figures.get("rates") or not before.get("rates"):  # not the place of figures by none
                write(path, figures, device, subject)

        with tempfile.TemporaryDirectory() as scratch:
            beside_timm.measure(
                store,
                device,
                tiny,
                setting,
                archive,
                Path(scratch),
                share * left(),
                keep,
            )
        return None

    def repeated() -> str | None:
        whole = of(store, tiny, params)
        if not (found := earlier(out / REPEAT, device, whole)):
            if left() <= 0:
                click.echo("no time left")
                return None
            found = repeat.measure(params_file, overrides, inputs, device, tiny, min(repeat.MINUTES, left()))
            write(out / REPEAT, found, device, whole)
        return None if found["same"] else "a training under deterministic: true gave other bytes"

    def studied() -> str | None:
        def keep(rows: list[dict[str, Any]]) -> None:
            write(out / STUDY, {"rows": rows}, device, of(store, tiny, params))

        rows = study.run(params_file, overrides, inputs, out, left(), device, tiny, keep)
        return "every run failed" if study.all_failed(rows) else None

    parts = {"check": checked, "sweep": swept, "timm": compared, "repeat": repeated, "study": studied}
    for name, work in parts.items():
        part(name, work)
    return wrong


def check(store: Path, backbone: Path, device: str, tiny: bool) -> dict[str, Any]:
    """What `check` writes: agreement with the CPU, and what waited for the GPU; `right` where all is as it should."""
    found = agreement.compare(store, backbone, torch.device(device), tiny)
    waits = waiting.epochs(store, device, tiny)
    right = found["agree"] and not any(waits.values())
    return found | {"waits": waits if device == "cuda" else None, "right": right}
