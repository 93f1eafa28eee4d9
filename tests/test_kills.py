"""Where benchmarks.kills lets its kills fall. The moments themselves are met in test_resumption.py."""

import random
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))


@pytest.mark.parametrize("seed", range(5))
def test_paced_kills_get_on_and_meet_every_moment(seed: int) -> None:
    from benchmarks.kills import paced
    from benchmarks.moments import MOMENTS

    aims = list(paced(12, random.Random(seed)))
    parts = [(0.9 * number / 8, 0.9 * (number + 1) / 8) for number in range(8)]
    assert all(low <= aim.share <= high for aim, (low, high) in zip(aims, parts, strict=False))
    assert [aim.moment for aim in aims[:8]] == ["", "saving"] * 4
    assert ["saving", *(aim.moment for aim in aims[8:])] == list(MOMENTS)


@pytest.mark.parametrize(
    ("left", "moment"),
    [
        (["unfinished"], "while it trained"),
        (["checkpoint.pt", "unfinished"], "while it trained"),
        ([".checkpoint.pt", "checkpoint.pt", "unfinished"], "while it wrote a checkpoint"),
        (["checkpoint.pt", "unfinished", "unfinished/curves.csv"], "while it wrote the run's files"),
        (["checkpoint.pt", "finished"], "when the run was whole, before it was moved"),
        (["checkpoint.pt", "the run in its place"], "when the run was in its place, before the work area was cleared"),
    ],
)
def test_what_is_left_tells_the_moment(left: list[str], moment: str) -> None:
    from benchmarks.kills import met

    assert met(left, starting=False) == moment
    assert met(left, starting=True) == moment.replace("while it trained", "while it started")


@pytest.mark.parametrize(("images", "size", "accumulation", "steps"), [(27, 9, 1, 3), (28, 9, 1, 3), (29, 9, 2, 2)])
def test_steps_are_counted_as_the_training_takes_them(images: int, size: int, accumulation: int, steps: int) -> None:
    from benchmarks.kills import steps_of_an_epoch

    recipe = {"batch_size": size, "accumulation": accumulation}
    assert steps_of_an_epoch({"images": {"train": images}, "training": recipe}) == steps


def test_a_moment_that_there_is_not_is_refused() -> None:
    from benchmarks.moments import die_when

    with pytest.raises(ValueError, match="dying: no such moment; there are saving, writing, finished, moving, placed"):
        die_when("dying")
