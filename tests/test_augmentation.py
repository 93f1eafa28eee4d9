"""Crop boxes and flips: by hand, against torchvision's distribution, and what they do not depend on."""

from typing import Literal

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from finetune.augmentation import Crops, draw, pad_crop_boxes, random_resized_boxes
from finetune.params import AugmentationParams
from small_splits import NONE, PAD_CROP, RESIZED_CROP

SCALE, RATIO = RESIZED_CROP.scale, RESIZED_CROP.ratio


def sizes_of(images: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.tile(np.array([[height, width]], np.int64), (images, 1))


def drawn(augmentation: AugmentationParams, sizes: np.ndarray, seed: int = 0, epoch: int = 0) -> Crops:
    crops = draw(augmentation, sizes, seed, epoch)
    assert crops is not None
    return crops


def resized(height: int, width: int, uniforms: np.ndarray, scale: tuple[float, float] = SCALE) -> list[int]:
    """The box of one image."""
    return random_resized_boxes(sizes_of(1, height, width), scale, RATIO, uniforms[None])[0].tolist()


# What decides: (seed, epoch, index)


@pytest.mark.parametrize("augmentation", [PAD_CROP, RESIZED_CROP])
def test_crops_may_be_drawn_again(augmentation: AugmentationParams) -> None:
    first, second = (drawn(augmentation, sizes_of(50, 40, 60), 3, 1) for _ in range(2))
    assert np.array_equal(first.boxes, second.boxes)
    assert np.array_equal(first.flips, second.flips)


@pytest.mark.parametrize("augmentation", [PAD_CROP, RESIZED_CROP])
@pytest.mark.parametrize(("seed", "epoch"), [(3, 2), (4, 1)])
def test_another_epoch_or_seed_has_other_crops_and_flips(
    augmentation: AugmentationParams, seed: int, epoch: int
) -> None:
    here, there = drawn(augmentation, sizes_of(50), 3, 1), drawn(augmentation, sizes_of(50), seed, epoch)
    assert (here.boxes == there.boxes).all(1).sum() <= 5  # of 81 offsets two may be the same
    assert 5 < (here.flips != there.flips).sum() < 45


@pytest.mark.parametrize("augmentation", [PAD_CROP, RESIZED_CROP])
def test_an_images_crop_does_not_depend_on_the_sizes_of_others(augmentation: AugmentationParams) -> None:
    alike, mixed = sizes_of(20, 40, 60), sizes_of(20, 40, 60)
    mixed[::2] = 300, 31
    here, there = drawn(augmentation, alike, 3, 1), drawn(augmentation, mixed, 3, 1)
    assert np.array_equal(here.boxes[1::2], there.boxes[1::2])
    assert not (here.boxes[::2] == there.boxes[::2]).all(1).any()
    assert np.array_equal(here.flips, there.flips)


@pytest.mark.parametrize("augmentation", [PAD_CROP, RESIZED_CROP])
def test_what_is_drawn_for_an_image_depends_on_seed_epoch_and_index_alone(augmentation: AugmentationParams) -> None:
    all_, first = (drawn(augmentation, sizes_of(images), 3, 1) for images in (50, 20))
    assert np.array_equal(all_.boxes[:20], first.boxes)
    assert np.array_equal(all_.flips[:20], first.flips)


def test_flips_and_boxes_are_drawn_from_streams_of_their_own() -> None:
    crops = drawn(AugmentationParams(name="pad_crop", padding=100), sizes_of(1000))
    upwards = crops.boxes[:, 0] < 0  # by the first number of an image's two: were they the flips', every other flip
    assert 100 < (crops.flips[::2] == upwards[:500]).sum() < 400


def test_without_augmentation_nothing_is_drawn() -> None:
    assert draw(NONE, sizes_of(3), 0, 0) is None


# Flips


def test_about_half_are_flipped() -> None:
    flips = np.concatenate([drawn(PAD_CROP, sizes_of(1000), epoch=epoch).flips for epoch in range(10)])
    assert 0.48 < flips.mean() < 0.52  # four standard deviations


def test_each_image_is_flipped_in_about_half_of_the_epochs() -> None:
    flips = np.stack([drawn(PAD_CROP, sizes_of(50), epoch=epoch).flips for epoch in range(200)])
    assert flips.mean(0).min() > 0.3
    assert flips.mean(0).max() < 0.7


@pytest.mark.parametrize("name", ["pad_crop", "random_resized_crop"])
def test_no_flips_where_they_are_switched_off_and_the_same_boxes(
    name: Literal["pad_crop", "random_resized_crop"],
) -> None:
    off, on = (drawn(AugmentationParams(name=name, flip=flip), sizes_of(1000)) for flip in (False, True))
    assert not off.flips.any()
    assert on.flips.any()
    assert np.array_equal(off.boxes, on.boxes)


# pad_crop


@pytest.mark.parametrize(
    ("uniforms", "top", "left"),
    [((0.0, 0.0), -4, -4), ((0.999, 0.0), 4, -4), ((0.5, 0.5), 0, 0), ((0.12, 0.99), -3, 4)],  # of 9 offsets
)
def test_pad_crop_moves_the_image_by_up_to_its_padding(uniforms: tuple[float, float], top: int, left: int) -> None:
    box = pad_crop_boxes(sizes_of(1), 4, np.array([uniforms]))[0]
    assert box.tolist() == [top, left, top + 32, left + 32]


def test_pad_crop_reaches_every_offset_and_no_other() -> None:
    boxes = np.concatenate([drawn(PAD_CROP, sizes_of(200), epoch=epoch).boxes for epoch in range(5)])
    assert {(top, left) for top, left in boxes[:, :2].tolist()} == {(a, b) for a in range(-4, 5) for b in range(-4, 5)}


def test_pad_crop_offsets_are_equally_frequent() -> None:
    tops = drawn(PAD_CROP, sizes_of(9000)).boxes[:, 0]
    counts = np.bincount(tops + 4, minlength=9)
    assert 850 < counts.min() < counts.max() < 1150  # about five standard deviations


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (32, 48, [0, 8, 32, 40]),
        (48, 32, [8, 0, 40, 32]),
        (33, 48, [0, 7, 33, 40]),  # of the 15 pixels beside the square 7 lie on the left
    ],
)
def test_pad_crop_of_an_oblong_image_is_its_central_square(height: int, width: int, expected: list[int]) -> None:
    assert pad_crop_boxes(sizes_of(1, height, width), 4, np.full((1, 2), 0.5))[0].tolist() == expected


