"""Layers keep for the backward pass what the mathematics needs of them, which is next to nothing where they are frozen.

ReLU6 needs what comes out of it, which the convolution behind it keeps anyway; PyTorch keeps a copy of what goes in.
Without that copy a step keeps 30 % less and is 2 to 12 % faster on a CPU (docs/performance.md).

To send a gradient through, a frozen convolution needs its weight, frozen BatchNorm on running statistics its weight and
variance; but PyTorch keeps their inputs, whether the weight is trained or not (Bhatia and Dangel 2024, arXiv
2404.12406). ReLU6 between frozen layers needs a bit per value. Without all that, activations are what Cai et al. 2020,
arXiv 2007.11622, count: to train biases takes few, to train weights takes many. It takes time, so a recipe asks for it.

The forward pass gives the same bits. On a CPU the backward pass does in float32, too, but for sums that are taken in
another order: of a BatchNorm bias that is trained while its weight is not (within 1e-5 of its norm), and of the last
BatchNorm, whose gradient comes from the pooling with its pixels, not its channels, side by side. PyTorch takes it as it
lies, which takes fourteen times as long (58 instead of 4 ms at 7 x 7 pixels, batch 32).
"""

from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import avg_pool2d, batch_norm, conv2d, relu6
from torchvision.models import MobileNetV2

# Eight bytes of 0 or 1, as one integer, times this have their bits in the highest byte, the first highest; a byte times
# this has them in the highest bits of eight.
_DIAGONAL = 0x8040201008040201 - 2**64  # as int64
_LOWEST_BITS = 0x0101010101010101


def keep_less(model: MobileNetV2, frozen: bool = True) -> None:
    """Give ReLU6, and what is frozen, of `model` these forward and backward passes, in place; state-dict names stay.

    What is frozen is asked in every pass, so phases may freeze and unfreeze. Layers whose classes others have changed
    are left alone, so this comes after those.

    Args:
        frozen: convolutions and BatchNorm, too, where they are frozen; else ReLU6 alone.
    """
    layers = [module for module in model.features.modules() if isinstance(module, nn.Conv2d | nn.ReLU6)]
    for relu, after in zip_longest(layers, layers[1:]):
        if type(relu) is nn.ReLU6:
            relu.__class__ = _ReLU6
            vars(relu)["consumers"] = [after] if isinstance(after, nn.Conv2d) else []
            vars(relu)["frozen_keep_less"] = frozen
    for module in model.modules() if frozen else ():
        if type(module) is nn.Conv2d and module.bias is None:
            module.__class__ = LeanConv2d
        elif type(module) is nn.BatchNorm2d:
            module.__class__ = _BatchNorm2d


def average_pool(x: Tensor) -> Tensor:
    """Means of 2 x 2 values, of fewer at an odd end; N x C x H x W -> N x C x ceil(H / 2) x ceil(W / 2)."""
    return _AveragePool.apply(x)


class LeanConv2d(nn.Conv2d):
    """A convolution without bias that keeps no input while its weight is frozen."""

    def forward(self, input: Tensor) -> Tensor:
        if self.weight.requires_grad or not _wanted(input):
            return super().forward(input)
        return _Convolution.apply(input, self.weight, self.stride, self.padding, self.dilation, self.groups)


