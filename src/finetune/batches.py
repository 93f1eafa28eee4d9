"""Store -> seeded, augmented, normalised batches on the device.

Order, crop and flip depend on (seed, epoch, index of the image) alone: never on the batch size's history, the
device, or how far a run had come before it was interrupted.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from finetune.params import AugmentationParams
from finetune.store import Split

MEAN = (0.485, 0.456, 0.406)  # ImageNet, RGB, of pixels in [0, 1]: what the pretrained weights expect
STD = (0.229, 0.224, 0.225)

_TRIES = 10  # of random_resized_crop, as torchvision's


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

    def evaluation(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in the store's order, as the network sees it in evaluation."""
        for start in range(0, len(self.split), self.batch_size):
            rows = range(start, min(start + self.batch_size, len(self.split)))
            views = [evaluation_view(self.split.image(i), self.image_size, self.crop_pct) for i in rows]
            yield self._collate(views, rows)

    def training_steps(self) -> int:
        """Steps per epoch: a last batch of a single image, which BatchNorm cannot train on, is left out."""
        return len(self) - (len(self.split) % self.batch_size == 1 and len(self) > 1)

    def training(self, augmentation: AugmentationParams, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, shuffled and augmented for (seed, epoch)."""
        order = np.random.default_rng((seed, epoch)).permutation(len(self.split))
        decisions = Decisions.draw(augmentation, len(self.split), seed, epoch)
        for step in range(self.training_steps()):
            rows = order[step * self.batch_size : (step + 1) * self.batch_size]
            views = [self._training_view(int(i), augmentation, decisions) for i in rows]
            yield self._collate(views, rows)

    def _training_view(self, i: int, augmentation: AugmentationParams, decisions: "Decisions") -> Tensor:
        image = self.split.image(i)
        if augmentation.name == "none":
            return evaluation_view(image, self.image_size, self.crop_pct)
        if augmentation.name == "pad_crop":
            view = pad_crop(image, augmentation.padding, decisions.uniforms[i], self.image_size)
        else:
            box = random_resized_box(image.shape[0], image.shape[1], augmentation, decisions.uniforms[i])
            view = resize(_channels_first(image)[:, box.top : box.bottom, box.left : box.right], self.image_size)
        return view.flip(-1) if decisions.flips[i] else view

    def _collate(self, views: list[Tensor], rows: range | np.ndarray) -> tuple[Tensor, Tensor]:
        images = torch.stack(views).to(self.device, non_blocking=True)
        labels = torch.from_numpy(self.split.labels[np.asarray(rows)]).to(self.device, non_blocking=True)
        return normalise(images).contiguous(memory_format=self.memory_format), labels


@dataclass(frozen=True)
class Decisions:
    """The random numbers of one epoch, drawn at once: image i's are row i, whatever the order."""

    uniforms: np.ndarray  # float64 in [0, 1), images x (4 x tries)
    flips: np.ndarray  # bool, images

    @staticmethod
    def draw(augmentation: AugmentationParams, images: int, seed: int, epoch: int) -> "Decisions":
        generator = np.random.default_rng((seed, epoch, 1))
        flips = generator.random(images) < 0.5
        columns = {"random_resized_crop": 4 * _TRIES, "pad_crop": 2, "none": 0}[augmentation.name]
        return Decisions(generator.random((images, columns)), flips & augmentation.flip)


@dataclass(frozen=True)
class Box:
    top: int
    left: int
    bottom: int
    right: int


def random_resized_box(height: int, width: int, augmentation: AugmentationParams, uniforms: np.ndarray) -> Box:
    """The crop of torchvision's RandomResizedCrop (Szegedy et al. 2015, arXiv 1409.4842) from given random numbers.

    Args:
        uniforms: in [0, 1), 4 a try: area, aspect, top, left.
    """
    low, high = np.log(augmentation.ratio)
    for area, aspect, top, left in uniforms.reshape(_TRIES, 4):
        target = height * width * (augmentation.scale[0] + area * (augmentation.scale[1] - augmentation.scale[0]))
        ratio = np.exp(low + aspect * (high - low))
        w, h = round(np.sqrt(target * ratio)), round(np.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            t, x = int(top * (height - h + 1)), int(left * (width - w + 1))
            return Box(t, x, t + h, x + w)
    # No box fitted: the largest central one within the ratio's limits.
    w, h = width, height
    if width / height < augmentation.ratio[0]:
        h = round(w / augmentation.ratio[0])
    elif width / height > augmentation.ratio[1]:
        w = round(h * augmentation.ratio[1])
    t, x = (height - h) // 2, (width - w) // 2
    return Box(t, x, t + h, x + w)


def pad_crop(image: np.ndarray, padding: int, uniforms: np.ndarray, image_size: int) -> Tensor:
    """Black border, random crop of the image's own size, then resized: CIFAR's customary augmentation.

    An image that is not square is cut to its central square first.
    """
    square = _central_square(_channels_first(image))
    side = square.shape[-1]
    top, left = (int(u * (2 * padding + 1)) for u in uniforms[:2])
    return resize(pad(square, (padding,) * 4)[:, top : top + side, left : left + side], image_size)


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


def resize(chw: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Antialiased bilinear resize of a uint8 image, 3 x height x width."""
    size = (size, size) if isinstance(size, int) else size
    if chw.shape[1:] == torch.Size(size):
        return chw
    return interpolate(chw[None], size, mode="bilinear", antialias=True, align_corners=False)[0]


def normalise(images: Tensor) -> Tensor:
    """uint8 N x 3 x S x S -> float32 with ImageNet's mean and standard deviation."""
    mean = torch.tensor(MEAN, device=images.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(STD, device=images.device).view(1, 3, 1, 1) * 255
    return images.float().sub_(mean).div_(std)


def _channels_first(image: np.ndarray) -> Tensor:
    # A view, strided as channels_last: torch's fast uint8 resize takes that layout as it is.
    return torch.from_numpy(np.require(image, requirements="W")).permute(2, 0, 1)


def _central_square(chw: Tensor) -> Tensor:
    side = min(chw.shape[1:])
    top, left = ((length - side) // 2 for length in chw.shape[1:])
    return chw[:, top : top + side, left : left + side]
