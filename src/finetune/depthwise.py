"""Depthwise 3x3 convolutions, of MobileNetV2's blocks (Sandler et al. 2018, arXiv 1801.04381), in Triton.

Why: such a layer does 9 multiplications per value, so the memory bounds it; but cuDNN's kernels for it, above all
the gradients', stay far from the memory's speed on bf16 channels_last tensors, and torch.compile leaves convolutions
to cuDNN. Here an input row is fetched once and serves its three output rows from registers.

Numerics: products and sums in fp32 (no TF32), rounded once, to the tensor's dtype. Deterministic: the weight's
gradient is summed in two stages, partial sums per program and then torch.sum over them, without atomics, and how it
is cut depends on the shapes alone, not on the GPU.

Triton (Tillet et al. 2019; https://triton-lang.org) is used if installed, else layers keep torch's convolution.
"""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from finetune.depthwise_kernels import INSTALLED, convolve, correlate, spread
from finetune.errors import reason
from finetune.model import is_depthwise_3x3

BLOCK = 1024  # values of a flattened (W, C) row per program: 8 bf16 (16 bytes) per thread of 4 warps
TILE = 1024  # values of a (W, C) tile per program of the weight's gradient
WARPS = 4
ROWS = (7, 6, 5, 4)  # output rows per program: the first that fetches the fewest input rows
PROGRAMS = 1188  # of the weight's gradient, at most about: 3 times the 3 that each of 132 multiprocessors (H100) holds
# Limits of registers per thread: a multiprocessor holds one program more, at the cost of few or no spills.
CONVOLVE_REGISTERS = {1: 128, 2: None}  # by stride
CORRELATE_REGISTERS = 168


@cache
def obstacle() -> str:
    """Why the kernels do not run on this machine's GPU, empty where they do; tried once."""
    if not INSTALLED:
        return "Triton is not installed"
    try:
        depthwise_conv3x3(torch.ones(1, 8, 3, 3, device="cuda"), torch.ones(8, 1, 3, 3, device="cuda"), 1)
    except Exception as error:
        return f"Triton's kernels do not run on this GPU ({reason(error)})"
    return ""


