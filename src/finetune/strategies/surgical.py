"""Surgical fine-tuning: a chosen subset of blocks, or every block at a rate by its relative gradient norm (auto-RGN).

Lee et al. 2023, arXiv 2210.11466. With `blocks`

    rate of block b = lr if b is chosen, else 0

and with `auto`, when an epoch begins and for each block b below the head

    ratio_b = mean over some batches of ||gradient of b|| / ||weights of b||,   rate of b = lr * ratio_b / max over b

The gradients are computed at the precision of the training, of the cross-entropy of augmented images: without mixup,
cutmix and label smoothing, whatever the recipe says of them.

Theirs keep the head of the classes before; here classes are new and the head is random, which gives it the largest
ratio by far. So the head is at lr, and the ratios are set against the largest of the other blocks.

Their code (anniesch/surgical-finetuning) has a ratio and a rate per tensor, measures five batches in training mode,
begins Adam afresh with every epoch, and neither counts nor trains what has "bn" in its name. Here they are per block,
with BatchNorm's weights and biases, measured in evaluation mode, and Adam goes on.
"""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision.models import MobileNetV2

from finetune.errors import InputError
from finetune.strategies.plan import Autocast, Group, Phase, Plan, feature_blocks, tensors_of

PAPER = "Lee et al. 2023, arXiv 2210.11466"
_LEAST = 1e-9  # of the largest ratio: a block whose gradient vanishes stands still, but has a rate
_BLOCKS: list[Any] = [15, 16, 17, 18]
_BATCHES = 4


def plan(model: MobileNetV2, *, blocks: list = _BLOCKS, auto: bool = False, batches: int = _BATCHES) -> Plan:
    """The head and `blocks` at lr, the rest frozen; or, with `auto`, everything, at rates that are measured.

    Args:
        blocks: numbers of `features`, 0 (next to the image) to 18; "classifier" may be listed, and is trained anyway.
        auto: instead of `blocks`.
        batches: of training images that the ratios are measured on, with `auto`.

    Raises:
        InputError: blocks are not some of 0 … 18 and "classifier", each once, or stand beside auto; batches is below 1,
            or set without auto.
    """
    if batches < 1:
        raise InputError(f"surgical: batches: found {batches}, expected 1 or more")
    if not auto and batches != _BATCHES:
        raise InputError(f"surgical: batches: found {batches} without auto, which alone measures; set auto: true")
    if not auto:
        return _chosen(model, blocks)
    if blocks is not _BLOCKS:
        raise InputError(
            f"surgical: blocks: found {blocks} beside auto: true, which trains every block; leave one of them out"
        )
    groups = tuple(Group(block, tensors_of(model, [block]), measured=True) for block in feature_blocks())
    scales = partial(relative_gradient_norms, groups=groups, most=batches)
    return Plan("pretrained", (Phase((_head(model), *groups), scales=scales),))


def _head(model: MobileNetV2) -> Group:
    return Group("head", tensors_of(model, ["classifier"]))


def _chosen(model: MobileNetV2, blocks: list[Any]) -> Plan:
    known = feature_blocks()
    numbers = {block for block in blocks if type(block) is int and 0 <= block < len(known)}  # a bool is no number
    listed = len(numbers) + ("classifier" in blocks)
    if not blocks or listed != len(blocks):
        raise InputError(
            f"surgical: blocks: found {blocks}, expected some of 0 to {len(known) - 1} and classifier, each once"
        )
    if not 0 < len(numbers) < len(known):
        instead = "same_lr" if numbers else "last_layer"
        raise InputError(f"surgical: blocks: found {blocks}, expected a part of the network; that is {instead}")
    chosen = [known[number] for number in sorted(numbers)]
    rest = [block for block in known if block not in chosen]
    frozen = Group("frozen", tensors_of(model, rest), frozen=True, batchnorm="eval")
    return Plan("pretrained", (Phase((_head(model), Group("chosen", tensors_of(model, chosen)), frozen)),))


def relative_gradient_norms(
    model: MobileNetV2,
    batches: Iterator[tuple[Tensor, Tensor]],
    autocast: Autocast = nullcontext,
    *,
    groups: tuple[Group, ...],
    most: int,
) -> Mapping[str, float]:
    """Group -> its ratio over the largest, in (0, 1].

    The gradients are of the cross-entropy, with the network as it is given, in evaluation mode. Parameters that want no
    gradient, as BatchNorm's under `bn: eval`, are not counted.

    Args:
        autocast: context of the forward passes, at the precision of the training's, so that they cost what those do.
    """
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    members = {group.name: [wanted[name] for name in group.tensors if name in wanted] for group in groups}
    every = [parameter for parameters in members.values() for parameter in parameters]
    ratios = dict.fromkeys(members, 0.0)
    for images, labels in islice(batches, most):
        with autocast():
            loss = cross_entropy(model.forward(images), labels)
        gradients = iter(torch.autograd.grad(loss, every))
        for name, parameters in members.items():
            own = torch.stack([next(gradients).float().norm() for _ in parameters]).norm()
            ratios[name] += float(own / torch.stack([p.detach().norm() for p in parameters]).norm())
    largest = max(ratios.values())
    return {name: max(ratio / largest, _LEAST) if largest > 0 else 1.0 for name, ratio in ratios.items()}
