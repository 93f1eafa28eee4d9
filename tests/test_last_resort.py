"""A process whose main thread is within one long operation when it is told to end."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from finetune import interruption, last_resort

SOURCE = str(Path(last_resort.__file__).parents[1])
HEAD = """
    import hashlib, time
    from finetune import last_resort
    from finetune.interruption import at_worst, check, finishing, handled, held
    last_resort.WARNING, last_resort.LIMIT = WARNING, LIMIT

    def one_long_operation():
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # half an hour without a look at signals, as others may run
"""


def started(code: str, warning: float = 0.5, limit: float = 1.0) -> subprocess.Popen[str]:
    text = f"WARNING, LIMIT = {warning}, {limit}\n" + textwrap.dedent(HEAD) + textwrap.dedent(code)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", text], env={**os.environ, "PYTHONPATH": SOURCE}, **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_it_ends_in_time_all_the_same(number: signal.Signals, code: int) -> None:
    process = started("""
        with handled():
            with at_worst(lambda: print("told", flush=True)), held():
                print("ready", flush=True)
                one_long_operation()
    """)
    process.send_signal(number)
    began = time.monotonic()
    try:
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert time.monotonic() - began < 5
    assert process.returncode == code
    assert out == "told\n"
    assert err == (
        f"finetune: what was under way did not end within 1 s of {number.name}; the same command goes on from what is "
        "saved\n"
    )


def test_a_whole_run_is_waited_for() -> None:
    process = started("""
        with handled():
            with at_worst(lambda: print("told", flush=True)), finishing():
                print("ready", flush=True)
                time.sleep(2)
            print("whole", flush=True)
            check()
    """)
    process.terminate()
    out, err = process.communicate(timeout=20)
    assert (out, err, process.returncode) == ("whole\n", "", 143)


def test_who_ends_in_time_does_so_undisturbed() -> None:
    process = started(
        """
        with handled():
            with at_worst(lambda: print("told", flush=True)), held():
                print("ready", flush=True)
                time.sleep(2)
            print("another step", flush=True)
    """,
        warning=8,
        limit=9,
    )
    process.terminate()
    out, err = process.communicate(timeout=20)
    assert (out, err, process.returncode) == ("", "", 143)


def test_nothing_is_left_of_it() -> None:
    threads = threading.active_count()
    with interruption.handled():
        assert threading.active_count() > threads
    last = time.monotonic() + 10
    while threading.active_count() > threads:
        assert time.monotonic() < last, "its thread is still there"
        time.sleep(0.01)
    assert signal.set_wakeup_fd(-1) == -1


def test_the_times_leave_room_within_ten_seconds() -> None:
    assert interruption.PATIENCE < last_resort.WARNING < last_resort.LIMIT < 10
