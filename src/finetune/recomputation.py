"""Activation checkpointing: a block's inner activations are computed again in the backward pass instead of being kept.

Chen et al. 2016, arXiv 1604.06174; torch.utils.checkpoint does the work.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import MobileNetV2
from torchvision.models.mobilenetv2 import InvertedResidual

from finetune.model import is_batchnorm


def checkpoint_blocks(model: MobileNetV2) -> None:
    """Have the inverted residuals of `model` keep their inputs alone, wherever they run with gradients; names stay."""
    for module in model.modules():
        if type(module) is InvertedResidual:
            module.__class__ = Recomputed


class Recomputed(InvertedResidual):
    """An inverted residual that gives the same bits, gradients and running statistics as one that keeps everything."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or not (x.requires_grad or any(p.requires_grad for p in self.parameters())):
            return super().forward(x)
        # There is no dropout inside, so no random numbers to be kept.
        return checkpoint(
            super().forward, x, use_reentrant=False, preserve_rng_state=False, context_fn=partial(_contexts, self)
        )


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), _statistics_are_in(block)


@contextmanager
def _statistics_are_in(block: nn.Module) -> Iterator[None]:
    """Within, BatchNorm does not take a batch into its running statistics again."""
    layers: list[Any] = [module for module in block.modules() if is_batchnorm(module)]
    before = [(layer.momentum, layer.num_batches_tracked.clone()) for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, (momentum, count) in zip(layers, before, strict=True):
            layer.momentum = momentum
            layer.num_batches_tracked.copy_(count)
