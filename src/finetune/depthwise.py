"""Depthwise 3x3 convolutions, of MobileNetV2's blocks (Sandler et al. 2018, arXiv 1801.04381), in Triton.

Why: such a layer does 9 multiplications per value, so the memory bounds it; but cuDNN's kernels for it, above all
the gradients', stay far from the memory's speed on bf16 channels_last tensors, and torch.compile leaves convolutions
to cuDNN. Here an input row is fetched once and serves its three output rows from registers.

Numerics: products and sums in fp32 (no TF32), rounded once, to the tensor's dtype. Deterministic: the weight's
gradient is summed in two stages, partial sums per program and then torch.sum over them, without atomics, and how it
is cut depends on the shapes alone, not on the GPU.

Triton (Tillet et al. 2019; https://triton-lang.org) is used if installed, else layers keep torch's convolution. The
kernels see tensors as N x H x W x C; H and W are the input's, HO and WO the output's; one program per block of a
flattened (WO, C) row, ROWS rows and image, which makes every access contiguous. TRITON_INTERPRET=1 runs them on CPU.
"""

# mypy: allow-untyped-defs

from __future__ import annotations  # tl is not there for kernels' annotations where Triton is not installed

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

_INSTALLED = find_spec("triton") is not None
if _INSTALLED:
    import triton
    import triton.language as tl

BLOCK = 1024  # values of a flattened (W, C) row per program: 8 bf16 (16 bytes) per thread of 4 warps
TILE = 1024  # values of a (W, C) tile per program of the weight's gradient
WARPS = 4
ROWS = (7, 6, 5, 4)  # output rows per program: the first that fetches the fewest input rows
PROGRAMS = 1188  # of the weight's gradient, at most about: 3 times the 3 that each of 132 multiprocessors (H100) holds
# Limits of registers per thread: a multiprocessor holds one program more, at the cost of few or no spills.
CONVOLVE_REGISTERS = {1: 128, 2: None}  # by stride
CORRELATE_REGISTERS = 168


def available() -> bool:
    """Whether the kernels can be compiled; a layer also needs its input on a GPU."""
    return _INSTALLED


def _jit(**options: Any) -> Callable[[Any], Any]:
    return lambda kernel: triton.jit(kernel, **options) if _INSTALLED else kernel


@_jit()
def _columns(row, middle, left, inside, right, ok, C: tl.constexpr):
    """One row's values under the three taps of a kernel row; zero outside of the image."""
    at = row + middle
    x0 = tl.load(at - C, mask=left & ok, other=0.0)
    x1 = tl.load(at, mask=inside & ok, other=0.0)
    x2 = tl.load(at + C, mask=right & ok, other=0.0)
    return x0, x1, x2


@_jit()
def _taps(weight, c, k0, k1, k2, C: tl.constexpr):
    w0 = tl.load(weight + k0 * C + c).to(tl.float32)
    w1 = tl.load(weight + k1 * C + c).to(tl.float32)
    w2 = tl.load(weight + k2 * C + c).to(tl.float32)
    return w0, w1, w2


@_jit()
def _dot(total, x, w):
    return total + x[0].to(tl.float32) * w[0] + x[1].to(tl.float32) * w[1] + x[2].to(tl.float32) * w[2]


@_jit()
def _add(total, x, g):
    return total[0] + x[0].to(tl.float32) * g, total[1] + x[1].to(tl.float32) * g, total[2] + x[2].to(tl.float32) * g


