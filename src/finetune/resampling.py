"""Antialiased bilinear resizing of many images of different sizes at once, as two batched matrix products.

Cropping, resizing and mirroring are linear and separable, so a view of an image is `rows @ image @ columns.T`, with a
small matrix of filter weights for each of the two axes. A GPU on which Triton's kernel (`view_kernel`) cannot be had
takes 21 kernels for a whole batch, whatever the images' sizes, and 23 where a crop reaches beyond its image: 7 work out
places and filter centres, which is next to nothing; 7 make the weights, of both axes at once; the rest gather, multiply
twice and round. A batch that would take too much memory goes in several parts. The filter is torchvision's and Pillow's
(a triangle as wide as the reduction), computed in floating point where they round the weights and the half-way result:
a pixel differs by a level or two of 255.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from finetune.view_kernel import draw_views

_AT_ONCE = 2**27  # gathered pixels and weights in one go; bounds its memory, some 20 bytes each
_FAR = 1e9  # pixels
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

    def __init__(
        self, index: np.ndarray, axes: tuple[Axis, Axis], flips: np.ndarray | None, size: int, device: torch.device
    ):
        """Send the views to `device`.

        Args:
            index: int64, views x 3: offset into the flat array (bytes), height, width of the image.
            flips: bool, views: which are mirrored left to right; None: none is.
            size: of the views, in pixels.
        """
        starts, lengths, scales, offsets = (
            np.stack([getattr(axis, name) for axis in axes], 1) for name in ("starts", "lengths", "scales", "offsets")
        )
        mirrored = np.zeros((len(index), 2), bool)
        if flips is not None:
            mirrored[:, 1] = flips
        # A mirrored view is sampled from its last pixel to its first; negated twice, so that no bit moves.
        shifts, steps = np.where(mirrored, -(offsets + size), offsets), np.where(mirrored, -scales, scales)
        numbers = np.stack([shifts, steps, np.maximum(scales, 1)], 1)
        whole = [index[:, :1] // 3, index[:, 2:], starts, lengths, index[:, 1:] - 1]
        self._numbers = send(numbers.astype(np.float32), device)  # views x 3 x axes
        self._whole = send(np.concatenate(whole, 1).astype(np.int64), device)
        self._extents, self._size = lengths, size
        self._black = bool(((starts < 0) | (starts + lengths > index[:, 1:])).any())  # some look beyond their image

    def resample(self, pixels: Tensor, rows: slice, exact: bool) -> Tensor:
        """The views `rows`.

        Args:
            pixels: uint8, flat: image after image, each height x width x 3.
            exact: multiply in float32; else in float16, which is off by up to 0.2 levels before rounding.

        Returns:
            Whole numbers 0 to 255 in float32, or in float16 where not `exact`, N x 3 x size x size.
        """
        start, stop, _ = rows.indices(len(self._extents))
        tall, wide = (-(-int(most) // _ALIGN) * _ALIGN for most in self._extents[start:stop].max(0))
        each = max(1, _AT_ONCE // (tall * wide + 2 * self._size * max(tall, wide)))
        made = [
            self._part(pixels.view(-1, 3), slice(begin, min(begin + each, stop)), tall, wide, exact)
            for begin in range(start, stop, each)
        ]
        lines = made[0] if len(made) == 1 else torch.cat(made)
        return lines.round_().clamp_(0, 255).view(-1, self._size, 3, self._size).transpose(1, 2)

    def drawn(
        self,
        pixels: Tensor,
        rows: slice,
        statistics: tuple[Tensor, Tensor],
        layout: torch.memory_format,
    ) -> Tensor:
        """The views `rows` as the network takes them, made by one kernel, on a GPU.

        Args:
            pixels: as for `resample`.
            statistics: mean and standard deviation of each channel's values 0 to 255, float32.

        Returns:
            N x 3 x size x size in float32, in `layout`.
        """
        last = layout == torch.channels_last
        return draw_views(pixels, self._numbers[rows], self._whole[rows], *statistics, self._size, last)

    def _part(self, triples: Tensor, part: slice, tall: int, wide: int, exact: bool) -> Tensor:
        """N x size x (3 x size): line by line, each in red, green and blue."""
        number, size = torch.float32 if exact else torch.float16, self._size
        first, width, starts, lengths, last = self._whole[part].split([1, 1, 2, 2, 2], 1)
        taps, middles = _counted(max(tall, wide), triples.device)
        positions = starts[:, :, None] + taps
        inside = positions.clamp(taps[0], last[:, :, None])
        shown = inside == positions if self._black else None
        # What is no part of the view is put so far away that it weighs nothing.
        distant = torch.add(middles, taps >= lengths[:, :, None], alpha=_FAR)
        weights = _filter(self._numbers[part], distant, shown, size, number)
        places = torch.addcmul(first, inside[:, 0, :tall], width)[:, :, None] + inside[:, 1, None, :wide]
        gathered = triples[places].transpose(2, 3).to(number, memory_format=torch.contiguous_format)
        narrowed = torch.bmm(gathered.view(-1, tall * 3, wide), weights[:, 1, :, :wide].transpose(1, 2))
        return torch.bmm(weights[:, 0, :, :tall], narrowed.view(-1, tall, 3 * size))


def _filter(numbers: Tensor, taps: Tensor, shown: Tensor | None, size: int, number: torch.dtype) -> Tensor:
    """Weights of the source pixels, views x axes x size x taps, of type `number`."""
    shifts, steps, reaches = numbers[..., None].unbind(1)
    centres = (_counted(size, numbers.device)[1] + shifts) * steps
    distances = (taps[:, :, None] - centres[..., None]).div_(reaches[..., None]).abs_()
    weights = (1 - distances).clamp_(min=0)
    sums = weights.sum(3, keepdim=True)
    if shown is not None:
        weights.mul_(shown[:, :, None])
    return torch.div(weights, sums, out=torch.empty_like(weights, dtype=number))


@cache
def _counted(length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """0, 1, 2 and so on, int64, and the middles of such pixels, float32; made once, as each would be a kernel."""
    counted = torch.arange(length, device=device)
    return counted, counted + 0.5


def send(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy of a host array on the device; to a GPU through pinned memory, so that nothing waits for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
