"""Statistics over seeds and over test images: mean and spread, paired differences, McNemar's test."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def spread(values: Sequence[float]) -> dict[str, Any]:
    """n, mean, and with n >= 2 sample standard deviation, standard error and half width of the 95 % t-interval."""
    n = len(values)
    mean = statistics.fmean(values)
    if n < 2:
        return {"n": n, "mean": mean, "sd": None, "se": None, "ci95": None}
    from scipy.special import stdtrit

    sd = statistics.stdev(values)
    se = sd / math.sqrt(n)
    return {"n": n, "mean": mean, "sd": sd, "se": se, "ci95": float(stdtrit(n - 1, 0.975)) * se}


def accuracy(values: Sequence[float], images: int) -> dict[str, Any]:
    """`spread` over seeds, the values themselves, and the binomial standard error of one of them.

    The spread over seeds tells how much training varies; the binomial error how much a figure from so many images
    would vary with the images drawn.
    """
    seeds = spread(values)
    p = seeds["mean"]
    return {"values": list(values), **seeds, "images": images, "binomial_se": math.sqrt(p * (1 - p) / images)}


def difference(ours: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """`spread` of ours - other, paired by seed; both are `accuracy` mappings of the same seeds, or None."""
    if ours is None or other is None:
        return None
    return spread([a - b for a, b in zip(ours["values"], other["values"], strict=True)])


def per_image(ours: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    """Exact McNemar test: of the images that only one of the two gets right, how many are ours?

    `ours` and `other` are bool, seeds x images. An image counts once however many seeds there are, for whoever gets it
    right in more of them, since predictions of different seeds on one image are not independent; with one seed this is
    McNemar's test (Psychometrika 12, 1947) with binomial probabilities. The p-value, two-sided, speaks of other test
    images for these very models, not of other seeds.
    """
    from scipy.special import bdtr

    net = ours.sum(axis=0, dtype=int) - other.sum(axis=0, dtype=int)
    won, lost = int((net > 0).sum()), int((net < 0).sum())
    p = 2 * float(bdtr(min(won, lost), won + lost, 0.5)) if won + lost else 1.0
    return {"images": net.size, "won": won, "lost": lost, "mcnemar_p": min(1.0, p)}
