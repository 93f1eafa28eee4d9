"""The command line: reads params.yaml and wires everything.

`stages` has one command per stage, `data` brings data, `strategy` says what strategies train, `studies` has the study
as a whole, `actions` the rest. Heavy imports happen inside the commands, so that `finetune --help` is instant.
"""

import errno
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from finetune import interruption
from finetune.errors import InputError, suggest

if TYPE_CHECKING:
    from finetune.params import Params
    from finetune.study import Layout

BEGAN = time.monotonic()  # when the command began
_UNWINDING = 20.0  # seconds


class _Group(click.Group):
    """Bad input is one sentence on stderr and exit code 2; SIGTERM and SIGHUP unwind as an exit, so that runs end
    honestly, and so does the end of what started the command.
    """

    group_class = type  # groups below this one are such groups, too

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with _one_sentence():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, _unwind)
        interruption.end_with_starter()
        with _one_sentence():
            return super().invoke(ctx)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands and not args[0].startswith("-"):
            raise InputError(f"`{ctx.command_path}` has no command '{args[0]}'; {suggest(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


class _Unwinding:
    """When a signal last had the process end."""

    since = -math.inf


def _unwind(number: int, _: FrameType | None) -> None:
    """Exit; a second signal, such as a closed terminal sends, must not break off what ends things in order."""
    if time.monotonic() - _Unwinding.since > _UNWINDING:
        _Unwinding.since = time.monotonic()
        sys.exit(128 + number)


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Say bad input, a wrong command line and, as the last resort, what the system refused, and exit with 2."""
    try:
        yield
    except InputError as error:
        sentence = str(error)
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        sentence = _usage(error)
    except OSError as error:
        if error.errno in (None, errno.EPIPE):
            raise
        sentence = ": ".join(str(part) for part in (error.filename, error.strerror) if part)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            sentence += "; make room, then repeat the command"
    else:
        return
    click.echo(f"finetune: {sentence}", err=True)
    raise click.exceptions.Exit(2)


def _usage(error: click.UsageError) -> str:
    """Click's words for a wrong command line as one sentence with what is right."""
    path = error.ctx.command_path if error.ctx else "finetune"
    if error.ctx and isinstance(error, click.NoSuchOption):
        known = (name for option in error.ctx.command.get_params(error.ctx) for name in option.opts if name[0] == "-")
        return f"`{path}` has no option '{error.option_name}'; {suggest(error.option_name, known)}"
    words = " ".join(error.format_message().split()).removesuffix(".")
    return f"{words[0].lower()}{words[1:]}; see `{path} --help`"


SEED = click.IntRange(0, 2**63 - 1)  # as params.Seed
SEED.name = "integer"  # in click's words for what is none


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
        click.option("--seed", type=SEED, default=0, show_default=True),
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


def load(params_file: Path, overrides: tuple[str, ...] = ()) -> "tuple[Params, Layout]":
    """params.yaml, and the layout of the current folder, in which DVC runs its stages.

    Raises:
        InputError: as `params.load`; or the study lists a data set without a reader, or a strategy without a plan.
    """
    from finetune import params, strategies, study

    loaded = params.load(params_file, overrides)
    study.check_readers(loaded.study.datasets, loaded.datasets)
    for name in loaded.study.strategies:
        strategies.check_name(loaded.plan_for(name), name)
    return loaded, study.Layout(Path())


def check_dataset(params: "Params", dataset: str) -> None:
    """
    Raises:
        InputError: params.yaml has no such data set.
    """
    from finetune import study

    study.check_run(params, dataset, next(iter(params.strategies)))


from finetune.cli import actions, calibrate, data, stages, store, strategy, studies  # noqa: E402, F401  (their commands join `cli` when imported)