def test_pad_crop_moves_the_square_of_an_oblong_image_along_both_sides() -> None:
    ends = np.array([[0.0, 0.0], [0.999, 0.999]])
    boxes = pad_crop_boxes(sizes_of(2, 32, 48), 4, ends)
    assert boxes.tolist() == [[-4, 4, 28, 36], [4, 12, 36, 44]]


def test_pad_crop_without_padding_moves_nothing() -> None:
    boxes = drawn(AugmentationParams(name="pad_crop", padding=0), sizes_of(100, 40, 32)).boxes
    assert (boxes == [4, 0, 36, 32]).all()


# random_resized_crop


@pytest.mark.parametrize(("height", "width"), [(256, 256), (200, 300), (300, 200)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.25, 0.5)])
def test_a_crop_lies_inside_with_area_and_ratio_within_limits(
    height: int, width: int, scale: tuple[float, float]
) -> None:
    boxes = drawn(AugmentationParams(scale=scale), sizes_of(3000, height, width)).boxes
    top, left, bottom, right = boxes.T
    h, w = bottom - top, right - left
    assert ((top >= 0) & (top < bottom) & (bottom <= height)).all()
    assert ((left >= 0) & (left < right) & (right <= width)).all()
    rounding = 1 / np.minimum(h, w)  # a side is a whole number of pixels
    share, ratio = h * w / (height * width), w / h
    assert ((scale[0] * (1 - 2 * rounding) <= share) & (share <= scale[1] * (1 + 2 * rounding))).all()
    assert ((3 / 4 * (1 - 2 * rounding) <= ratio) & (ratio <= 4 / 3 * (1 + 2 * rounding))).all()