@_jit(do_not_specialize=["first"])
def _convolve(
    x,
    weight,
    out,
    first,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """x * weight (9 x C); turned by 180 degrees if first, the first tap's row of weight, is 8 and not 0."""
    HO: tl.constexpr = (H - 1) // STRIDE + 1
    WO: tl.constexpr = (W - 1) // STRIDE + 1
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    top = tl.program_id(1) * ROWS
    n = tl.program_id(2).to(tl.int64)
    w, c = j // C, j % C
    inside = j < WO * C
    left, right = inside & (w > 0), inside & (STRIDE * w + 1 < W)
    middle = j + (STRIDE - 1) * w * C
    x += n * (H * W * C)
    out += n * (HO * WO * C)
    u = _taps(weight, c, first, tl.abs(first - 1), tl.abs(first - 2), C)
    v = _taps(weight, c, tl.abs(first - 3), tl.abs(first - 4), tl.abs(first - 5), C)
    t = _taps(weight, c, tl.abs(first - 6), tl.abs(first - 7), tl.abs(first - 8), C)
    zero = tl.zeros([BLOCK], tl.float32)
    upper = zero  # output rows under way
    lower = zero
    h = STRIDE * top - 1
    now = _columns(x + h * W * C, middle, left, inside, right, h >= 0, C)
    h += 1
    soon = _columns(x + h * W * C, middle, left, inside, right, h < H, C)
    for r in tl.static_range(STRIDE * (ROWS - 1) + 3):
        h += 1  # fetched two rows ahead, as no load can be moved before a store
        later = soon
        if r < STRIDE * (ROWS - 1) + 1:
            later = _columns(x + h * W * C, middle, left, inside, right, h < H, C)
        if STRIDE == 1:
            done = _dot(upper, now, t)
            upper = _dot(lower, now, v)
            lower = _dot(zero, now, u)
        elif r % 2 == 0:
            done = _dot(upper, now, t)
            upper = _dot(zero, now, u)
        else:
            upper = _dot(upper, now, v)
        if r >= 2 and (STRIDE == 1 or r % 2 == 0):
            row = top + (r - 2) // STRIDE
            tl.store(out + row * WO * C + j, done.to(out.dtype.element_ty), mask=inside & (row < HO))
        now = soon
        soon = later


@_jit()
def _spread(
    grad, weight, out, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """The input's gradient at stride 2: grad's 2 x 2 values from (row, w) make out's from (2 row, 2 w)."""
    HO: tl.constexpr = (H + 1) // 2
    WO: tl.constexpr = (W + 1) // 2
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    top = tl.program_id(1) * ROWS
    n = tl.program_id(2).to(tl.int64)
    w, c = j // C, j % C
    inside = j < WO * C
    right, odd = inside & (w + 1 < WO), inside & (2 * w + 1 < W)
    grad += n * (HO * WO * C)
    out += n * (H * W * C)
    u, v, t = _taps(weight, c, 0, 1, 2, C), _taps(weight, c, 3, 4, 5, C), _taps(weight, c, 6, 7, 8, C)
    at = grad + top * WO * C + j
    g00 = tl.load(at, mask=inside & (top < HO), other=0.0).to(tl.float32)
    g01 = tl.load(at + C, mask=right & (top < HO), other=0.0).to(tl.float32)
    for r in tl.static_range(ROWS):
        row = top + r
        at += WO * C
        g10 = tl.load(at, mask=inside & (row + 1 < HO), other=0.0).to(tl.float32)
        g11 = tl.load(at + C, mask=right & (row + 1 < HO), other=0.0).to(tl.float32)
        to = out + 2 * row * W * C + w * C + j
        tl.store(to, (g00 * v[1]).to(out.dtype.element_ty), mask=inside & (row < HO))
        tl.store(to + C, (g00 * v[2] + g01 * v[0]).to(out.dtype.element_ty), mask=odd & (row < HO))
        to += W * C
        below = 2 * row + 1 < H
        tl.store(to, (g00 * t[1] + g10 * u[1]).to(out.dtype.element_ty), mask=inside & below)
        last = g00 * t[2] + g01 * t[0] + g10 * u[2] + g11 * u[0]
        tl.store(to + C, last.to(out.dtype.element_ty), mask=odd & below)
        g00 = g10
        g01 = g11


@_jit(do_not_specialize=["items"])
def _correlate(
    x,
    grad,
    partial,
    items,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    STRIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BW: tl.constexpr,
    BC: tl.constexpr,
):
    """Partial sums of the weight's gradient, fp32, (programs x tiles of WO) x 9 x C, over tiles of BW x BC.

    The programs share out `items`, images x groups of ROWS rows of grad.
    """
    HO: tl.constexpr = (H - 1) // STRIDE + 1
    WO: tl.constexpr = (W - 1) // STRIDE + 1
    groups: tl.constexpr = (HO + ROWS - 1) // ROWS
    blocks: tl.constexpr = (C + BC - 1) // BC
    c = tl.program_id(0) % blocks * BC + tl.arange(0, BC)
    tile = tl.program_id(0) // blocks
    w = (tile * BW + tl.arange(0, BW))[:, None]
    inside = (w < WO) & (c < C)[None, :]
    left, right = inside & (w > 0), inside & (STRIDE * w + 1 < W)
    middle = STRIDE * w * C + c[None, :]
    at = w * C + c[None, :]
    zero = tl.zeros([BW, BC], tl.float32)
    upper, centre, lower = (zero, zero, zero), (zero, zero, zero), (zero, zero, zero)
    for item in range(tl.program_id(1), items, tl.num_programs(1)):
        n = tl.cast(item // groups, tl.int64)
        top = item % groups * ROWS
        xs = x + n * (H * W * C)
        gs = grad + n * (HO * WO * C)
        g0, g1, g2 = zero, zero, zero  # grad's row under the kernel's upper row at now, and those before
        for r in tl.static_range(STRIDE * (ROWS - 1) + 3):
            h = STRIDE * top - 1 + r
            now = _columns(xs + h * W * C, middle, left, inside, right, (h >= 0) & (h < H), C)
            if r % STRIDE == 0:
                g2 = g1
                g1 = g0
                if r // STRIDE < ROWS:
                    row = top + r // STRIDE
                    g0 = tl.load(gs + row * WO * C + at, mask=inside & (row < HO), other=0.0).to(tl.float32)
                    upper = _add(upper, now, g0)
            if STRIDE == 1:
                if r >= 1 and r <= ROWS:
                    centre = _add(centre, now, g1)
                if r >= 2:
                    lower = _add(lower, now, g2)
            elif r % 2 == 1:
                centre = _add(centre, now, g0)
            elif r >= 2:
                lower = _add(lower, now, g1)
    to = partial + (tl.program_id(1) * (tl.num_programs(0) // blocks) + tile) * 9 * C + c
    for k in tl.static_range(3):
        tl.store(to + k * C, tl.sum(upper[k], axis=0), mask=c < C)
        tl.store(to + (3 + k) * C, tl.sum(centre[k], axis=0), mask=c < C)
        tl.store(to + (6 + k) * C, tl.sum(lower[k], axis=0), mask=c < C)


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
        _convolve[grid](x, _tap_rows(weight), out, first, **sizes, STRIDE=stride, BLOCK=BLOCK, **options)
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
        _spread[grid](grad, _tap_rows(weight), out, **sizes, BLOCK=BLOCK, num_warps=WARPS)
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
        _correlate[grid](x, grad, partial, n * groups, **cut, **options)
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
        if not (available() and input.is_cuda and input.dim() == 4):
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
    layers = [module for module in model.modules() if type(module) is nn.Conv2d and _eligible(module)]
    for layer in layers:
        layer.__class__ = DepthwiseConv2d
    return len(layers)


def _eligible(layer: nn.Conv2d) -> bool:
    return (
        layer.groups == layer.in_channels == layer.out_channels
        and (layer.kernel_size, layer.padding, layer.dilation) == ((3, 3), (1, 1), (1, 1))
        and layer.stride in ((1, 1), (2, 2))
        and layer.padding_mode == "zeros"
        and layer.bias is None
    )
