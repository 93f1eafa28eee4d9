"""Surgical fine-tuning: a chosen subset of blocks, or every block at a rate by its relative gradient norm (auto-RGN).

Lee et al. 2023, arXiv 2210.11466. With `auto`, when an epoch begins and for each block b below the head

    ratio_b = mean over some batches of ||gradient of b|| / ||weights of b||,   rate of b = lr * ratio_b / max over b

Theirs keep the head of the classes before; here classes are new and the head is random, which gives it the largest
ratio by far. So the head is at lr, and the ratios are set against the largest of the other blocks.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision.models import MobileNetV2

from finetune.errors import InputError
from finetune.strategies.plan import Group, Phase, Plan, feature_blocks, tensors_of

PAPER = "Lee et al. 2023, arXiv 2210.11466"
_LEAST = 1e-9  # of the largest ratio: a block whose gradient vanishes stands still, but has a rate


def plan(model: MobileNetV2, *, blocks: list = [15, 16, 17, 18], auto: bool = False, batches: int = 4) -> Plan:  # noqa: B006
    """The head and `blocks` at lr, the rest frozen; or, with `auto`, everything, at rates that are measured.

    Args:
        blocks: numbers of `features`, 0 (next to the image) to 18; not read with `auto`.
        batches: of training images that the ratios are measured on, with `auto`.

    Raises:
        InputError: blocks are not some of 0 … 18, each once, or batches is below 1.
    """
    known = feature_blocks()
    head = Group("head", tensors_of(model, ["classifier"]))
    if batches < 1:
        raise InputError(f"surgical: batches: found {batches}, expected 1 or more")
    if auto:
        groups = (head, *(Group(block, tensors_of(model, [block])) for block in known))
        return Plan(
            "pretrained", (Phase(groups, scales=partial(relative_gradient_norms, groups=groups, most=batches)),)
        )
    numbers = [number for number in blocks if isinstance(number, int) and 0 <= number < len(known)]
    if not blocks or len(set(numbers)) != len(blocks):
        raise InputError(f"surgical: blocks: found {blocks}, expected some of 0 to {len(known) - 1}, each once")
    if len(numbers) == len(known):
        raise InputError("surgical: blocks: found all of them; take same_lr")
    chosen = [known[number] for number in sorted(numbers)]
    rest = [block for block in known if block not in chosen]
    frozen = Group("frozen", tensors_of(model, rest), frozen=True, batchnorm="eval")
    return Plan("pretrained", (Phase((head, Group("chosen", tensors_of(model, chosen)), frozen)),))


def relative_gradient_norms(
    model: MobileNetV2, batches: Iterator[tuple[Tensor, Tensor]], *, groups: tuple[Group, ...], most: int
) -> Mapping[str, float]:
    """Group -> its ratio over the largest, in (0, 1]; the first group, the head, has none.

    The gradients are of the cross-entropy in float32, with the network as it is given, in evaluation mode.
    """
    members = {group.name: [model.get_parameter(name) for name in group.tensors] for group in groups[1:]}
    every = [parameter for parameters in members.values() for parameter in parameters]
    ratios = dict.fromkeys(members, 0.0)
    for images, labels in islice(batches, most):
        gradients = iter(torch.autograd.grad(cross_entropy(model.forward(images), labels), every))
        for name, parameters in members.items():
            own = torch.stack([next(gradients).float().norm() for _ in parameters]).norm()
            ratios[name] += float(own / torch.stack([p.detach().norm() for p in parameters]).norm())
    largest = max(ratios.values())
    return {name: max(ratio / largest, _LEAST) if largest > 0 else 1.0 for name, ratio in ratios.items()}