class _BatchNorm2d(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        if self.training or self.weight.requires_grad or not _wanted(input, self.bias):
            return super().forward(input)
        return _Normalisation.apply(input, self.weight, self.bias, self.running_mean, self.running_var, self.eps)


class _ReLU6(nn.ReLU6):
    consumers: list[nn.Conv2d]  # of what comes out; in a list, as they are no children
    frozen_keep_less: bool

    def forward(self, input: Tensor) -> Tensor:
        if not _wanted(input):
            return super().forward(input)
        if self.frozen_keep_less and not any(conv.weight.requires_grad for conv in self.consumers):
            return _Clamp.apply(input, self.inplace)
        return _ClampKept.apply(input, self.inplace)


def _wanted(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


class _Convolution(torch.autograd.Function):
    """Keeps its weight, which is a parameter."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, *geometry: Any) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.input, ctx.geometry = _Shape(images), geometry
        stride, padding, dilation, groups = geometry
        return conv2d(images, weight, None, stride, padding, dilation, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        of_images, _, _ = torch.ops.aten.convolution_backward(
            gradient,
            ctx.input.empty(gradient),
            weight.to(gradient.dtype),
            None,
            stride,
            padding,
            dilation,
            False,
            (0, 0),
            groups,
            (True, False, False),
        )
        return of_images.to(ctx.input.dtype), None, None, None, None, None


class _Normalisation(torch.autograd.Function):
    """BatchNorm on running statistics. Keeps its weight and its variance, a parameter and a buffer."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(weight, variance)
        ctx.eps = eps
        return batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, variance = ctx.saved_tensors
        of_x = of_bias = None
        if ctx.needs_input_grad[0]:
            # Rounded where PyTorch's kernel for the CPU rounds.
            per_deviation = (variance.double() + ctx.eps).rsqrt().to(weight.dtype)
            of_x = (gradient * per_deviation.view(1, -1, 1, 1)).mul_(weight.view(1, -1, 1, 1)).to(gradient.dtype)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, 2, 3), dtype=weight.dtype)
        return of_x, None, of_bias, None, None, None


class _Clamp(torch.autograd.Function):
    """ReLU6. Keeps which values were not cut, a bit each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        out = relu6(x, inplace)
        if inplace:
            ctx.mark_dirty(x)
        passed = out.bool().logical_and_((6 - out).bool())  # faster on a CPU than to compare
        ctx.order = sorted(range(out.ndim), key=lambda dim: (-passed.stride()[dim], dim))  # as they lie in memory
        in_order = passed.permute(ctx.order)
        ctx.shape = in_order.shape
        ctx.save_for_backward(_packed(in_order.reshape(-1)))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (bits,) = ctx.saved_tensors
        in_order = _unpacked(bits, ctx.shape.numel()).view(ctx.shape).to(gradient.dtype)
        passed = in_order.permute([ctx.order.index(dim) for dim in range(in_order.ndim)])
        return torch.ops.aten.hardtanh_backward(gradient, passed, 0, 2, grad_input=torch.empty_like(passed)), None


class _ClampKept(torch.autograd.Function):
    """ReLU6. Keeps what comes out, as the convolution that takes it does, too.

    The gradient is that convolution's, made for this alone, so it is cut where it lies; the pooling's, behind the last
    ReLU6, is laid out as what came out.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        out = relu6(x, inplace)
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (out,) = ctx.saved_tensors
        cut = gradient if gradient.stride() == out.stride() else torch.empty_like(out)
        return torch.ops.aten.hardtanh_backward(gradient, out, 0, 6, grad_input=cut), None


class _AveragePool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.input = _Shape(x)
        return avg_pool2d(x, 2, ceil_mode=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.ops.aten.avg_pool2d_backward(
            gradient, ctx.input.empty(gradient), (2, 2), (2, 2), (0, 0), True, True, None
        )


class _Shape:
    """A tensor without its values."""

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.stride, self.dtype = tensor.shape, tensor.stride(), tensor.dtype

    def empty(self, like: Tensor) -> Tensor:
        """For kernels that ask for the tensor, but look at its shape alone; of the type and device of `like`."""
        return torch.empty_strided(self.shape, self.stride, dtype=like.dtype, device=like.device)


def _packed(mask: Tensor) -> Tensor:
    """Booleans in a row -> a bit each, uint8."""
    if short := (8 - mask.numel() % 8) % 8:
        mask = torch.cat([mask, mask.new_zeros(short)])
    return (mask.view(torch.int64) * _DIAGONAL).bitwise_right_shift_(56).to(torch.uint8)


def _unpacked(bits: Tensor, values: int) -> Tensor:
    """The first `values` bits, as int8: 0 or 1."""
    eights = bits.to(torch.int64).mul_(_DIAGONAL).bitwise_right_shift_(7).bitwise_and_(_LOWEST_BITS)
    return eights.view(torch.int8)[:values]
