"""Gradients of strided grouped convolutions on a CPU, in float32 under bf16 autocast.

oneDNN has no fast bf16 kernel for depthwise ones: at 96 channels, 112 px and batch 32 the backward pass takes 0.13 s on
two cores with AVX-512 bf16, against 0.024 s in float32, conversions apart. Everything else of MobileNetV2 is faster in
bf16. Where the input is a single pixel, as a lite residual module's may be, its bf16 kernels leave those parts of a
weight's gradient unwritten that no pixel reaches (seen with PyTorch 2.14.1: values of 1e12).

A few images at a time, which spares float32 copies of the whole batch, 154 MB each at that size. Where the weight is
frozen, the input is not kept: its gradient does not depend on it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

_PIECE = 2**22  # bytes of float32 input: what stays in a processor's cache


class _Convolution(torch.autograd.Function):
    """A bf16 convolution without bias whose gradients are computed in float32 and rounded once."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int], groups: int
    ) -> Tensor:
        low = images.to(torch.bfloat16)
        ctx.save_for_backward(low if ctx.needs_input_grad[1] else None, weight)
        ctx.like = low.shape, low.stride()
        ctx.geometry = stride, padding, groups
        return conv2d(low, weight.to(torch.bfloat16), None, stride, padding, 1, groups)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        low, weight = ctx.saved_tensors
        stride, padding, groups = ctx.geometry
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], False)
        if low is None:  # the kernel asks for one, but looks at its shape alone
            low = torch.empty_strided(*ctx.like, dtype=torch.bfloat16)
        of_images = torch.empty_like(low) if wanted[0] else None
        of_weight = torch.zeros_like(weight) if wanted[1] else None
        at_once = max(1, _PIECE // (4 * low[0].numel()))
        for piece in map(slice, range(0, len(low), at_once), range(at_once, len(low) + at_once, at_once)):
            of_piece, from_piece, _ = torch.ops.aten.convolution_backward(
                gradient[piece].float(),
                low[piece].float(),
                weight,
                None,
                stride,
                padding,
                (1, 1),
                False,
                (0, 0),
                groups,
                wanted,
            )
            if of_images is not None:
                of_images[piece] = of_piece
            if of_weight is not None:
                of_weight += from_piece
        return of_images, of_weight, None, None, None


class StridedConv2d(nn.Conv2d):
    """A strided convolution in groups, without bias, with float32 gradients under bf16 autocast."""

    def forward(self, input: Tensor) -> Tensor:
        if not (torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()):
            return super().forward(input)
        return _Convolution.apply(input, self.weight, self.stride, self.padding, self.groups)


def use_float32_gradients(model: nn.Module) -> None:
    """Give the strided grouped convolutions of `model` float32 gradients under bf16 autocast, in place; names stay."""
    for module in model.modules():
        if type(module) is nn.Conv2d and module.groups > 1 and module.stride != (1, 1):
            assert module.bias is None
            module.__class__ = StridedConv2d
