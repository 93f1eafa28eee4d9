"""An unfinished training of the same run under other settings is named, with what differs."""

from pathlib import Path
from typing import Any

import pytest

from finetune import checkpoint, runs
from finetune.abandoned import lines
from finetune.work_lock import locked

RECORD: dict[str, Any] = {
    "dataset": "toy",
    "strategy": "same_lr",
    "seed": 0,
    "plan": "same_lr",
    "options": {},
    "training": {"lr": 0.001, "schedule": {"name": "cosine"}, "epochs": 5},
    "prepare": {"short_side": 32},
    "edition": "any",
    "store_digest": "s",
    "backbone": {"digest": "b"},
    "fraction": 1.0,
}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The work area of the training that begins."""
    begin(tmp_path / "own-0")
    return tmp_path / "own-0"


def begin(area: Path, *, saved: bool = True, **changes: Any) -> Path:
    runs.write_json(area / "unfinished" / runs.RUN, RECORD | changes)
    if saved:
        (area / checkpoint.FILE).touch()
    return area


def test_nothing_is_said_where_none_was_left(work: Path) -> None:
    assert lines(work) == []


def test_a_training_that_has_saved_nothing_is_none_to_go_on_with(work: Path) -> None:
    begin(work.parent / "other-0", saved=False, training={"lr": 0.01})
    assert lines(work) == []


def test_a_training_that_is_under_way_is_none_that_was_left(work: Path) -> None:
    other = begin(work.parent / "other-0", training={"lr": 0.01})
    with locked(other):
        assert lines(work) == []
    assert len(lines(work)) == 1


def test_what_has_changed_is_said(work: Path) -> None:
    training = {"lr": 0.01, "schedule": {"name": "constant"}, "epochs": 5}
    other = begin(work.parent / "other-0", training=training)
    changed = "training.lr 0.01 -> 0.001, training.schedule.name constant -> cosine"
    assert lines(work) == [
        f"toy/same_lr/0: starts afresh; an unfinished training with other settings ({changed}) stays in {other}: "
        "to go on with it set them back, else delete it"
    ]


def test_the_same_settings_under_another_version_are_said_to_be_that(work: Path) -> None:
    begin(work.parent / "other-0")
    (line,) = lines(work)
    assert "(the code)" in line


def test_other_runs_and_broken_records_are_passed_over(work: Path) -> None:
    begin(work.parent / "other-1", seed=1, training={"lr": 1})
    begin(work.parent / "third-0", dataset="birds")
    begin(work.parent / "broken-0")
    (work.parent / "broken-0" / "unfinished" / runs.RUN).write_text("{")
    assert lines(work) == []
