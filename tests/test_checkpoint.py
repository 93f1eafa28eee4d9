"""Checkpoints: whole or not at all, and of this very run or none."""

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import checkpoint
from finetune.checkpoint import FILE

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
def test_damaged_bytes_give_none_or_what_was_saved(tmp_path: Path, position: int) -> None:
    checkpoint.save(tmp_path, "f", {"epoch": 1})
    data = bytearray((tmp_path / FILE).read_bytes())
    start = len(data) * position // 100
    data[start : start + 8] = bytes(255 - byte for byte in data[start : start + 8])
    (tmp_path / FILE).write_bytes(data)
    assert checkpoint.load(tmp_path, "f") in (None, {"fingerprint": "f", "epoch": 1})


def test_a_save_that_fails_midway_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, "f", {"epoch": 1})

    def full_disk(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, "f", {"epoch": 2})
    assert checkpoint.load(tmp_path, "f") == {"fingerprint": "f", "epoch": 1}
