"""Splits of small images made in memory, and what batches show of them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from finetune.batches import STD, Batches
from finetune.params import AugmentationParams
from finetune.store import Split

PAD_CROP = AugmentationParams(name="pad_crop", padding=4)
RESIZED_CROP = AugmentationParams(name="random_resized_crop")
NONE = AugmentationParams(name="none")


def split_of(images: Sequence[np.ndarray]) -> Split:
    """A split of `images` whose label is the image's index."""
    sizes = [image.size for image in images]
    offsets = np.cumsum([0, *sizes[:-1]])
    index = np.array([(offset, *image.shape[:2]) for offset, image in zip(offsets, images, strict=True)], np.int64)
    return Split(np.concatenate([image.ravel() for image in images]), index, np.arange(len(images)))


def noise(images: int = 10, height: int = 32, width: int = 32) -> list[np.ndarray]:
    generator = np.random.default_rng(5)
    return [generator.integers(0, 256, (height, width, 3)).astype(np.uint8) for _ in range(images)]


def oblong(images: int) -> list[np.ndarray]:
    """Noise of as many sizes as there are images: squares, upright and lying ones, larger and smaller than 32."""
    return [noise(1, 20 + 7 * i % 41, 20 + 11 * i % 53)[0] for i in range(images)]


def gradient(height: int, width: int) -> np.ndarray:
    """Smooth: no resizing moves it far."""
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([255 * rows, 255 * columns, 127 * (rows + columns)], -1).astype(np.uint8)


def channels_first(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def shown(batches: Batches, augmentation: AugmentationParams, seed: int, epoch: int) -> dict[int, Tensor]:
    """Image index -> its training view."""
    found: dict[int, Tensor] = {}
    for images, labels in batches.training(augmentation, seed, epoch):
        for image, label in zip(images, labels.tolist(), strict=True):
            assert label not in found, "an image came twice"
            found[label] = image
    return found


def order(batches: Batches, seed: int, epoch: int) -> list[int]:
    return [label for _, labels in batches.training(NONE, seed, epoch) for label in labels.tolist()]


def levels_apart(one: Tensor, other: Tensor) -> float:
    """The largest difference between two normalised views, in levels of 255."""
    return float(((one - other).abs() * 255 * torch.tensor(STD).view(3, 1, 1)).max())
