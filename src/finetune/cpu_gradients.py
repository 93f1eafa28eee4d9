"""Gradients of strided convolutions in groups on a CPU, in float32 under bf16 autocast.

oneDNN has no fast bf16 kernel for depthwise ones: at 96 channels, 112 px and batch 32 the backward pass takes 0.66 s on
two cores with AVX-512 bf16, against 0.18 s in float32, conversions apart. Everything else of MobileNetV2 is faster in
bf16. Where the input is a single pixel, as a lite residual module's may be, its bf16 kernels leave those parts of a
weight's gradient unwritten that no pixel reaches (seen with PyTorch 2.14.1: values of 1e12).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d


class _Convolution(torch.autograd.Function):
    """A bf16 convolution without bias whose gradients are computed in float32 and rounded once."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int], groups: int
    ) -> Tensor:
        low = images.to(torch.bfloat16)
        ctx.save_for_backward(low, weight)
        ctx.geometry = stride, padding, groups
        return conv2d(low, weight.to(torch.bfloat16), None, stride, padding, 1, groups)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        low, weight = ctx.saved_tensors
        stride, padding, groups = ctx.geometry
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], False)
        of_images, of_weight, _ = torch.ops.aten.convolution_backward(
            gradient.float(), low.float(), weight, None, stride, padding, (1, 1), False, (0, 0), groups, wanted
        )
        return of_images.to(low.dtype) if wanted[0] else None, of_weight if wanted[1] else None, None, None, None


class _StridedInGroups(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        if not (torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()):
            return super().forward(input)
        return _Convolution.apply(input, self.weight, self.stride, self.padding, self.groups)


def use_float32_gradients(model: nn.Module) -> None:
    """Have the strided convolutions of `model` that are in groups do so under autocast; names stay."""
    for module in model.modules():
        if type(module) is nn.Conv2d and module.groups > 1 and module.stride != (1, 1):
            assert module.bias is None
            module.__class__ = _StridedInGroups
