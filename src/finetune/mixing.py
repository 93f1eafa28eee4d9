"""Batches whose images are mixed with one another, and the loss of a batch with mixed or smoothed labels."""

from collections.abc import Sequence
from functools import reduce
from operator import add

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from finetune.recipe import TrainingParams
from finetune.resampling import send

Targets = Sequence[tuple[Tensor, float]]  # label vectors and their weights, which add up to 1


def mixed(
    images: Tensor, labels: Tensor, recipe: TrainingParams, seed: int, epoch: int, step: int
) -> tuple[Tensor, Targets]:
    """The batch with each image mixed with another of it, and whose labels it has now.

    mixup (Zhang et al. 2018, arXiv 1710.09412): a weighted mean of two images; cutmix (Yun et al. 2019, arXiv
    1905.04899): a box of one in the other, weighted by its area. The weight is of Beta(alpha, alpha), one a batch. What
    is drawn depends on (seed, epoch, step) alone. A batch of one image has nothing to be mixed with.

    Args:
        images: float, N x 3 x S x S.
        labels: int64, N.
        step: of the epoch, counted in batches from 0.
    """
    if (recipe.mixup == 0 and recipe.cutmix == 0) or len(labels) == 1:
        return images, ((labels, 1.0),)
    generator = np.random.default_rng((seed, epoch, 2, step))
    paste = generator.random() < (0.5 if recipe.mixup > 0 and recipe.cutmix > 0 else float(recipe.cutmix > 0))
    alpha = recipe.cutmix if paste else recipe.mixup
    weight = float(generator.beta(alpha, alpha))
    others = send(generator.permutation(len(labels)), labels.device)
    if paste:
        height, width = images.shape[-2:]
        top, left, bottom, right = box(height, width, 1 - weight, generator.random(), generator.random())
        images = images.clone()
        images[:, :, top:bottom, left:right] = images[others, :, top:bottom, left:right]
        weight = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        images = torch.lerp(images[others], images, weight)
    return images, ((labels, weight), (labels[others], 1 - weight))


def box(height: int, width: int, area: float, down: float, across: float) -> tuple[int, int, int, int]:
    """A box of the image's shape with a share `area` of it, cut off at the image's sides: top, left, bottom, right.

    Args:
        down, across: where its centre is, in [0, 1) of the image.
    """
    high, wide = (round(side * area**0.5) for side in (height, width))
    top, left = int(down * height) - high // 2, int(across * width) - wide // 2
    return max(top, 0), max(left, 0), min(top + high, height), min(left + wide, width)


def loss_of(logits: Tensor, targets: Targets, smoothing: float) -> Tensor:
    """Cross-entropy in nats, mean over the batch, of targets with a share `smoothing` spread evenly over all classes
    (Szegedy et al. 2016, arXiv 1512.00567)."""
    return reduce(add, (w * cross_entropy(logits, labels, label_smoothing=smoothing) for labels, w in targets))


def correct(logits: Tensor, targets: Targets) -> Tensor:
    """How many of the batch's images are told right; of a mixed one, what the told label weighs."""
    told = logits.detach().argmax(1)
    return reduce(add, (weight * (told == labels).sum() for labels, weight in targets))
