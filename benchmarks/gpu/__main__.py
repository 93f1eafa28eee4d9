"""The command line: check, sweep, profile, timm, repeat, study, and all of them in one go."""

import tempfile
from pathlib import Path

import click
import torch

from benchmarks.command import Group
from benchmarks.gpu import beside_timm, everything, rates, repeat, study, sweep
from benchmarks.gpu.written import earlier, of, write
from finetune.errors import InputError
from finetune.params import load
from finetune.study import Layout


def _there_is_one(_: click.Context, __: click.Parameter, device: str | None) -> str | None:
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "PyTorch sees no GPU on this machine, and nothing here is measured without one; to try the commands on a "
            "CPU add --device cpu --tiny"
        )
    return device


FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
DEVICE = click.option(
    "--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True, callback=_there_is_one
)
TINY = click.option("--tiny", is_flag=True, help="Few images, small: to try the commands on a CPU.")
STORE = click.option("--store", type=FOLDER, required=True, help="A prepared store.")
BACKBONE = click.option("--backbone", type=FILE, required=True)
OUT = click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the figures.")
PARAMS = click.option("--params", type=FILE, required=True, help="Of the study.")
INPUTS = click.option("--inputs", type=FOLDER, required=True, help="prepared/ and models/.")
OVERRIDES = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the params.")
ARCHIVE = click.option("--archive", type=FILE, help="A .tar(.gz) of class folders, for timm; else JPEGs are written.")


@click.group(cls=Group)
def main() -> None:
    """Benchmarks of the training engine on one GPU. Each writes its figures to --out as soon as it has them; `study`
    writes the runs themselves, runs/ and evaluations/."""


@main.command("all")
@DEVICE
@TINY
@PARAMS
@INPUTS
@OVERRIDES
@ARCHIVE
@OUT
@click.option("--minutes", type=float, default=27.0, show_default=True, help="Begin nothing new after so long.")
def all_(
    device: str,
    tiny: bool,
    params: Path,
    inputs: Path,
    overrides: tuple[str, ...],
    archive: Path | None,
    out: Path,
    minutes: float,
) -> None:
    """Check, sweep, measure beside timm and train again for the same bytes, on the study's first data set; then train
    all of the study's runs.

    Fails where one of them goes wrong. Begun again with the same --out, on the same machine, with the same code, data
    and settings, it measures what is not there yet.
    """
    if everything.run(params, inputs, out, archive, minutes, device, tiny, overrides):
        raise SystemExit(1)


@main.command()
@DEVICE
@TINY
@STORE
@BACKBONE
@OUT
def check(device: str, tiny: bool, store: Path, backbone: Path, out: Path) -> None:
    """Compare views, losses and gradients with the CPU's; see that no step waits for the GPU. Fail where they differ by
    more than rounding, or one does."""
    found = everything.check(store, backbone, device, tiny)
    write(out / everything.CHECK, found, device, of(store, tiny))
    if not found["right"]:
        raise SystemExit(1)


@main.command("sweep")
@DEVICE
@TINY
@STORE
@OUT
@click.option("--only", default="", help="Only the settings whose name holds one of these words, comma separated.")
@click.option("--minutes", type=float, default=8.0, show_default=True, help="Begin no new setting after so long.")
def sweep_(device: str, tiny: bool, store: Path, out: Path, only: str, minutes: float) -> None:
    """Measure images per second over precision, compilation and batch size, best promise first; the fastest also with
    streamed pixels, and with `deterministic: true`. Fail where every setting does."""
    words, path = [word for word in only.split(",") if word], out / everything.SWEEP
    subject = of(store, tiny)
    found = sweep.measure(
        store,
        device,
        tiny,
        words,
        minutes,
        lambda rows: write(path, rows, device, subject),
        earlier(path, device, subject),
    )
    if sweep.all_failed(found):
        raise SystemExit(1)


@main.command()
@DEVICE
@TINY
@STORE
@OUT
@click.option("--setting", default=sweep.first(False), show_default=True)
def profile(device: str, tiny: bool, store: Path, out: Path, setting: str) -> None:
    """Write where a training step's time goes, kernel by kernel."""
    out.mkdir(parents=True, exist_ok=True)
    text = rates.profile(store, sweep.recipe_of(sweep.first(True) if tiny else setting, device, tiny))
    (out / "profile.txt").write_text(text, encoding="utf-8")
    click.echo(text)


@main.command("timm")
@DEVICE
@TINY
@STORE
@ARCHIVE
@OUT
@click.option("--setting", default=sweep.first(False), show_default=True, help="Of ours.")
@click.option("--minutes", type=float, default=8.0, show_default=True, help="Begin no new rate after so long.")
def timm_(device: str, tiny: bool, store: Path, archive: Path | None, out: Path, setting: str, minutes: float) -> None:
    """Measure training beside timm's with 16 workers, in turn, where timm is installed."""
    subject = of(store, tiny)
    with tempfile.TemporaryDirectory() as scratch:
        beside_timm.measure(
            store,
            device,
            tiny,
            sweep.first(True) if tiny else setting,
            archive,
            Path(scratch),
            minutes,
            lambda found: write(out / everything.TIMM, found, device, subject),
        )


@main.command("repeat")
@DEVICE
@TINY
@PARAMS
@INPUTS
@OUT
@OVERRIDES
def repeat_(device: str, tiny: bool, params: Path, inputs: Path, out: Path, overrides: tuple[str, ...]) -> None:
    """Train a run three times under `deterministic: true`, once with an interruption. Fail where the bytes differ."""
    found = repeat.measure(params, overrides, inputs, device, tiny)
    read = load(params, overrides)
    write(out / everything.REPEAT, found, device, of(Layout(out, inputs).store(read.study.datasets[0]), tiny, read))
    if not found["same"]:
        raise SystemExit(1)


@main.command("study")
@click.option(
    "--device", type=click.Choice(["cuda", "cpu"]), callback=_there_is_one, help="[default: as the params have it]"
)
@TINY
@PARAMS
@INPUTS
@OUT
@click.option("--minutes", type=float, default=9.0, show_default=True, help="Begin no new run after so long.")
@OVERRIDES
def study_(
    device: str | None,
    tiny: bool,
    params: Path,
    inputs: Path,
    out: Path,
    minutes: float,
    overrides: tuple[str, ...],
) -> None:
    """Train and evaluate every run of a params file, in one process, each seed's strategies in turn. Fail where every
    run does."""
    rows = study.run(params, overrides, inputs, out, minutes, device, tiny)
    if study.all_failed(rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
