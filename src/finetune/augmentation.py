"""What part of each image a training epoch sees: crop boxes and flips, decided for all images at once.

They depend on (seed, epoch, index of the image) alone: never on the batch size, the device, the other images, or how
far a run had come before it was interrupted.
"""

from dataclasses import dataclass

import numpy as np

from finetune.params import AugmentationParams

_TRIES = 10  # of random_resized_crop, as torchvision's


@dataclass(frozen=True)
class Crops:
    """The views of one epoch; image i's is row i, whatever the order they are trained in."""

    boxes: np.ndarray  # int64, images x 4: top, left, bottom, right in pixels; what lies outside the image is black
    flips: np.ndarray  # bool, images: mirrored left to right


def epoch_order(images: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which an epoch trains on `images` images: int64 indices."""
    return np.random.default_rng((seed, epoch)).permutation(images)


def draw(augmentation: AugmentationParams, sizes: np.ndarray, seed: int, epoch: int) -> Crops | None:
    """The crops of (seed, epoch); None for augmentation `none`, whose images are seen as in evaluation.

    Args:
        sizes: int64, images x 2: height, width of each image as it is stored.
    """
    if augmentation.name == "none":
        return None
    # Two streams, each drawn image after image: so what an image gets does not depend on how many follow it.
    for_flips, for_boxes = (np.random.default_rng((seed, epoch, stream)) for stream in (1, 3))  # 2 is that of mixing
    flips = (for_flips.random(len(sizes)) < 0.5) & augmentation.flip
    if augmentation.name == "pad_crop":
        return Crops(pad_crop_boxes(sizes, augmentation.padding, for_boxes.random((len(sizes), 2))), flips)
    uniforms = for_boxes.random((len(sizes), 4 * _TRIES))
    return Crops(random_resized_boxes(sizes, augmentation.scale, augmentation.ratio, uniforms), flips)


def random_resized_boxes(
    sizes: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float], uniforms: np.ndarray
) -> np.ndarray:
    """The crops of torchvision's RandomResizedCrop (Szegedy et al. 2015, arXiv 1409.4842) from given random numbers.

    Args:
        sizes: int64, images x 2.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width : height.
        uniforms: in [0, 1), images x (4 x tries), 4 a try: area, aspect, top, left.

    Returns:
        int64, images x 4. Of an image's tries the first that fits counts; where none fits, the largest central box
        within the ratio's limits, or a pixel high or wide.
    """
    area, aspect, down, across = np.moveaxis(uniforms.reshape(len(sizes), -1, 4), -1, 0)
    height, width = sizes[:, :1], sizes[:, 1:]
    low, high = np.log(ratio)
    target = height * width * (scale[0] + area * (scale[1] - scale[0]))
    shape = np.exp(low + aspect * (high - low))
    w, h = np.rint(np.sqrt(target * shape)), np.rint(np.sqrt(target / shape))
    top, left = np.floor(down * (height - h + 1)), np.floor(across * (width - w + 1))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.argmax(1)[:, None]
    tried = np.stack([np.take_along_axis(a, first, 1)[:, 0] for a in (top, left, top + h, left + w)], 1)
    return np.where(fits.any(1)[:, None], tried, _central_boxes(sizes, ratio)).astype(np.int64)


def pad_crop_boxes(sizes: np.ndarray, padding: int, uniforms: np.ndarray) -> np.ndarray:
    """CIFAR's customary crop: a square of the image's short side, moved from its centre by up to `padding` pixels.

    Args:
        sizes: int64, images x 2.
        uniforms: in [0, 1), images x 2: down, across.

    Returns:
        int64, images x 4; a box may reach outside its image.
    """
    side = sizes.min(1, keepdims=True)
    start = (sizes - side) // 2 - padding + np.floor(uniforms * (2 * padding + 1)).astype(np.int64)
    return np.concatenate([start, start + side], 1)


def _central_boxes(sizes: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
    height, width = sizes[:, 0], sizes[:, 1]
    h = np.where(width / height < ratio[0], np.rint(width / ratio[0]).clip(1), height)
    w = np.where(width / height > ratio[1], np.rint(height * ratio[1]).clip(1), width)
    top, left = (height - h) // 2, (width - w) // 2
    return np.stack([top, left, top + h, left + w], 1)
