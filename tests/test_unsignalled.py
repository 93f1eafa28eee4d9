"""Stretches in which signals are noted and handled afterwards."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from finetune.unsignalled import signals_later

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """Signals that this process's own handlers got."""
    before = {number: signal.getsignal(number) for number in ENDING}
    got: list[int] = []
    for number in ENDING:
        signal.signal(number, lambda number, _: got.append(number))
    yield got
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", ENDING)
def test_they_are_handled_at_the_end_by_what_handled_them_before(number: int, heard: list[int]) -> None:
    handler = signal.getsignal(number)
    with signals_later():
        send(number)
        assert heard == []
    assert heard == [number]
    assert signal.getsignal(number) is handler


def test_also_where_the_stretch_ends_in_an_error(heard: list[int]) -> None:
    with pytest.raises(ZeroDivisionError), signals_later():
        send(signal.SIGTERM)
        raise ZeroDivisionError
    assert heard == [signal.SIGTERM]


def test_ctrl_c_is_raised_at_the_end() -> None:
    done = False
    with pytest.raises(KeyboardInterrupt), signals_later():
        send(signal.SIGINT)
        done = True
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_they_may_be_dropped(heard: list[int]) -> None:
    with signals_later(dropped=True):
        send(signal.SIGINT)
    assert heard == []
    send(signal.SIGINT)
    assert heard == [signal.SIGINT]


def test_what_is_ignored_stays_ignored_and_what_ends_the_process_at_once_still_does(heard: list[int]) -> None:
    for handler in (signal.SIG_IGN, signal.SIG_DFL):
        signal.signal(signal.SIGHUP, handler)
        with signals_later():
            assert signal.getsignal(signal.SIGHUP) == handler


def test_a_child_is_started_with_no_signal_blocked(heard: list[int]) -> None:
    code = "import signal; print(sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))))"
    with signals_later():
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"


def test_in_another_thread_nothing_changes(heard: list[int]) -> None:
    handler, seen = signal.getsignal(signal.SIGTERM), []

    def look() -> None:
        with signals_later():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [handler]
