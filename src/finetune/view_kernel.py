"""All views of a batch by one Triton kernel: cropped, resized, mirrored, rounded and normalised.

Each output pixel takes the few source pixels that its filter reaches, some 2 x 2 where nothing is reduced; neighbours
find most of them in the multiprocessor's cache. The arithmetic is `resampling`'s in float32, and what comes out is what
`batches.normalise` makes of it.
"""

# mypy: allow-untyped-defs

from __future__ import annotations  # tl is not there for kernels' annotations where Triton is not installed

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from finetune.errors import reason

INSTALLED = find_spec("triton") is not None
if INSTALLED:
    import triton
    import triton.language as tl

BLOCK = 512  # output pixels per program
WARPS = 4


def _jit() -> Callable[[Any], Any]:
    return lambda kernel: triton.jit(kernel) if INSTALLED else kernel


@_jit()
def _tap(t, length, start, last, centre, reach):
    """Weight of tap `t` of an axis, whether it is in the image, and where."""
    weight = tl.maximum(1.0 - tl.abs((t.to(tl.float32) + 0.5) - centre) / reach, 0.0)
    place = start + t
    return tl.where((t >= 0) & (t < length), weight, 0.0), (place >= 0) & (place <= last), place


@_jit()
def _views(
    pixels,
    numbers,
    whole,
    means,
    deviations,
    out,
    SIZE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of output pixels of one view; `numbers` and `whole` are as `resampling.Views` sends them."""
    n = tl.program_id(0)
    p = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = p < SIZE * SIZE
    numbers += n * 6
    whole += n * 8
    reach_y = tl.load(numbers + 4)
    reach_x = tl.load(numbers + 5)
    pixels += tl.load(whole) * 3
    width = tl.load(whole + 1).to(tl.int32)  # within one image 32 bits suffice
    start_y = tl.load(whole + 2).to(tl.int32)
    start_x = tl.load(whole + 3).to(tl.int32)
    length_y = tl.load(whole + 4).to(tl.int32)
    length_x = tl.load(whole + 5).to(tl.int32)
    last_y = tl.load(whole + 6).to(tl.int32)
    last_x = tl.load(whole + 7).to(tl.int32)
    centre_y = ((p // SIZE).to(tl.float32) + 0.5 + tl.load(numbers)) * tl.load(numbers + 2)
    centre_x = ((p % SIZE).to(tl.float32) + 0.5 + tl.load(numbers + 1)) * tl.load(numbers + 3)
    first_y = tl.floor(centre_y - reach_y).to(tl.int32)
    first_x = tl.floor(centre_x - reach_x).to(tl.int32)
    taps_y = (2.0 * reach_y).to(tl.int32) + 2
    taps_x = (2.0 * reach_x).to(tl.int32) + 2
    red = tl.zeros([BLOCK], tl.float32)
    green = tl.zeros([BLOCK], tl.float32)
    blue = tl.zeros([BLOCK], tl.float32)
    sum_y = tl.zeros([BLOCK], tl.float32)
    sum_x = tl.zeros([BLOCK], tl.float32)
    for j in range(taps_x):
        weight_x, _, _ = _tap(first_x + j, length_x, start_x, last_x, centre_x, reach_x)
        sum_x += weight_x
    for i in range(taps_y):
        weight_y, shown_y, y = _tap(first_y + i, length_y, start_y, last_y, centre_y, reach_y)
        sum_y += weight_y
        for j in range(taps_x):
            weight_x, shown_x, x = _tap(first_x + j, length_x, start_x, last_x, centre_x, reach_x)
            weight = weight_y * weight_x
            look = at & shown_y & shown_x & (weight > 0)
            source = pixels + (y * width + x) * 3
            red += weight * tl.load(source, mask=look, other=0).to(tl.float32)
            green += weight * tl.load(source + 1, mask=look, other=0).to(tl.float32)
            blue += weight * tl.load(source + 2, mask=look, other=0).to(tl.float32)
    sums = sum_y * sum_x
    to = out + n.to(tl.int64) * (3 * SIZE * SIZE)
    for channel in tl.static_range(3):
        if channel == 0:
            level = tl.div_rn(red, sums)
        elif channel == 1:
            level = tl.div_rn(green, sums)
        else:
            level = tl.div_rn(blue, sums)
        # In float32 what is added to 1.5 x 2^23 is rounded, halves to even.
        level = tl.minimum(tl.maximum((level + 12582912.0) - 12582912.0, 0.0), 255.0)
        value = tl.div_rn(level - tl.load(means + channel), tl.load(deviations + channel))
        place = p * 3 + channel if CHANNELS_LAST else channel * (SIZE * SIZE) + p
        tl.store(to + place, value, mask=at)


@torch.library.custom_op(
    "finetune::draw_views",
    mutates_args=(),
    schema="(Tensor pixels, Tensor numbers, Tensor whole, Tensor means, Tensor deviations, int size, "
    "bool channels_last) -> Tensor",
)
def draw_views(
    pixels: Tensor,
    numbers: Tensor,
    whole: Tensor,
    means: Tensor,
    deviations: Tensor,
    size: int,
    channels_last: bool,
) -> Tensor:
    """The views of a batch, as the network takes them.

    Args:
        pixels: uint8, flat, on a GPU: image after image, each height x width x 3.
        numbers: float32, N x 3 x 2: shift, step and reach of the filter, each down and across.
        whole: int64, N x 8: first pixel, width; start, length and last place, each down and across.
        means, deviations: float32, 3 in all: of the channels' values 0 to 255.

    Returns:
        N x 3 x size x size, float32.
    """
    out = _room(numbers, size, channels_last)
    grid = (len(out), (size * size + BLOCK - 1) // BLOCK)
    with torch.cuda.device_of(pixels):
        _views[grid](
            pixels,
            numbers,
            whole,
            means,
            deviations,
            out,
            SIZE=size,
            CHANNELS_LAST=channels_last,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    return out


@draw_views.register_fake
def _(pixels, numbers, whole, means, deviations, size, channels_last):
    return _room(numbers, size, channels_last)


@cache
def usable() -> bool:
    """Whether the kernel runs on this machine's GPU; tried once, and said where it does not: Triton needs a C compiler,
    and not every GPU will do."""
    if not (INSTALLED and torch.cuda.is_available()):
        return False
    try:
        one, three = torch.ones(1, 3, 2, device="cuda"), torch.ones(3, device="cuda")
        whole = torch.tensor([[0, 1, 0, 0, 1, 1, 0, 0]], device="cuda")
        draw_views(torch.zeros(3, dtype=torch.uint8, device="cuda"), one, whole, three, three, 1, True)
    except Exception as error:
        why = reason(error)
        print(f"Triton cannot make views on this GPU ({why}): matrix products do, which takes longer", flush=True)
        return False
    return True


def _room(numbers: Tensor, size: int, channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((len(numbers), 3, size, size), device=numbers.device, memory_format=layout)
