"""Layers that train by this project's kernels for a CPU (`training.cpu_kernels: native`).

BatchNorm by the statistics of a batch, with the ReLU6 behind it; and of the inverted residuals that expand their
channels all that lies between the two pointwise convolutions, where all of it is trained (docs/performance.md).

What these are not made for goes PyTorch's way: evaluation, BatchNorm on running statistics, and tensors that are not
channels_last or whose channels are no multiple of eight.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchvision.models import MobileNetV2
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops.misc import Conv2dNormActivation

from finetune import cpu_kernels
from finetune.cpu_gradients import StridedConv2d
from finetune.lean_backward import LeanConv2d
from finetune.model import is_depthwise_3x3

_CONVOLUTIONS = nn.Conv2d, StridedConv2d, LeanConv2d  # what they compute is the same


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
        elif isinstance(module, InvertedResidual) and type(module.conv) is nn.Sequential and _expands(*module.conv):
            module.conv.__class__ = _ExpandedLayers  # plans with layers beside these have given them another class


@functools.cache
def _over(layer: Any) -> Any:
    """A class of BatchNorm with these passes over its own."""
    return type(_BatchNorm2d.__name__, (_BatchNorm2d, layer), {})


def _is_fusable(*layers: nn.Module) -> bool:
    return len(layers) == 3 and isinstance(layers[1], nn.BatchNorm2d) and isinstance(layers[2], nn.ReLU6)


def _expands(*layers: Any) -> bool:
    """Whether the first two are a pointwise and a depthwise convolution, with BatchNorm and ReLU6 each."""
    first = layers[:2]
    fusable = all(isinstance(layer, Conv2dNormActivation) and _is_fusable(*layer) for layer in first)
    return len(first) == 2 and fusable and isinstance(first[1][0], nn.Conv2d) and is_depthwise_3x3(first[1][0])


class _BatchNorm2d(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return _normalised(self, input, relu6=False) if _apply_to(self, input) else super().forward(input)


class _ConvNormReLU6(Conv2dNormActivation):
    def forward(self, input: Tensor) -> Tensor:
        return self.behind(self[0](input))

    def behind(self, convolved: Tensor) -> Tensor:
        """What comes after the convolution."""
        _, *layers = self
        if _is_fusable(*self) and not _hooked(*layers) and _apply_to(layers[0], convolved):
            return _normalised(layers[0], convolved, relu6=True)
        for layer in layers:
            convolved = layer(convolved)
        return convolved


class _ExpandedLayers(nn.Sequential):
    """Of an inverted residual."""

    def forward(self, input: Tensor) -> Tensor:
        if not _as_one(*self):
            return super().forward(input)
        expand, depthwise, *rest = self
        out = _middle(expand, depthwise, input)
        for layer in rest:
            out = layer(out)
        return out


def _as_one(*layers: Any) -> bool:
    """Whether the first two are as the kernel has them, nobody listens to what is in them, and all that is trained."""
    expand, depthwise, *_ = *layers, None, None
    if not (type(expand) is type(depthwise) is _ConvNormReLU6 and _expands(expand, depthwise)):
        return False
    layers = *list(expand)[1:], *depthwise
    return (
        type(depthwise[0]) in _CONVOLUTIONS
        and all(parameter.requires_grad for layer in layers for parameter in layer.parameters())
        and not _hooked(expand, depthwise, *layers)
    )


def _middle(expand: Any, depthwise: Any, input: Tensor) -> Tensor:
    x, conv, norms = expand[0](input), depthwise[0], (expand[1], depthwise[1])
    height, width = ((side - 1) // conv.stride[0] + 1 for side in x.shape[2:])
    if len(x) * height * width < 2 or conv.weight.dtype != torch.float32 or not all(_apply_to(n, x) for n in norms):
        result: Tensor = depthwise(expand.behind(x))
        return result
    parts: list[Any] = []
    for norm in norms:
        _count(norm)
        parts += norm.weight, norm.bias, (norm.running_mean, norm.running_var, norm.momentum, norm.eps)
    return _Middle.apply(x, conv.weight, conv.stride[0], *parts)


def _hooked(*layers: nn.Module) -> bool:
    """Whether somebody waits for the calls of one of these."""
    kinds = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
    return any(getattr(layer, kind) for layer in layers for kind in kinds)


def _apply_to(norm: Any, x: Tensor) -> bool:
    return (
        norm.training
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and norm.weight.dtype == torch.float32
        and cpu_kernels.fit(x)
        and x.numel() > x.shape[1]  # PyTorch refuses a single value per channel
    )


def _normalised(norm: Any, x: Tensor, relu6: bool) -> Tensor:
    _count(norm)
    rest = norm.running_mean, norm.running_var, norm.momentum, norm.eps
    return _Normalisation.apply(x, norm.weight, norm.bias, rest, relu6)


def _count(norm: nn.BatchNorm2d) -> None:
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)


class _Normalisation(torch.autograd.Function):
    """Keeps its input.

    With ReLU6 the gradient is cut where it lies: what MobileNetV2 makes of a ReLU6's output is convolved, pooled or
    looked at by a penalty, and never added to by itself, which would hand one gradient to two.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, rest: tuple[Any, ...], relu6: bool) -> Tensor:
        out, kept = cpu_kernels.batchnorm(x, cpu_kernels.Norm(weight, bias, *rest), relu6)
        ctx.save_for_backward(x, weight, kept)
        ctx.relu6 = relu6
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, kept = ctx.saved_tensors
        alone = ctx.relu6
        if gradient.stride() != x.stride():
            gradient, alone = torch.empty_like(x).copy_(gradient), True
        found = cpu_kernels.batchnorm_backward(x, gradient, weight, kept, ctx.relu6, in_place=alone)
        return *(one if wanted else None for one, wanted in zip(found, ctx.needs_input_grad, strict=False)), None, None


class _Middle(torch.autograd.Function):
    """Keeps its input and what the convolution makes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, stride: int, *norms: Any) -> Tensor:
        first, second = (cpu_kernels.Norm(weight, bias, *rest) for weight, bias, rest in (norms[:3], norms[3:]))
        made = cpu_kernels.middle(x, taps, stride, first, second)
        ctx.save_for_backward(x, taps, first.weight, second.weight, made.convolved, *made.kept)
        ctx.stride = stride
        return made.out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, taps, *weights, convolved, first_kept, second_kept = ctx.saved_tensors
        if gradient.stride() != convolved.stride():
            gradient = torch.empty_like(convolved).copy_(gradient)
        of_x, of_taps, of_first, of_second = cpu_kernels.middle_backward(
            x, taps, ctx.stride, weights, convolved, (first_kept, second_kept), gradient
        )
        return of_x, of_taps, None, *of_first, None, *of_second, None
