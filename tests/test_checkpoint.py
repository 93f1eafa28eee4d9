"""Checkpoints: whole or not at all, and of this very run or none."""

from collections.abc import Iterable
from contextlib import nullcontext
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
import torch

from finetune import checkpoint, cpu_kernels
from finetune.checkpoint import FILE, Pace, Saver
from finetune.errors import InputError

CONTENT: dict[str, Any] = {
    "progress": {"epoch": 2, "rows": [{"epoch": 1, "val/acc": None, "train/loss": 0.1 + 0.2}], "kept_state": {}},
    "model": {"weight": torch.arange(6.0).reshape(2, 3)},
}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, "f", CONTENT)
    found = checkpoint.load(tmp_path, "f")
    assert found is not None
    assert found["progress"] == CONTENT["progress"]
    assert torch.equal(found["model"]["weight"], CONTENT["model"]["weight"])


def test_the_strides_of_a_tensor_survive(tmp_path: Path) -> None:
    weight = torch.arange(24.0).reshape(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    checkpoint.save(tmp_path, "f", {"weight": weight})
    found = checkpoint.load(tmp_path, "f")
    assert found is not None
    assert found["weight"].stride() == weight.stride()


def test_the_later_of_two_is_loaded_and_nothing_else_is_left(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, "f", {"epoch": 1})
    checkpoint.save(tmp_path, "f", {"epoch": 2})
    assert checkpoint.load(tmp_path, "f") == {"fingerprint": "f", "epoch": 2}
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path, "f") is None


def test_none_for_another_fingerprint(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, "f", CONTENT)
    assert checkpoint.load(tmp_path, "g") is None


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_none_for_a_truncated_file(tmp_path: Path, share: float) -> None:
    checkpoint.save(tmp_path, "f", CONTENT)
    data = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(data[: int(share * len(data))])
    assert checkpoint.load(tmp_path, "f") is None


@pytest.mark.parametrize("data", [b"\0" * 500, b"no checkpoint", b"\x80\x02}q\x00.", b"\x80\x04K\x01.", b"PK\x03\x04"])
def test_none_for_a_file_that_is_something_else(tmp_path: Path, data: bytes) -> None:
    (tmp_path / FILE).write_bytes(data)
    assert checkpoint.load(tmp_path, "f") is None


def test_none_for_a_tensor_where_a_checkpoint_should_be(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / FILE)
    assert checkpoint.load(tmp_path, "f") is None


@pytest.mark.parametrize("position", range(0, 100, 7))
def test_damaged_bytes_give_none(tmp_path: Path, position: int, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save(tmp_path, "f", CONTENT)
    data = bytearray((tmp_path / FILE).read_bytes())
    start = len(data) * position // 100
    data[start : start + 8] = bytes(255 - byte for byte in data[start : start + 8])
    (tmp_path / FILE).write_bytes(data)
    assert checkpoint.load(tmp_path, "f") is None
    assert "is damaged; the training starts afresh" in capsys.readouterr().out


def test_a_checkpoint_of_other_libraries_or_another_processor_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save(tmp_path, "f", {"epoch": 1})
    assert checkpoint.load(tmp_path, "f") is not None
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ABACUS")
    assert checkpoint.load(tmp_path, "f") == {"fingerprint": "f", "epoch": 1}
    said = capsys.readouterr().out
    assert f"was made by torch {torch.__version__} on " in said
    assert ", ABACUS" in said and "bits may differ" in said


def test_so_does_one_by_kernels_of_another_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cpu_kernels, "compiler_in_use", lambda: "c++ 12")
    checkpoint.save(tmp_path, "f", {"epoch": 1})
    assert checkpoint.load(tmp_path, "f") is not None
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(cpu_kernels, "compiler_in_use", lambda: "c++ 14")
    assert checkpoint.load(tmp_path, "f") is not None
    said = capsys.readouterr().out
    assert ", kernels by c++ 12, and goes on with " in said and ", kernels by c++ 14; bits may differ" in said


def test_a_checkpoint_that_cannot_be_read_is_no_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, "f", {"epoch": 1})

    def broken(path: Path) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(InputError, match=r"checkpoint\.pt: cannot be read \(Input/output error\)"):
        checkpoint.load(tmp_path, "f")


