"""Batch spectral shrinkage (BSS): the smallest singular values of each batch's features are pushed towards zero.

Chen et al. 2019, NeurIPS, "Catastrophic Forgetting Meets Negative Transfer: Batch Spectral Shrinkage for Safe Transfer
Learning". To the loss of a batch it adds

    eta * (the sum of the k smallest sigma_i^2)

where sigma_i are the singular values of the features F, images x 1280, that the head gets, before its dropout. What
lies along small singular values is what transfers least, they found. It comes on top of weight decay, as in the
authors' code (thuml/Batch-Spectral-Shrinkage), whose eta and k are the defaults here. They train the backbone at a
tenth of the head's rate; here all is at lr.

A batch of up to 1280 images has as many singular values; of a batch of fewer than k images all are taken, each once.
They grow with the batch, so eta goes with its size. With gradient accumulation F is of each batch by itself.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import MobileNetV2

from finetune.errors import InputError
from finetune.model import BLOCKS
from finetune.strategies.plan import Group, Penalty, Phase, Plan, tensors_of

PAPER = "Chen et al. 2019, NeurIPS"


def plan(model: MobileNetV2, *, eta: float = 1e-3, k: int = 1) -> Plan:
    """Every parameter at lr, with weight decay.

    Args:
        eta: what the squared singular values count in the loss.
        k: how many singular values are pushed down.

    Raises:
        InputError: eta is below 0, or k below 1.
    """
    if not eta >= 0:
        raise InputError(f"bss: eta: found {eta}, expected 0 or a number above")
    if k < 1:
        raise InputError(f"bss: k: found {k}, expected 1 or more")
    group = Group("all", tensors_of(model, BLOCKS))
    return Plan("pretrained", (Phase((group,), penalty=partial(_shrinkage, eta=eta, k=k)),))


@contextmanager
def _shrinkage(model: MobileNetV2, eta: float, k: int) -> Iterator[Penalty]:
    seen: list[Tensor] = []

    def keep(head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if head.training:
            seen[:] = inputs

    def penalty(images: Tensor) -> Tensor:
        features = seen.pop().float()
        try:
            values = torch.linalg.svdvals(features)  # falling
        except torch.linalg.LinAlgError:  # features are not finite: the loss shall say so
            return features.sum() * math.nan
        return eta * values[-k:].square().sum()

    with model.classifier.register_forward_pre_hook(keep):
        yield penalty
