"""Progress -> learning-rate multiplier; pure functions."""

import math

from finetune.recipe import ScheduleParams


def multiplier(schedule: ScheduleParams, epoch: int, step: int, steps: int, epochs: int) -> float:
    """What the learning rate is multiplied by at a step.

    Args:
        epoch: from 0.
        step: within the epoch, from 0.
        steps: per epoch.
        epochs: of the whole run.
    """
    rising = warmup(epoch * steps + step, schedule.warmup_epochs * steps)
    match schedule.name:
        case "exponential":
            return rising * exponential(epoch, schedule.gamma)
        case "cosine":
            return rising * cosine((epoch * steps + step) / (epochs * steps))
        case "step":
            return rising * exponential(epoch // schedule.every, schedule.gamma)
        case "constant":
            return rising


def exponential(times: int, gamma: float) -> float:
    """gamma to the power of `times`: of the finished epochs, as torch's ExponentialLR stepped once an epoch, or of the
    finished stretches of epochs, as its StepLR."""
    return gamma**times


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0 (Loshchilov and Hutter 2017, arXiv 1608.03983, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def warmup(step: int, steps: float) -> float:
    """From 1 / steps to 1 in equal stages, then 1 (Goyal et al. 2017, arXiv 1706.02677, from zero).

    Args:
        step: of the whole run, from 0.
        steps: that the warm-up takes; 0: none.
    """
    return min(1.0, (step + 1) / steps) if steps > 0 else 1.0
