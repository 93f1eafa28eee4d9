"""Each second belongs to one phase, over all attempts."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from finetune import clock
from finetune.clock import PHASES, Clock


class Time:
    """Stands for the module `time`; goes on only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: time.now))
    return time


def started(seconds: dict[str, float] | None = None) -> Clock:
    return Clock().go_on({} if seconds is None else seconds)


def test_the_start_lasts_until_the_training_goes_on(time: Time) -> None:
    running = Clock(began=97.0)
    time.passes(2.0)
    running.go_on({})
    time.passes(10.0)
    assert running.seconds == dict.fromkeys(PHASES, 0.0) | {"start": 5.0}


def test_a_phase_within_another_interrupts_it(time: Time) -> None:
    running = started()
    with running.phase("compute"):
        time.passes(1.0)
        with running.phase("saving"):
            time.passes(4.0)
        time.passes(2.0)
    time.passes(8.0)
    assert (running.seconds["compute"], running.seconds["saving"]) == (3.0, 4.0)
    assert sum(running.seconds.values()) == 7.0


def test_waiting_for_items_is_told_from_working_with_them(time: Time) -> None:
    def slow() -> Iterator[str]:
        for item in "abc":
            time.passes(0.5)
            yield item
        time.passes(0.25)

    running, seen = started(), []
    with running.phase("compute"):
        for item in running.waits("data", slow()):
            seen.append(item)
            time.passes(2.0)
    assert seen == ["a", "b", "c"]
    assert (running.seconds["data"], running.seconds["compute"]) == (1.75, 6.0)


def test_an_error_ends_its_phase(time: Time) -> None:
    running = started()
    with pytest.raises(KeyError), running.phase("evaluation"):
        time.passes(1.0)
        raise KeyError
    time.passes(5.0)
    with running.phase("saving"):
        assert running.seconds["evaluation"] == 1.0


def test_the_seconds_of_earlier_attempts_are_added_in_the_mapping_that_is_saved(time: Time) -> None:
    saved = dict.fromkeys(PHASES, 1.0)
    running = Clock(began=98.0).go_on(saved)
    with running.phase("compute"):
        time.passes(3.0)
    assert saved == dict.fromkeys(PHASES, 1.0) | {"start": 3.0, "compute": 4.0}


def test_what_an_older_checkpoint_lacks_is_counted_from_none(time: Time) -> None:
    assert started({}).seconds == dict.fromkeys(PHASES, 0.0)
