"""Waiting for what another process or thread is about to do."""

import time
from collections.abc import Callable


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    last = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < last, "it never came to that"
        time.sleep(0.02)
