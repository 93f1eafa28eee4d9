import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from finetune import background
from finetune.background import Background


def test_what_is_asked_for_is_done_in_order_beside_who_asks() -> None:
    heard: list[object] = []
    beside = Background()
    beside.do(lambda: time.sleep(0.2))
    for number in range(3):
        beside.do(lambda number=number: heard.append(number))
    assert heard == []
    assert beside.wait(20)
    assert heard == [0, 1, 2]


def test_waiting_ends_when_the_time_is_up() -> None:
    hold = threading.Event()
    beside = Background()
    beside.do(lambda: hold.wait(20) and None)
    assert not beside.wait(0.1)
    hold.set()
    assert beside.wait(20)


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_what_raises_is_followed_by_the_next(error: type[BaseException]) -> None:
    def fail() -> None:
        raise error

    beside = Background()
    beside.do(fail)
    assert beside.wait(20)


def test_a_process_ends_though_something_is_under_way() -> None:
    code = """
        import time
        from finetune.background import Background
        beside = Background()
        beside.do(lambda: time.sleep(60))
        beside.wait(0.1)
    """
    source = str(Path(background.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, timeout=20, check=True)


@pytest.mark.parametrize("at_most", [5, None])
def test_a_signal_reaches_the_main_thread_though_that_waits(at_most: float | None) -> None:
    class Told(Exception):
        pass

    def tell(*_: object) -> None:
        raise Told

    before = signal.signal(signal.SIGTERM, tell)
    try:
        for _ in range(20):  # as what comes just before the main thread waits does not cut that wait short
            beside, over = Background(), threading.Event()
            began = time.monotonic()
            with pytest.raises(Told):
                beside.do(lambda: os.kill(os.getpid(), signal.SIGTERM))
                beside.do(partial(over.wait, 10))
                beside.wait(at_most)
            assert time.monotonic() - began < 3
            over.set()
    finally:
        signal.signal(signal.SIGTERM, before)
