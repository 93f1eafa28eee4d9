"""The head alone on fixed pretrained features: trained by steps, or solved exactly as a logistic regression.

The backbone is frozen and its BatchNorm layers use their running statistics, so an image that is not augmented has the
same features in every epoch, and they are computed once.

`solver: lbfgs` gives the head the one minimum of the convex

    mean over the images of -log softmax(W x + b)[label]  +  weight_decay / 2 * |W|^2

by L-BFGS (Liu and Nocedal 1989) in float64, without dropout. The bias is not decayed there; by steps it is, as
everything else. The features are centred, which changes no solution: with mean m, W x + b is W (x - m) + (b + W m), and
b is free. They are not scaled: |W|^2 would then weigh the features otherwise, which is another problem.
"""

from functools import partial

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import log_softmax, one_hot
from torchvision.models import MobileNetV2

from finetune.errors import InputError
from finetune.strategies.plan import Group, Phase, Plan, Solution, feature_blocks, tensors_of

PAPER = "Donahue et al. 2013, arXiv 1310.1531"

_ROWS = 1024  # of features in float64 at a time


def plan(model: MobileNetV2, *, solver: str = "steps") -> Plan:
    """Train `classifier`, nothing else.

    Args:
        solver: `steps` of the recipe's optimizer, or `lbfgs`: the exact solution, in one epoch without augmentation.

    Raises:
        InputError: there is no such solver.
    """
    if solver not in ("steps", "lbfgs"):
        raise InputError(f"last_layer: solver: found {solver!r}, expected steps or lbfgs")
    groups = (
        Group("head", tensors_of(model, ["classifier"])),
        Group("backbone", tensors_of(model, feature_blocks()), frozen=True, batchnorm="eval"),
    )
    solve = partial(logistic_regression, classes=model.classifier[-1].out_features)
    return Plan("pretrained", (Phase(groups, solve=solve if solver == "lbfgs" else None),))


def logistic_regression(
    features: Tensor, labels: Tensor, weight_decay: float, *, classes: int, tolerance: float = 1e-6, most: int = 15_000
) -> Solution:
    """The minimum of the problem at the head of this file, from zero.

    Args:
        features: images x features.
        labels: int64, images; a class that has none gets a bias low enough to be never told.
        tolerance: of the gradient, its largest entry.
        most: iterations.

    Returns:
        Weight (classes x features) and bias (classes), float64, on the features' device.

    Raises:
        InputError: weight_decay is 0, or the gradient is not within `tolerance` after `most` iterations.
    """
    if not weight_decay > 0:
        raise InputError(
            f"last_layer: solver: lbfgs: found weight_decay {weight_decay:g}, expected above 0, as without it the "
            "weights of classes that can be told apart grow without end"
        )
    images, width = features.shape
    mean = features.mean(0, dtype=torch.float64)
    wide = torch.empty(min(_ROWS, images), width, dtype=torch.float64, device=features.device)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = _split(flat, classes, features.device)
        value = weight_decay / 2 * weight.square().sum()
        by_weight, by_bias = weight_decay * weight, torch.zeros_like(bias)
        offset = bias - weight @ mean
        for rows, wanted in zip(features.split(_ROWS), labels.split(_ROWS), strict=True):
            seen = wide[: len(rows)].copy_(rows)
            logs = log_softmax(seen @ weight.T + offset, 1)
            value -= logs.gather(1, wanted[:, None]).sum() / images
            by_logits = logs.exp() - one_hot(wanted, classes)
            by_weight += by_logits.T @ seen / images
            by_bias += by_logits.sum(0) / images
        by_weight -= by_bias[:, None] * mean
        return float(value), torch.cat([by_weight.flatten(), by_bias]).cpu().numpy()

    options = {"gtol": tolerance, "ftol": 0.0, "maxiter": most, "maxfun": 2 * most, "maxcor": 20}
    found = minimize(objective, np.zeros(classes * (width + 1)), jac=True, method="L-BFGS-B", options=options)
    if (left := float(np.abs(found.jac).max())) > tolerance:
        raise InputError(
            f"last_layer: solver: lbfgs: the gradient is {left:.1e} after {found.nit:,} iterations, expected at most "
            f"{tolerance:.0e}; raise training.weight_decay ({weight_decay:g}), or use solver: steps"
        )
    weight, bias = _split(found.x, classes, features.device)
    return weight, bias - weight @ mean


def _split(flat: np.ndarray, classes: int, device: torch.device) -> Solution:
    both = torch.from_numpy(flat).to(device)
    return both[:-classes].view(classes, -1), both[-classes:]