def depthwise_conv3x3(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """conv2d(x, weight, stride=stride, padding=1, groups=C) with a gradient, on a GPU.

    Args:
        x: N x C x H x W, best in channels_last, else it is copied.
        weight: C x 1 x 3 x 3.
        stride: 1 or 2.

    Returns:
        N x C x HO x WO of x's dtype, channels_last.
    """
    # Here rather than in the operator, so that a trace has the layout and inductor keeps to it.
    return _forward(x.contiguous(memory_format=torch.channels_last), weight, stride)


def _output(side: int, stride: int) -> int:
    return (side - 1) // stride + 1


def _empty(like: Tensor, height: int, width: int) -> Tensor:
    shape = (like.shape[0], like.shape[1], height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _cut(x: Tensor, height: int, width: int, stride: int) -> tuple[dict[str, int], tuple[int, int, int]]:
    """The kernels' sizes for an input of height x width, and the grid over blocks of a row, groups of rows, images."""
    n, c = x.shape[:2]
    ho, wo = _output(height, stride), _output(width, stride)
    rows = min(ROWS, key=lambda rows: math.ceil(ho / rows) * (stride * (rows - 1) + 3))
    return {"H": height, "W": width, "C": c, "ROWS": rows}, (math.ceil(wo * c / BLOCK), math.ceil(ho / rows), n)


@torch.library.custom_op(
    "finetune::depthwise_conv3x3", mutates_args=(), schema="(Tensor x, Tensor weight, int stride) -> Tensor"
)
def _forward(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return _run_convolve(x, weight, stride, first=0)


@_forward.register_fake
def _(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return _empty(x, _output(x.shape[2], stride), _output(x.shape[3], stride))


def _run_convolve(x: Tensor, weight: Tensor, stride: int, first: int) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    height, width = x.shape[2:]
    sizes, grid = _cut(x, height, width, stride)
    out = _empty(x, _output(height, stride), _output(width, stride))
    with torch.cuda.device_of(x):
        options = {"num_warps": WARPS, "maxnreg": CONVOLVE_REGISTERS[stride]}
        convolve[grid](x, _tap_rows(weight), out, first, **sizes, STRIDE=stride, BLOCK=BLOCK, **options)
    return out


def _tap_rows(weight: Tensor) -> Tensor:
    return weight.reshape(-1, 9).t().contiguous()


@torch.library.custom_op(
    "finetune::depthwise_conv3x3_input_gradient",
    mutates_args=(),
    schema="(Tensor grad, Tensor weight, SymInt height, SymInt width, int stride) -> Tensor",
)
def _input_gradient(grad: Tensor, weight: Tensor, height: int, width: int, stride: int) -> Tensor:
    if stride == 1:
        return _run_convolve(grad, weight, 1, first=8)
    grad = grad.contiguous(memory_format=torch.channels_last)
    sizes, grid = _cut(grad, height, width, stride)
    out = _empty(grad, height, width)
    with torch.cuda.device_of(grad):
        spread[grid](grad, _tap_rows(weight), out, **sizes, BLOCK=BLOCK, num_warps=WARPS)
    return out


@_input_gradient.register_fake
def _(grad: Tensor, weight: Tensor, height: int, width: int, stride: int) -> Tensor:
    return _empty(grad, height, width)


@torch.library.custom_op(
    "finetune::depthwise_conv3x3_weight_gradient",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, int stride) -> Tensor",
)
def _weight_gradient(grad: Tensor, x: Tensor, stride: int) -> Tensor:
    x, grad = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, grad))
    c, height, width = x.shape[1:]
    sizes, (_, groups, n) = _cut(x, height, width, stride)
    # The channels of a tile: of the cuts into the fewest tiles, that with the most channels.
    bc = min((256, 128, 64, 32), key=lambda bc: math.ceil(c / bc) * math.ceil(grad.shape[3] / (TILE // bc)))
    tiles, blocks = math.ceil(grad.shape[3] / (TILE // bc)), math.ceil(c / bc)
    each = max(1, math.ceil(n * groups * tiles * blocks / PROGRAMS))
    grid = (tiles * blocks, math.ceil(n * groups / each))
    partial = torch.empty((grid[1] * tiles, 9, c), dtype=torch.float32, device=x.device)
    cut = sizes | {"STRIDE": stride, "BW": TILE // bc, "BC": bc}
    with torch.cuda.device_of(x):
        options = {"num_warps": WARPS, "maxnreg": CORRELATE_REGISTERS}
        correlate[grid](x, grad, partial, n * groups, **cut, **options)
    return torch.empty((c, 1, 3, 3), dtype=x.dtype, device=x.device).copy_(partial.sum(0).t().reshape(c, 1, 3, 3))


@_weight_gradient.register_fake
def _(grad: Tensor, x: Tensor, stride: int) -> Tensor:
    return x.new_empty((x.shape[1], 1, 3, 3))


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    x, weight, ctx.stride = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight = ctx.saved_tensors
    grad = grad.contiguous(memory_format=torch.channels_last)
    height, width = x.shape[2:]
    dx = _input_gradient(grad, weight, height, width, ctx.stride) if ctx.needs_input_grad[0] else None
    dw = _weight_gradient(grad, x, ctx.stride) if ctx.needs_input_grad[1] else None
    return dx, dw, None


_forward.register_autograd(_backward, setup_context=_save)


class DepthwiseConv2d(nn.Conv2d):
    """A Conv2d that takes the kernels above where it can: on a GPU, in bf16, fp16 or fp32."""

    def forward(self, input: Tensor) -> Tensor:
        if not (INSTALLED and input.is_cuda and input.dim() == 4):
            return super().forward(input)
        x, weight = input, self.weight
        if torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            x, weight = x.to(dtype), weight.to(dtype)
        if x.dtype != weight.dtype or x.dtype not in (torch.bfloat16, torch.float16, torch.float32):
            return super().forward(input)
        return depthwise_conv3x3(x, weight, self.stride[0])


def use_triton_depthwise(model: nn.Module) -> int:
    """Make the model's depthwise 3x3 convolutions `DepthwiseConv2d`s, parameters and their names untouched.

    Returns:
        How many there are.
    """
    layers = [module for module in model.modules() if type(module) is nn.Conv2d and is_depthwise_3x3(module)]
    for layer in layers:
        layer.__class__ = DepthwiseConv2d
    return len(layers)
