"""Stores of a few plain images, as preparing leaves them."""

from pathlib import Path
from typing import Any

import numpy as np

from finetune.store import Store, open_store
from finetune.store_writer import Writer

TWINS: dict[str, Any] = {
    "within": {"train": 3, "val": 0, "test": 1},
    "train/val": 0,
    "train/test": 2,
    "val/test": 0,
    "left_out": 4,
    "conflicting": 1,
    "examples": [["a.png", "b.png"]],
}


def store_of(folder: Path, sizes: dict[str, list[tuple[int, int, int]]], classes: int = 2, **meta: Any) -> Store:
    """A store of (label, height, width) per official split; every third image of `train` is for validation."""
    place = folder / "prepared" / "toy"
    writer = Writer(place)
    for split, images in sizes.items():
        for label, height, width in images:
            writer.add(split, label, np.full((height, width, 3), label, np.uint8))
    validation = np.arange(len(sizes["train"])) % 3 == 2
    named = [f"class {label}" for label in range(classes)]
    content = {
        "dataset": "toy",
        "edition": "any",
        "classes": named,
        "prepare": {"short_side": 9, "split_seed": 0},
        **meta,
    }
    writer.finish(validation, content)
    return open_store(place)