def test_a_save_that_fails_midway_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, "f", {"epoch": 1})

    def full_disk(file: BinaryIO, data: memoryview) -> None:
        file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write", full_disk)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, "f", {"epoch": 2})
    assert checkpoint.load(tmp_path, "f") == {"fingerprint": "f", "epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == [FILE]


# When it is due


def test_one_that_is_due_and_cannot_be_written_is_said_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    state = Trained()
    saver = Saver(tmp_path, "f", state, Pace(seconds=0, share=1), nullcontext)
    state.at = (1, 0)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", full_disk)
        saver.when_due()
        said = capsys.readouterr().out
        assert "checkpoint.pt: the checkpoint cannot be written (No space left on device); the training goes on" in said
        assert saver.at == (0, 0)
        saver.at_last()
        assert "cannot be written (No space left on device); the one before is kept" in capsys.readouterr().out
    saver.when_due()
    assert saver.at == (1, 0)
    assert checkpoint.load(tmp_path, "f") is not None


class Trained:
    """Stands for a run's state of so many bytes; what is saved is how often it was asked for."""

    def __init__(self, size: float = 0) -> None:
        self.at, self.saved = (0, 0), 0
        self.tensors = [torch.empty(round(size), dtype=torch.uint8, device="meta")] if size else []

    def content(self) -> dict[str, Any]:
        self.saved += 1
        return {"saved": self.saved} | ({"optimizer": {"state": self.tensors}} if self.tensors else {})


def saves(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pace: Pace,
    steps: int,
    step: float,
    costs: Iterable[float],
    estimate: float,
) -> list[tuple[int, float, float]]:
    """The saves of a training of so many steps of `step` seconds: after which step, when it began, what all cost by
    then with this one.

    Args:
        costs: seconds of each save.
        estimate: seconds that the state takes on a slow disk.
    """
    now, spent, seconds = 0.0, 0.0, iter(costs)
    found: list[tuple[int, float, float]] = []
    made: list[tuple[float, float]] = []

    def slow(*_: Any) -> None:
        nonlocal now, spent
        cost = next(seconds)
        spent += cost
        made.append((now, spent))
        now += cost

    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(checkpoint, "save", slow)
    saver = Saver(tmp_path, "f", Trained(estimate * checkpoint.DISK), pace, nullcontext)
    for number in range(1, steps + 1):
        now += step
        saver.when_due()
        found += [(number, *save) for save in made]
        made.clear()
    return found


def saved_by_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pace: Pace, steps: int, step: float, cost: float
) -> list[int]:
    """After which steps a state is saved that takes `cost` seconds to save, as its bytes say."""
    found = saves(tmp_path, monkeypatch, pace, steps, step, repeat(cost), cost)
    return [number for number, _, _ in found]


def test_checkpoints_are_ten_seconds_apart_where_they_cost_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert saved_by_step(tmp_path, monkeypatch, Pace(), 50, 1.0, 0.1) == [10, 20, 30, 40, 50]


def test_where_they_cost_more_they_take_two_hundredths_of_the_time_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One second each, the first one too: 49 of training before it, and between two.
    assert saved_by_step(tmp_path, monkeypatch, Pace(), 150, 1.0, 1.0) == [49, 98, 147]


@pytest.mark.parametrize("step", [0.05, 1.0, 7.0])
@pytest.mark.parametrize("cost", [0.02, 0.15, 0.4, 3.0])
def test_no_save_takes_them_all_over_their_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float, cost: float
) -> None:
    found = saves(tmp_path, monkeypatch, Pace(), round(400 / step), step, repeat(cost), cost)
    assert found
    assert all(spent <= 0.02 * (began + cost) + 1e-9 for _, began, spent in found)
    first = found[0][1]
    assert first - step < max(10, 49 * cost) + 1e-6  # it came as soon as it could


def test_a_save_that_takes_longer_than_thought_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The first takes 2 s where 1/8 s was thought.
    found = saves(tmp_path, monkeypatch, Pace(), 210, 1.0, [2.0, 0.125, 0.125], 0.125)
    # The second begins as 2 s that were spent and 2 s more are two hundredths of 200 s; it takes 1/8 s.
    assert found == [(10, 10.0, 2.0), (196, 198.0, 2.125), (206, 208.125, 2.25)]


def test_what_a_signal_has_saved_is_saved_whatever_it_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = Trained(1e12)
    written: list[dict[str, Any]] = []
    monkeypatch.setattr(checkpoint, "save", lambda work, fingerprint, content, device: written.append(content))
    saver = Saver(tmp_path, "f", state, Pace(seconds=0), nullcontext)
    state.at = (0, 1)
    saver.when_due()
    assert written == []
    saver.at_last()
    assert len(written) == 1


def test_the_size_of_a_state_is_that_of_all_its_tensors() -> None:
    content = {"a": torch.zeros(3), "b": {"c": [torch.zeros(5, dtype=torch.int64), 7, None], "d": (torch.zeros(()),)}}
    assert checkpoint.size(content) == 3 * 4 + 5 * 8 + 4


def test_at_last_only_what_is_new_is_saved(tmp_path: Path) -> None:
    state = Trained()
    saver = Saver(tmp_path, "f", state, Pace(), nullcontext)
    saver.at_last()
    assert (state.saved, saver.at) == (0, (0, 0))
    state.at = (0, 1)
    saver.at_last()
    saver.at_last()
    assert (state.saved, saver.at) == (1, (0, 1))
    assert checkpoint.load(tmp_path, "f") == {"fingerprint": "f", "saved": 1}
