"""What the command lines here share: whole numbers from one, and bad input as one sentence with exit code 2."""

from typing import Any

import click

from finetune.errors import InputError

ONE_OR_MORE = click.IntRange(min=1)


class Refused(click.ClickException):
    """Bad input: one sentence, exit code 2."""

    exit_code = 2


class Command(click.Command):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            raise Refused(str(error)) from None
        except OSError as error:
            if error.filename is None:
                raise
            raise Refused(f"{error.filename}: {error.strerror}") from None


class Group(Command, click.Group):
    """The same for a group of commands."""
