"""Signals to this very process, as a training that is told to end meets them."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from finetune import interruption
from finetune.interruption import Interrupted


def terminated(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def as_in_a_process() -> Iterator[None]:
    """Signals are handled as a training's process does; what is set for that is set back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        with interruption.handled():
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        interruption._Now.received = None


@contextmanager
def ended_by_a_signal() -> Iterator[None]:
    """Stands for a process that ends by one, with all that it has set."""
    with pytest.raises(Interrupted) as caught, as_in_a_process():
        yield
    assert not caught.value.torn
