"""L2-SP: weights are pulled towards where they started, the pretrained ones, instead of towards zero.

Li, Grandvalet and Davoine 2018, arXiv 1802.01483. In the place of weight decay, the loss gains

    alpha / 2 * ||w - w_start||^2 + beta / 2 * ||w_head||^2

where w is all convolution weights below the head, w_start what they are when the run starts (a run that goes on from a
checkpoint keeps to the same), and w_head the head's weight. BatchNorm's weights and biases and the head's bias are
trained without a pull, as in the authors' code (holyseven/TransferLearningClassification, weight_decay_mode 1; its mode
101 pulls them, too, and so do the codes of DELTA's authors and of TLlib).

The defaults are those of the authors' script for Stanford Dogs; their program's own are 0.01 for both, and alpha is to
be chosen on validation. They train by SGD with momentum. Adam and AdamW take the pull for a part of the gradient, which
they divide by its own size: it is not decoupled as AdamW's decay is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torchvision.models import MobileNetV2

from finetune.errors import InputError
from finetune.model import BLOCKS
from finetune.strategies.plan import Group, Penalty, Phase, Plan, feature_blocks, tensors_of

PAPER = "Li et al. 2018, arXiv 1802.01483"


def plan(model: MobileNetV2, *, alpha: float = 0.1, beta: float = 0.01) -> Plan:
    """Every parameter at lr; the run's weight decay applies to none.

    Args:
        alpha: how hard the convolution weights are pulled to their start.
        beta: how hard the head's weight is pulled to zero.

    Raises:
        InputError: one of them is below 0.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not value >= 0:
            raise InputError(f"l2_sp: {name}: found {value}, expected 0 or a number above")
    group = Group("all", tensors_of(model, BLOCKS), decay=False)
    return Plan("pretrained", (Phase((group,), penalty=partial(_pull, alpha=alpha, beta=beta)),))


@contextmanager
def _pull(model: MobileNetV2, alpha: float, beta: float) -> Iterator[Penalty]:
    parameters = {name: model.get_parameter(name) for name in tensors_of(model, feature_blocks())}
    kernels = [parameter for parameter in parameters.values() if parameter.ndim == 4]
    head: Tensor = model.classifier[-1].weight
    start = _joined(kernels).detach()

    def penalty(images: Tensor) -> Tensor:
        return alpha / 2 * (_joined(kernels) - start).square().sum() + beta / 2 * head.square().sum()

    yield penalty


def _joined(tensors: list[Tensor]) -> Tensor:
    """All values in a row, copied."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
