"""The Triton kernels of `depthwise`.

They see tensors as N x H x W x C; H and W are the input's, HO and WO the output's; one program per block of a flattened
(WO, C) row, ROWS rows and image, which makes every access contiguous. TRITON_INTERPRET=1 runs them on a CPU.
"""

# mypy: allow-untyped-defs

from __future__ import annotations  # tl is not there for kernels' annotations where Triton is not installed

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

INSTALLED = find_spec("triton") is not None
if INSTALLED:
    import triton
    import triton.language as tl


def _jit(**options: Any) -> Callable[[Any], Any]:
    return lambda kernel: triton.jit(kernel, **options) if INSTALLED else kernel


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
def convolve(
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
def spread(
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
def correlate(
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
