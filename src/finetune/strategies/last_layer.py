"""The head alone on fixed pretrained features: trained by steps, or solved exactly as a logistic regression.

Donahue et al. 2013, arXiv 1310.1531: features of a network that was trained on ImageNet, under a linear classifier.

    logits = W f(x) + b, with W and b alone trained, f the frozen backbone

The backbone is frozen and its BatchNorm layers use their running statistics, so an image that is not augmented has the
same features in every epoch, and they are computed once.

`solver: lbfgs` gives the head the one minimum of the convex

    mean over the images of -log softmax(W x + b)[label]  +  weight_decay / 2 * |W|^2

by L-BFGS (Liu and Nocedal 1989) in float64, without dropout. The bias is not decayed there; by steps it is, as
everything else. The features are centred, which changes no solution: with mean m, W x + b is W (x - m) + (b + W m), and
b is free. They are not scaled: |W|^2 would then weigh the features otherwise, which is another problem.
"""

from functools import partial

import torch
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
    features: Tensor, labels: Tensor, weight_decay: float, *, classes: int, tolerance: float = 1e-6, most: int = 5000
) -> Solution:
    """The minimum of the problem at the head of this file, from zero.

    torch's L-BFGS, not SciPy's: that one sums by OpenBLAS, with as many threads as the machine has cores and not as the
    recipe has, so its bits would differ between machines.

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
    wide = mean.new_empty(min(_ROWS, images), width)
    weight, bias = mean.new_zeros(classes, width), mean.new_zeros(classes)  # of centred features

    def gradient() -> tuple[Tensor, Tensor, Tensor]:
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
        return value, by_weight - by_bias[:, None] * mean, by_bias

    def closure() -> float:
        value, weight.grad, bias.grad = gradient()
        return float(value)

    torch.optim.LBFGS(
        [weight, bias],
        max_iter=most,
        max_eval=2 * most,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    ).step(closure)
    _, by_weight, by_bias = gradient()
    left = float(torch.maximum(by_weight.abs().max(), by_bias.abs().max()))
    if not left <= tolerance:
        raise InputError(
            f"last_layer: solver: lbfgs: the gradient is {left:.1e} after {most:,} iterations at most, expected within "
            f"{tolerance:.0e}; raise training.weight_decay ({weight_decay:g}), or use solver: steps"
        )
    return weight, bias - weight @ mean
