"""The command line: reads params.yaml and wires everything.

`stages` has one command per stage, `actions` the rest. Heavy imports happen inside the commands, so that
`finetune --help` is instant.
"""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from finetune.errors import InputError


class _Group(click.Group):
    """Bad input is one sentence on stderr and exit code 2; SIGTERM unwinds as an exit, so that runs end honestly."""

    def invoke(self, ctx: click.Context) -> Any:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            return super().invoke(ctx)
        except InputError as error:
            click.echo(f"finetune: {error}", err=True)
            ctx.exit(2)


def reads_params(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options --params and --set."""
    command = click.option(
        "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, e.g. training.lr=1e-3."
    )(command)
    return click.option(
        "--params",
        "params_file",
        type=click.Path(path_type=Path),
        default=Path("params.yaml"),
        show_default=True,
        help="The study's parameters.",
    )(command)


def which_run(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that name a run, and the device."""
    for option in (
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Default: training.device."),
        click.option("--seed", type=int, default=0, show_default=True),
        click.option("--strategy", required=True, help="A name under strategies in params.yaml."),
        click.option("--dataset", required=True, help="A name under datasets in params.yaml."),
    ):
        command = option(command)
    return command


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="finetune")
def cli() -> None:
    """Fine-tuning studies: data sets x strategies x seeds, through DVC and MLflow.

    The stages run through `dvc repro`; `finetune study run` runs them all, then tracks and registers.
    """


def load(params_file: Path, overrides: tuple[str, ...] = ()) -> tuple[Any, Any]:
    """params.yaml, and the layout of the current folder, in which DVC runs its stages."""
    from finetune import params, study

    return params.load(params_file, overrides), study.Layout(Path())


def check_dataset(params: Any, dataset: str) -> None:
    from finetune import study

    study.check_run(params, dataset, next(iter(params.strategies)))


from finetune.cli import actions, stages  # noqa: E402, F401  (their commands join `cli` as they are imported)
