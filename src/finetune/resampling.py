"""Antialiased bilinear resizing of many images of different sizes at once, as two batched matrix products.

Cropping, resizing and mirroring are linear and separable, so a view of an image is `rows @ image @ columns.T`, with a
small matrix of filter weights for each of the two axes. On a GPU that is a handful of kernels for a whole batch,
whatever the images' sizes. The filter is torchvision's and Pillow's (a triangle as wide as the reduction), computed
in floating point where they round the weights and the half-way result: a pixel differs by a level or two of 255.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_AT_ONCE = 128  # images; bounds the memory of the gathered pixels
_ALIGN = 16  # pixels; a GPU multiplies rows of other lengths at a fraction of its speed


@dataclass(frozen=True)
class Axis:
    """One axis of many views: which source pixels are read, and where the output pixels lie among them."""

    starts: np.ndarray  # int64, views: the first source pixel; may be negative
    lengths: np.ndarray  # int64, views: how many source pixels; the filter does not look beyond them
    scales: np.ndarray  # float64, views: source pixels per output pixel
    offsets: np.ndarray  # int64, views: which of the output pixels that the whole length would give comes first


def crop_axes(boxes: np.ndarray, size: int) -> tuple[Axis, Axis]:
    """Vertical and horizontal axis of crops that are resized to `size` x `size`.

    Args:
        boxes: int64, views x 4: top, left, bottom, right.
    """
    lengths, zeros = boxes[:, 2:] - boxes[:, :2], np.zeros(len(boxes), np.int64)
    down, across = (Axis(boxes[:, a], lengths[:, a], lengths[:, a] / size, zeros) for a in (0, 1))
    return down, across


def evaluation_axes(sizes: np.ndarray, image_size: int, short: int) -> tuple[Axis, Axis]:
    """Vertical and horizontal axis of torchvision's Resize(short) and CenterCrop(image_size), rounded as it rounds.

    Args:
        sizes: int64, views x 2: height, width of the images.
    """
    resized = short * sizes // sizes.min(1, keepdims=True)
    offsets = np.rint((resized - image_size) / 2).astype(np.int64)
    zeros = np.zeros(len(sizes), np.int64)
    down, across = (Axis(zeros, sizes[:, a], sizes[:, a] / resized[:, a], offsets[:, a]) for a in (0, 1))
    return down, across


class Views:
    """Views of images in one flat array, worked out on the host and held where the pixels are."""

    def __init__(self, index: np.ndarray, axes: tuple[Axis, Axis], flips: np.ndarray | None, device: torch.device):
        """Send the views to `device`.

        Args:
            index: int64, views x 3: offset into the flat array (bytes), height, width of the image.
            flips: bool, views: which are mirrored left to right; None: none is.
        """
        down, across = axes
        flips = np.zeros(len(index), bool) if flips is None else flips
        columns = [index[:, 0] // 3, index[:, 1], index[:, 2], flips]
        columns += [down.starts, down.lengths, down.offsets, across.starts, across.lengths, across.offsets]
        self._whole = send(np.stack(columns, 1).astype(np.int64), device)
        self._scales = send(np.stack([down.scales, across.scales], 1).astype(np.float32), device)
        self._extents = np.stack([down.lengths, across.lengths], 1)

    def resample(self, pixels: Tensor, rows: slice, size: int, exact: bool) -> Tensor:
        """The views `rows`.

        Args:
            pixels: uint8, flat: image after image, each height x width x 3.
            size: of the result, in pixels.
            exact: multiply in float32; else in float16, which is off by up to 0.2 levels before rounding.

        Returns:
            float32 of whole numbers 0 to 255, N x 3 x size x size.
        """
        start, stop, _ = rows.indices(len(self._extents))
        out = torch.empty((stop - start, 3, size, size), device=pixels.device)
        for begin in range(start, stop, _AT_ONCE):
            part = slice(begin, min(begin + _AT_ONCE, stop))
            out[part.start - start : part.stop - start] = self._part(pixels.view(-1, 3), part, size, exact)
        return out.round_().clamp_(0, 255)

    def _part(self, triples: Tensor, part: slice, size: int, exact: bool) -> Tensor:
        number = torch.float32 if exact else torch.float16
        tall, wide = (-(-int(most) // _ALIGN) * _ALIGN for most in self._extents[part].max(0))
        whole, scales = self._whole[part], self._scales[part]
        first, height, width, flips = whole[:, :4].unbind(1)
        rows, row_weights = _filter(whole[:, 4:7], scales[:, 0], height, size, tall)
        columns, column_weights = _filter(whole[:, 7:], scales[:, 1], width, size, wide)
        column_weights = torch.where(flips.bool()[:, None, None], column_weights.flip(1), column_weights)
        places = (first[:, None] + rows * width[:, None])[:, :, None] + columns[:, None, :]
        gathered = triples[places].permute(0, 3, 1, 2).to(number, memory_format=torch.contiguous_format)
        narrowed = gathered.view(-1, 3 * tall, wide) @ column_weights.to(number).transpose(1, 2)
        return (row_weights.to(number)[:, None] @ narrowed.view(-1, 3, tall, size)).float()


def _filter(axis: Tensor, scales: Tensor, extent: Tensor, size: int, taps: int) -> tuple[Tensor, Tensor]:
    """Source positions (int64, views x taps, within the image) and weights (float32, views x size x taps)."""
    starts, lengths, offsets = axis.unbind(1)
    tap = torch.arange(taps, device=starts.device)
    centres = (torch.arange(size, device=starts.device) + offsets[:, None] + 0.5) * scales[:, None]
    distances = (tap + 0.5 - centres[:, :, None]) / scales.clamp(min=1)[:, None, None]
    weights = (1 - distances.abs()).clamp(min=0) * (tap < lengths[:, None])[:, None, :]
    weights = weights / weights.sum(2, keepdim=True)
    positions = starts[:, None] + tap
    black = (positions < 0) | (positions >= extent[:, None])
    return torch.minimum(positions.clamp(min=0), extent[:, None] - 1), weights * ~black[:, None, :]


def send(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy of a host array on the device; to a GPU through pinned memory, so that nothing waits for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
