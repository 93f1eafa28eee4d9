"""Images whose pixels are the same: counted across the splits, and kept from standing on both sides of one."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_EXAMPLES = 10  # pairs that are named


def first_of_kind(hashes: np.ndarray) -> np.ndarray:
    """For each image the first one of the same content: int64, images; itself where it is the first.

    Args:
        hashes: uint8, images x bytes.
    """
    if not len(hashes):
        return np.empty(0, np.int64)
    whole = np.ascontiguousarray(hashes).view(np.dtype((np.void, hashes.shape[1]))).ravel()
    _, first, kind = np.unique(whole, return_index=True, return_inverse=True)
    return first[kind.ravel()].astype(np.int64)


def in_train_too(first: np.ndarray, validation: np.ndarray) -> np.ndarray:
    """Which validation images have a twin in train: bool, images.

    Args:
        first: of `first_of_kind`.
        validation: bool, images; the others are train.
    """
    kinds_of_train = np.zeros(len(first), bool)
    kinds_of_train[first[~validation]] = True
    return validation & kinds_of_train[first]


def summary(
    first: np.ndarray, splits: np.ndarray, labels: np.ndarray, member: Callable[[int], str]
) -> Mapping[str, Any]:
    """What there is of duplicates, as meta.json records it.

    Args:
        first: of `first_of_kind`, over all images.
        splits: text, images: train, val, test, or empty for what was left out.
        labels: int64, images.
        member: image -> its name.

    Returns:
        "within": per split its images beyond the first of their kind. "train/test" and so on: images of the second
        split whose like is in the first. "left_out": images of no split. "conflicting": images that have a twin of
        another class. "examples": up to ten pairs of names.
    """
    kinds = {split: np.unique(first[splits == split]) for split in ("train", "val", "test")}
    found: dict[str, Any] = {
        "within": {split: int((splits == split).sum()) - len(kind) for split, kind in kinds.items()}
    }
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        found[f"{one}/{other}"] = int(np.isin(first[splits == other], kinds[one]).sum())
    found["left_out"] = int((splits == "").sum())
    mixed = np.unique(first[labels != labels[first]])
    found["conflicting"] = int(np.isin(first, mixed).sum())
    pairs = np.flatnonzero(first != np.arange(len(first)))[:_EXAMPLES]
    found["examples"] = [[member(int(first[i])), member(int(i))] for i in pairs]
    return found
