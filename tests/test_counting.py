"""What a long step tells of its progress where there is no terminal."""

import pytest

from finetune import counting
from finetune.counting import counted, duration, size


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(counting.time, "monotonic", lambda: self.now)


def test_a_line_every_ten_seconds_and_one_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with counted("prepare toy", 100, "images") as advance:
        for done, seconds in ((10, 5.0), (20, 10.0), (30, 15.0), (100, 19.0)):
            clock.now = 1000.0 + seconds
            advance(done)
    assert capsys.readouterr().out.splitlines() == [
        "prepare toy: 20 of 100 images, 2.0 images/s, 40 s left",
        "prepare toy: 100 images in 19 s, 5.3 images/s",
    ]


def test_a_total_that_becomes_known_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with counted("prepare toy", None, "images") as advance:
        for done, total, seconds in ((10, None, 10.0), (20, 220, 20.0), (30, 130, 30.0)):
            clock.now = 1000.0 + seconds
            advance(done, total)
    assert capsys.readouterr().out.splitlines()[:3] == [
        "prepare toy: 10 images, 1.0 images/s",
        "prepare toy: 20 of 220 images, 1.0 images/s, 3 min 20 s left",
        "prepare toy: 30 of 130 images, 1.0 images/s, 1 min 40 s left",
    ]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(3.21, "3.2 s"), (42.4, "42 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


@pytest.mark.parametrize(("count", "expected"), [(3.14e9, "3.1 GB"), (42e6, "42 MB"), (7000, "7 kB")])
def test_sizes(count: float, expected: str) -> None:
    assert size(count) == expected
