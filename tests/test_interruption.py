"""When a signal takes effect: at once, after the step under way, never while a whole run is put in place."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from finetune import cli, interruption
from finetune.interruption import Interrupted, check, finishing, handled, held

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (*ENDING, signal.SIGALRM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    interruption._Now.received = None


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_process_at_once_with_the_shells_code(number: signal.Signals, code: int) -> None:
    with pytest.raises(Interrupted) as caught, handled():
        send(number)
        pytest.fail("it went on")
    assert (caught.value.code, caught.value.signal, caught.value.torn) == (code, number.name, False)


def test_while_the_state_changes_a_signal_waits() -> None:
    done = []
    with pytest.raises(Interrupted) as caught, handled():
        with held():
            send()
            done.append("the step")
        done.append("the next")
    assert done == ["the step"]
    assert not caught.value.torn


def test_a_step_that_takes_too_long_is_torn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "PATIENCE", 0.1)
    began = time.monotonic()
    with pytest.raises(Interrupted) as caught, handled(), held():
        send()
        time.sleep(5)
    assert time.monotonic() - began < 2
    assert caught.value.torn
    assert caught.value.code == 143


def test_a_second_signal_does_not_hinder_the_saving() -> None:
    saved = []
    with pytest.raises(Interrupted), handled():
        try:
            send(signal.SIGINT)
        except Interrupted:
            with held(last=True):
                send(signal.SIGINT)
                send(signal.SIGTERM)
                saved.append(True)
            raise
    send(signal.SIGINT)  # on the way out
    assert saved == [True]


def test_a_whole_run_is_put_in_place_and_the_signal_is_remembered() -> None:
    placed = []
    with pytest.raises(Interrupted), handled():
        with finishing():
            send()
            placed.append(True)
        check()
    assert placed == [True]


def test_an_exception_that_got_lost_is_raised_by_the_next_step() -> None:
    with pytest.raises(Interrupted), handled():
        with suppress(Interrupted):  # as in a destructor
            send()
        with held():
            pytest.fail("another step was taken")


def test_what_was_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    with handled():
        send(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_afterwards_signals_do_what_they_did() -> None:
    before = [signal.getsignal(number) for number in ENDING]
    with handled():
        assert [signal.getsignal(number) for number in ENDING] != before
    assert [signal.getsignal(number) for number in ENDING] == before


def test_an_exit_that_python_dropped_is_asked_for_again_once_the_starter_is_gone() -> None:
    assert interruption._AGAIN > cli._UNWINDING  # in which the command line takes no second one
    code = """
        import signal, threading, time, weakref
        from types import SimpleNamespace
        from finetune import cli, interruption

        cli._UNWINDING, interruption._AGAIN = 0.2, 0.5
        signal.signal(signal.SIGTERM, cli._unwind)
        within = threading.Event()

        class Thing:
            pass

        def drop(_):
            within.set()
            time.sleep(20)

        thing = Thing()
        gone = weakref.ref(thing, drop)
        interruption.start_unsignalled(interruption._watch, SimpleNamespace(gone=within.is_set))
        del thing
        print("dropped", flush=True)
        time.sleep(20)
    """
    environment = os.environ | {"PYTHONPATH": str(Path(interruption.__file__).parents[1])}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (143, "dropped\n")
    assert "Exception ignored in" in done.stderr