def test_crops_have_the_distribution_of_torchvisions() -> None:
    torch.manual_seed(0)
    blank = torch.empty(1, 200, 300)
    make = v2.RandomResizedCrop(224).make_params
    theirs = np.array(
        [[p[k] for k in ("top", "left", "height", "width")] for p in (make([blank]) for _ in range(3000))]
    )
    top, left, bottom, right = drawn(RESIZED_CROP, sizes_of(3000, 200, 300)).boxes.T
    ours = np.stack([top, left, bottom - top, right - left], 1)
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        # Each is estimated from 3000 draws: a standard error of about 2 pixels here.
        assert np.abs(np.quantile(ours, quantile, axis=0) - np.quantile(theirs, quantile, axis=0)).max() <= 10


def test_a_crop_by_hand() -> None:
    # Area 0.08 + 0.5 x 0.92 = 0.54 of 10,000 is 5400; ratio exp(0) = 1: 73 x 73 of 100; 28 offsets.
    uniforms = np.zeros(40)
    uniforms[:4] = 0.5, 0.5, 0.25, 0.75
    assert resized(100, 100, uniforms) == [7, 21, 80, 94]


def test_an_oblong_crop_by_hand() -> None:
    # A quarter of 60,000 is 15,000; ratio 4/3: width sqrt(20,000) = 141, height sqrt(11,250) = 106.
    uniforms = np.zeros(40)
    uniforms[:4] = 0.0, 1.0, 0.5, 0.5  # 95 and 160 offsets
    assert resized(200, 300, uniforms, scale=(0.25, 1.0)) == [47, 80, 153, 221]


def test_a_try_that_does_not_fit_is_followed_by_the_next() -> None:
    # First: the whole area at ratio 4:3 is too wide for a square. Second: 0.54 at ratio 1, as above.
    uniforms = np.zeros(40)
    uniforms[:8] = 0.9999, 0.9999, 0, 0, 0.5, 0.5, 0, 0
    assert resized(100, 100, uniforms) == [0, 0, 73, 73]


def test_the_last_try_counts_too() -> None:
    uniforms = np.tile([0.9999, 0.9999, 0.0, 0.0], 10)
    uniforms[-4:] = 0.5, 0.5, 0, 0
    assert resized(100, 100, uniforms) == [0, 0, 73, 73]


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (100, 400, [0, 133, 100, 266]),  # too wide: 100 x 4/3 = 133 of 400, the middle
        (400, 100, [133, 0, 266, 100]),  # too tall: 100 / (3/4) = 133
        (100, 110, [0, 0, 100, 110]),  # within the limits: all of it
        (10, 1, [4, 0, 5, 1]),  # 1 / (3/4) = 1 of 10
    ],
)
def test_where_no_try_fits_the_largest_central_box_is_taken(height: int, width: int, expected: list[int]) -> None:
    # The whole area, at the ratio that the image is farthest from.
    uniforms = np.tile([1.0, 0.0 if width > height else 1.0, 0.0, 0.0], 10)
    assert resized(height, width, uniforms, scale=(1.0, 1.0)) == expected


def test_the_largest_central_box_has_at_least_a_pixel() -> None:
    nothing_fits = np.tile([1.0, 1.0, 0.0, 0.0], 10)[None]
    for size, ratio in (((10, 1), (20.0, 30.0)), ((1, 10), (1 / 30, 1 / 20))):
        [[top, left, bottom, right]] = random_resized_boxes(np.array([size]), (1.0, 1.0), ratio, nothing_fits)
        assert (bottom - top, right - left) == (1, 1)


def test_images_of_many_sizes_at_once_have_the_crops_of_each_alone() -> None:
    generator = np.random.default_rng(1)
    sizes = generator.integers(20, 400, (200, 2))
    sizes[:20, 0] = 1000  # where no try fits
    uniforms = generator.random((200, 40))
    together = random_resized_boxes(sizes, (0.5, 1.0), RATIO, uniforms)
    assert together.dtype == np.int64
    for (height, width), row, box in zip(sizes.tolist(), uniforms, together, strict=True):
        assert resized(height, width, row, scale=(0.5, 1.0)) == box.tolist()
