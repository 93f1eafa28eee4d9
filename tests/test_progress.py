"""What is shown of a training where there is no terminal."""

from collections.abc import Callable, Iterator

import pytest

from finetune import progress as module
from finetune.errors import InputError
from finetune.interruption import Interrupted
from finetune.training import Listener, Row


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def listener(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    """Of a run of 3 epochs of 100 images in 10 steps."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    with module.progress("toy/slow/0", 3, 100) as shown:
        yield shown


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    def lines() -> list[str]:
        return capsys.readouterr().out.splitlines()

    return lines


def row(epoch: int) -> Row:
    return {"epoch": epoch, "train/loss": 1.5, "train/acc": 0.25, "val/loss": None, "val/acc": None}


def test_an_epoch_is_a_line_with_rate_and_time_left(
    listener: Listener, clock: Clock, said: Callable[[], list[str]]
) -> None:
    listener.step(1, 1, 10)
    clock.now = 50.0
    listener.epoch(row(1))
    assert said() == [
        "toy/slow/0: epoch 1/3, train loss 1.500, train acc 0.250, 2 images/s, 1 min 40 s left",
    ]


def test_half_an_epoch_of_another_attempt_is_not_counted_into_the_rate(
    listener: Listener, clock: Clock, said: Callable[[], list[str]]
) -> None:
    listener.resumed([row(1)], 5)
    listener.step(2, 6, 10)
    clock.now = 50.0
    listener.epoch(row(2))
    first, second = said()
    assert first == "toy/slow/0: goes on after epoch 1 and 5 steps of the next"
    assert second.endswith("1 images/s, 1 min 40 s left")


def test_an_epoch_of_which_only_the_validation_was_left_has_no_rate_and_counts_for_none(
    listener: Listener, clock: Clock, said: Callable[[], list[str]]
) -> None:
    listener.resumed([], 10)
    listener.epoch(row(1))
    listener.step(2, 1, 10)
    clock.now = 50.0
    listener.epoch(row(2))
    assert said()[1:] == [
        "toy/slow/0: epoch 1/3, train loss 1.500, train acc 0.250",
        "toy/slow/0: epoch 2/3, train loss 1.500, train acc 0.250, 2 images/s, 50 s left",
    ]


def test_on_a_terminal_the_bar_is_closed_before_an_error_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)

    def diverges() -> None:
        with module.progress("toy/slow/0", 3, 100) as listener:
            listener.step(1, 1, 10)
            raise InputError("the loss is not finite")

    with pytest.raises(InputError):
        diverges()
    shown = capsys.readouterr().err
    assert "1/30" in shown and shown.endswith("\n")


def test_an_interruption_is_one_line_with_what_is_saved_and_how_to_go_on(
    listener: Listener, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    listener.interrupted(Interrupted(15), 2, 1)
    listener.interrupted(Interrupted(2), 0, 0)
    monkeypatch.setenv("DVC_STAGE", "train@toy")
    listener.interrupted(Interrupted(15), 2, 0)
    assert said() == [
        "toy/slow/0: ended by SIGTERM; saved after epoch 2 and 1 step of the next, the same command goes on from there",
        "toy/slow/0: ended by SIGINT before there was anything to save; the same command begins anew",
        "toy/slow/0: ended by SIGTERM; saved after epoch 2, `dvc repro` goes on from there",
    ]


def test_nobody_listening_stops_no_training(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", gone)
    listener.epoch(row(1))
    listener.interrupted(Interrupted(15), 1, 0)
