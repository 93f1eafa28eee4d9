"""The one exception for bad input: its message is a single sentence for the user."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Bad input: names the file or key, what was found, what was expected, and the mend.

    The command line prints the message alone on stderr and exits with code 2.
    """


@contextmanager
def named(where: str) -> Iterator[None]:
    """Put `where` before the message of what is raised within; for what does not know who asked."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def reason(error: Exception) -> str:
    """What another's exception says, in a line."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def complaint(output: str) -> str:
    """The line of a compiler's output that tells the error, empty where none does."""
    return next((line for line in output.splitlines() if "error" in line), "")


def suggest(name: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown name: the nearest known one, then all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}known: {', '.join(known) or 'none'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown name, where there are too many known ones to list."""
    (near,) = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    return f"did you mean '{near}'?"
