"""Store -> seeded, augmented, normalised batches on the device.

`Batches` makes the views one by one on the CPU; `DeviceBatches` makes them all at once on the device, as on the CPU
`native_batches` does. All see the same crops of the same images in the same order, which depend on (seed, epoch, index
of the image) alone.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from finetune import view_kernel
from finetune.augmentation import Crops, draw, epoch_order
from finetune.params import AugmentationParams
from finetune.resampling import Axis, Views, crop_axes, evaluation_axes, send
from finetune.store import Split

MEAN = (0.485, 0.456, 0.406)  # ImageNet, RGB, of pixels in [0, 1]: what the pretrained weights expect
STD = (0.229, 0.224, 0.225)

_AHEAD = 3  # batches that are gathered while the device works, each by a thread


@dataclass(frozen=True)
class Batches:
    """Batches of one split: float images N x 3 x size x size, int64 labels N."""

    split: Split
    image_size: int
    batch_size: int
    device: torch.device
    memory_format: torch.memory_format
    crop_pct: float

    def __len__(self) -> int:
        """Batches of an evaluation pass; the last may be smaller."""
        return math.ceil(len(self.split) / self.batch_size)

    def training_steps(self) -> int:
        """Steps per epoch."""
        return training_steps(len(self.split), self.batch_size)

    def evaluation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in the store's order, as the network sees it in evaluation."""
        yield from self._pass(np.arange(len(self.split)), None, len(self))

    def training(
        self, augmentation: AugmentationParams, seed: int, epoch: int, *, first: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The images of `training_steps`, shuffled and augmented for (seed, epoch); from step `first` on, counted from
        0, without making the batches before it."""
        order = epoch_order(len(self.split), seed, epoch)
        crops = draw(augmentation, self.split.index[:, 1:], seed, epoch)
        yield from self._pass(order[first * self.batch_size :], crops, self.training_steps() - first)

    def seen(
        self, images: np.ndarray, augmentation: AugmentationParams | None = None, seed: int = 0, epoch: int = 0
    ) -> Tensor:
        """What the network sees of some images, by index, in training (seed, epoch); in evaluation where no
        `augmentation` is given."""
        crops = draw(augmentation, self.split.index[:, 1:], seed, epoch) if augmentation else None
        return torch.cat([seen for seen, _ in self._pass(images, crops, math.ceil(len(images) / self.batch_size))])

    def _pass(self, order: np.ndarray, crops: Crops | None, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(steps):
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            views = torch.stack([self._view(int(i), crops).permute(1, 2, 0) for i in rows])  # N x size x size x 3
            images = views.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
            labels = torch.from_numpy(self.split.labels[rows]).to(self.device, non_blocking=True)
            yield normalise(images).contiguous(memory_format=self.memory_format), labels

    def _view(self, i: int, crops: Crops | None) -> Tensor:
        image = self.split.image(i)
        if crops is None:
            return evaluation_view(image, self.image_size, self.crop_pct)
        view = resize(cut(_channels_first(image), crops.boxes[i]), self.image_size)
        return view.flip(-1) if crops.flips[i] else view


@dataclass(frozen=True)
class DeviceBatches(Batches):
    """Batches whose views are made on the device, from pixels that are resident there or streamed to it."""

    resident: Tensor | None  # uint8, flat, the split's whole pixel file on the device; None: stream it
    exact: bool  # resample in float32 rather than float16; Triton's kernel always does

    def _pass(self, order: np.ndarray, crops: Crops | None, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        bounds = [(s * self.batch_size, min((s + 1) * self.batch_size, len(order))) for s in range(steps)]
        labels = send(self.split.labels[order], self.device)
        if self.resident is None:
            sources = self._streamed(order, crops, bounds)
        else:
            views = self._views(self.split.index[order], order, crops)
            resident = self.resident
            sources = ((resident, views, slice(*bound)) for bound in bounds)
        for (begin, end), (pixels, views, rows) in zip(bounds, sources, strict=True):
            yield self._made(pixels, views, rows), labels[begin:end]

    def _made(self, pixels: Tensor, views: Views, rows: slice) -> Tensor:
        if pixels.is_cuda and view_kernel.usable():
            return views.drawn(pixels, rows, statistics(self.device), self.memory_format)
        return normalise(views.resample(pixels, rows, self.exact), self.memory_format)

    def _streamed(
        self, order: np.ndarray, crops: Crops | None, bounds: list[tuple[int, int]]
    ) -> Iterator[tuple[Tensor, Views, slice]]:
        """Each batch's pixels on the device; threads gather the next ones in pinned memory meanwhile."""

        def gather(bound: tuple[int, int]) -> tuple[Tensor, np.ndarray, np.ndarray]:
            rows = order[slice(*bound)]
            index = self.split.index[rows].copy()
            ends = np.cumsum(index[:, 1] * index[:, 2] * 3)
            index[:, 0] = [0, *ends[:-1]]
            flat = np.empty(ends[-1], np.uint8)
            for i, begin, end in zip(rows, index[:, 0], ends, strict=True):
                self.split.put(int(i), flat[begin:end])
            pixels = torch.from_numpy(flat)
            return pixels.pin_memory() if self.device.type == "cuda" else pixels, index, rows

        with ThreadPoolExecutor(_AHEAD) as pool:
            waiting = [pool.submit(gather, bound) for bound in bounds[:_AHEAD]]
            for step in range(len(bounds)):
                flat, index, rows = waiting.pop(0).result()
                if step + _AHEAD < len(bounds):
                    waiting.append(pool.submit(gather, bounds[step + _AHEAD]))
                yield flat.to(self.device, non_blocking=True), self._views(index, rows, crops), slice(0, len(rows))

    def _views(self, index: np.ndarray, images: np.ndarray, crops: Crops | None) -> Views:
        axes: tuple[Axis, Axis]
        if crops is None:
            axes = evaluation_axes(index[:, 1:], self.image_size, round(self.image_size / self.crop_pct))
            return Views(index, axes, None, self.image_size, self.device)
        axes = crop_axes(crops.boxes[images], self.image_size)
        return Views(index, axes, crops.flips[images], self.image_size, self.device)


def training_steps(images: int, batch_size: int) -> int:
    """Steps per epoch: a last batch of a single image, which BatchNorm cannot train on, is left out."""
    batches = math.ceil(images / batch_size)
    return batches - (images % batch_size == 1 and batches > 1)


def evaluation_view(image: np.ndarray, image_size: int, crop_pct: float) -> Tensor:
    """torchvision's Resize(image_size / crop_pct) and CenterCrop(image_size), rounded as it rounds.

    Args:
        image: uint8 pixels, height x width x 3.

    Returns:
        uint8, 3 x image_size x image_size.
    """
    chw = _channels_first(image)
    short = round(image_size / crop_pct)
    height, width = chw.shape[1:]
    chw = resize(chw, (short * height // min(height, width), short * width // min(height, width)))
    top, left = (round((side - image_size) / 2) for side in chw.shape[1:])
    return chw[:, top : top + image_size, left : left + image_size]


def cut(chw: Tensor, box: np.ndarray) -> Tensor:
    """The part of an image (3 x height x width) in a box: top, left, bottom, right; black outside the image."""
    height, width = chw.shape[1:]
    top, left, bottom, right = (int(side) for side in box)
    border = max(-left, 0), max(right - width, 0), max(-top, 0), max(bottom - height, 0)
    if not any(border):
        return chw[:, top:bottom, left:right]
    return pad(chw, border)[:, top + border[2] : bottom + border[2], left + border[0] : right + border[0]]


def resize(chw: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Antialiased bilinear resize of a uint8 image, 3 x height x width."""
    size = (size, size) if isinstance(size, int) else size
    if chw.shape[1:] == torch.Size(size):
        return chw
    # torch's fast kernel wants the batch's stride right, too, which `chw[None]` does not give (docs/performance.md).
    batch = chw.as_strided((1, *chw.shape), (chw.stride(1) * chw.shape[1], *chw.stride()), chw.storage_offset())
    return interpolate(batch, size, mode="bilinear", antialias=True, align_corners=False)[0]


def normalise(images: Tensor, layout: torch.memory_format = torch.preserve_format) -> Tensor:
    """N x 3 x S x S of 0 to 255, of any type -> float32 with ImageNet's mean and standard deviation."""
    made = torch.empty_like(images, dtype=torch.float32, memory_format=layout).copy_(images)
    lines = made.permute(0, 2, 3, 1)
    if lines.is_contiguous():  # a CPU takes many values at once of lines, not of three channels
        mean, deviation = statistics(images.device, images.shape[3])
        lines.flatten(2).sub_(mean).div_(deviation)
    else:
        mean, deviation = (values.view(3, 1, 1) for values in statistics(images.device))
        made.sub_(mean).div_(deviation)
    return made


@cache
def statistics(device: torch.device, width: int = 1) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the values 0 to 255 of a line of `width` pixels, the three channels of one beside
    each other; sent once, as sending them waits for the device."""
    mean, deviation = (torch.tensor(values, device=device).mul(255).repeat(width) for values in (MEAN, STD))
    return mean, deviation


def _channels_first(image: np.ndarray) -> Tensor:
    # A view, strided as channels_last: torch's fast uint8 resize takes that layout as it is.
    return torch.from_numpy(np.require(image, requirements="W")).permute(2, 0, 1)
