"""Progress in [0, 1] -> learning-rate multiplier; pure functions."""

import math

from finetune.params import ScheduleParams


def multiplier(schedule: ScheduleParams, epoch: int, step: int, steps: int, epochs: int) -> float:
    """What the learning rate is multiplied by at a step.

    Args:
        epoch: from 0.
        step: within the epoch, from 0.
        steps: per epoch.
        epochs: of the whole run.
    """
    match schedule.name:
        case "exponential":
            return exponential(epoch, schedule.gamma)
        case "cosine":
            return cosine((epoch * steps + step) / (epochs * steps))
        case "constant":
            return 1.0


def exponential(epoch: int, gamma: float) -> float:
    """gamma to the power of the finished epochs, as torch's ExponentialLR stepped once an epoch."""
    return gamma**epoch


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0 (Loshchilov and Hutter 2017, arXiv 1608.03983, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * progress))
