"""BatchNorm layers that train by this project's kernels for a CPU (`training.cpu_kernels: native`).

By the statistics of a batch, with the ReLU6 behind it, forward and backward. By PyTorch's kernels that is more than two
fifths of a float32 step; these take half of the time (docs/performance.md).

What these are not made for goes PyTorch's way: evaluation, BatchNorm on running statistics, and tensors that are not
channels_last or whose channels are no multiple of eight.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchvision.models import MobileNetV2
from torchvision.ops.misc import Conv2dNormActivation

from finetune import cpu_kernels


def use_native_layers(model: MobileNetV2) -> None:
    """Give the layers of `model` these passes, in place; state-dict names stay.

    What other modules have made of a layer stays where these do not apply, so this comes after those.

    Raises:
        InputError: this machine cannot compile the kernels.
    """
    cpu_kernels.load()
    for module in list(model.modules()):
        if type(module) is Conv2dNormActivation and _is_fusable(*module):
            module.__class__ = _ConvNormReLU6
        elif isinstance(module, nn.BatchNorm2d) and not isinstance(module, _BatchNorm2d):
            layer: Any = type(module)
            module.__class__ = _over(layer)


@functools.cache
def _over(layer: Any) -> Any:
    """A class of BatchNorm with these passes over its own."""
    return type(_BatchNorm2d.__name__, (_BatchNorm2d, layer), {})


def _is_fusable(*layers: nn.Module) -> bool:
    return len(layers) == 3 and isinstance(layers[1], nn.BatchNorm2d) and isinstance(layers[2], nn.ReLU6)


class _BatchNorm2d(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return _normalised(self, input, relu6=False) if _apply_to(self, input) else super().forward(input)


class _ConvNormReLU6(Conv2dNormActivation):
    def forward(self, input: Tensor) -> Tensor:
        conv, norm, activation = self
        out = conv(input)
        if isinstance(norm, nn.BatchNorm2d) and not _hooked(norm, activation) and _apply_to(norm, out):
            return _normalised(norm, out, relu6=True)
        result: Tensor = activation(norm(out))
        return result


def _hooked(*layers: nn.Module) -> bool:
    """Whether somebody waits for the calls of one of these."""
    kinds = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
    return any(getattr(layer, kind) for layer in layers for kind in kinds)


def _apply_to(norm: nn.BatchNorm2d, x: Tensor) -> bool:
    return (
        norm.training
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and norm.weight.dtype == torch.float32
        and cpu_kernels.fit(x)
        and x.numel() > x.shape[1]  # PyTorch refuses a single value per channel
    )


def _normalised(norm: nn.BatchNorm2d, x: Tensor, relu6: bool) -> Tensor:
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    statistics = norm.running_mean, norm.running_var
    return _Normalisation.apply(x, norm.weight, norm.bias, *statistics, norm.momentum, norm.eps, relu6)


class _Normalisation(torch.autograd.Function):
    """Keeps its input.

    With ReLU6 the gradient is cut where it lies: what MobileNetV2 makes of a ReLU6's output is convolved, pooled or
    looked at by a penalty, and never added to by itself, which would hand one gradient to two.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
        out, kept = cpu_kernels.batchnorm(x, weight, bias, *rest)
        ctx.save_for_backward(x, weight, kept)
        ctx.relu6 = rest[-1]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, kept = ctx.saved_tensors
        alone = ctx.relu6
        if gradient.stride() != x.stride():
            gradient, alone = torch.empty_like(x).copy_(gradient), True
        found = cpu_kernels.batchnorm_backward(x, gradient, weight, kept, ctx.relu6, in_place=alone)
        return *(one if wanted else None for one, wanted in zip(found, ctx.needs_input_grad, strict=False)), *[None] * 5
