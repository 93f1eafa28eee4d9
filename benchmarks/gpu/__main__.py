"""The command line: check, sweep, profile, study."""

import json
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import torch
import torchvision

from benchmarks.gpu import agreement, study, sweep

DEVICE = click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
TINY = click.option("--tiny", is_flag=True, help="Few images, small: to try the commands on a CPU.")
STORE = click.option("--store", type=click.Path(path_type=Path, exists=True), required=True, help="A prepared store.")
BACKBONE = click.option("--backbone", type=click.Path(path_type=Path, exists=True), required=True)
OUT = click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the figures.")


@click.group()
def main() -> None:
    """Benchmarks of the training engine on one GPU."""


@main.command()
@DEVICE
@TINY
@STORE
@BACKBONE
@OUT
def check(device: str, tiny: bool, store: Path, backbone: Path, out: Path) -> None:
    """Compare views, losses and gradients with the CPU's; fail where they differ by more than rounding."""
    found = agreement.compare(store, backbone, torch.device(device), tiny)
    write(out / "agreement.json", found)
    if not found["agree"]:
        raise SystemExit(1)


@main.command("sweep")
@DEVICE
@TINY
@STORE
@OUT
@click.option("--only", default="", help="Only the settings whose name holds one of these words, comma separated.")
@click.option("--minutes", type=float, default=8.0, show_default=True, help="Begin no new setting after so long.")
def sweep_(device: str, tiny: bool, store: Path, out: Path, only: str, minutes: float) -> None:
    """Measure images per second over precision, compilation, memory format and batch size."""
    words = [word for word in only.split(",") if word]
    sweep.measure(store, device, tiny, words, minutes, lambda rows: write(out / "sweep.json", {"rows": rows}))


@main.command()
@DEVICE
@TINY
@STORE
@OUT
@click.option("--setting", default="bf16/reduce-overhead/channels_last/256/triton", show_default=True)
def profile(device: str, tiny: bool, store: Path, out: Path, setting: str) -> None:
    """Write where a training step's time goes, kernel by kernel."""
    out.mkdir(parents=True, exist_ok=True)
    text = sweep.profile(store, device, tiny, setting)
    (out / "profile.txt").write_text(text, encoding="utf-8")
    click.echo(text)


@main.command("study")
@click.option("--params", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--inputs", type=click.Path(path_type=Path, exists=True), required=True, help="prepared/ and models/.")
@OUT
@click.option("--minutes", type=float, default=9.0, show_default=True, help="Begin no new run after so long.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the params file.")
def study_(params: Path, inputs: Path, out: Path, minutes: float, overrides: tuple[str, ...]) -> None:
    """Train and evaluate every run of a params file, in one process, each seed's strategies in turn."""
    study.run(params, overrides, inputs, out, minutes)


def write(path: Path, figures: dict[str, Any]) -> None:
    """Write figures with the machine, the commit and the date they were measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(machine() | figures, indent=2) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """Where and when, and with what."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git.stdout.strip() or None,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


if __name__ == "__main__":
    main()
