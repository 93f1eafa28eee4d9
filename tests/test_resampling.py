"""Views of many images at once: by hand, and against torch's own resize of each image."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from finetune import resampling
from finetune.batches import cut, evaluation_view
from finetune.resampling import Axis, Views, crop_axes, evaluation_axes
from finetune.store import Split
from operations import Operations
from small_splits import channels_first, noise, oblong, split_of

CPU = torch.device("cpu")
ROUNDING = {True: 0.51, False: 0.75}  # of a level: in float32, and in float16 with its steps of 1/8 below 256


def pixels_of(split: Split) -> Tensor:
    return torch.from_numpy(split.pixels)


def views_of(images: list[np.ndarray], boxes: np.ndarray, size: int, flips: np.ndarray | None = None) -> Views:
    return Views(split_of(images).index, crop_axes(boxes, size), flips, size, CPU)


def resampled(images: list[np.ndarray], boxes: np.ndarray, size: int, exact: bool = True) -> Tensor:
    """The view of every image through its box."""
    everything = slice(0, len(images))
    return views_of(images, boxes, size).resample(pixels_of(split_of(images)), everything, exact)


def whole(images: list[np.ndarray]) -> np.ndarray:
    return np.array([(0, 0, *image.shape[:2]) for image in images], np.int64)


def grey(values: list[list[int]]) -> np.ndarray:
    return np.repeat(np.array(values, np.uint8)[:, :, None], 3, 2)


# By hand


def test_a_reduction_by_hand() -> None:
    # A triangle two pixels wide around 1.0 meets the pixels 0.5, 1.5, 2.5 with 3/4, 3/4, 1/4: 3/7, 3/7, 1/7.
    image = grey([[196, 0, 0, 0], [0, 0, 0, 0], [0, 147, 0, 0], [0, 0, 0, 0]])
    expected = [[36 + 9, 3], [27, 9]]  # 196 x 3/7 x 3/7; 147 x (1/7, 3/7) down and (3/7, 1/7) across
    (view,) = resampled([image], whole([image]), 2)
    assert all(channel.tolist() == expected for channel in view)


def test_an_enlargement_by_hand() -> None:
    # The centres 0.25, 0.75, 1.25, 1.75 lie between the pixels 0.5 and 1.5, or beyond them.
    image = grey([[0, 100], [100, 200]])
    expected = [[0, 25, 75, 100], [25, 50, 100, 125], [75, 100, 150, 175], [100, 125, 175, 200]]
    (view,) = resampled([image], whole([image]), 4)
    assert all(channel.tolist() == expected for channel in view)


def test_a_flip_by_hand() -> None:
    image = grey([[1, 2], [3, 4]])
    boxes = whole([image, image])
    views = views_of([image, image], boxes, 2, np.array([True, False]))
    mirrored, straight = views.resample(pixels_of(split_of([image, image])), slice(0, 2), True)
    assert mirrored[0].tolist() == [[2, 1], [4, 3]]
    assert straight[0].tolist() == [[1, 2], [3, 4]]


def test_what_lies_outside_of_the_image_is_black() -> None:
    image = grey([[10, 20], [30, 40]])
    (view,) = resampled([image], np.array([[-1, 1, 2, 4]]), 3)
    assert view[0].tolist() == [[0, 0, 0], [20, 0, 0], [40, 0, 0]]


def test_a_view_without_resizing_is_the_images_own_pixels_in_colour() -> None:
    images = noise(3)
    found = resampled(images, whole(images), 32)
    assert torch.equal(found, torch.stack([channels_first(image) for image in images]).float())


@pytest.mark.parametrize("exact", [True, False])
def test_views_are_whole_numbers_of_a_byte(exact: bool) -> None:
    images = [np.where(image > 127, 255, 0).astype(np.uint8) for image in noise(4, 40, 50)]
    found = resampled(images, whole(images), 32, exact)
    assert found.dtype == (torch.float32 if exact else torch.float16)
    assert torch.equal(found, found.round())
    assert (found.min(), found.max()) == (0, 255)


@pytest.mark.parametrize("exact", [True, False])
def test_white_stays_white_whatever_the_size(exact: bool) -> None:
    images = [np.full((height, 400 - height, 3), 255, np.uint8) for height in range(20, 380, 7)]
    assert resampled(images, whole(images), 33, exact).unique().tolist() == [255]


def test_an_axis_may_begin_at_a_later_pixel_of_the_result() -> None:
    image = grey([[0, 100], [100, 200]])
    lower_right = Axis(np.array([0]), np.array([2]), np.array([0.5]), np.array([2]))
    views = Views(split_of([image]).index, (lower_right, lower_right), None, 2, CPU)
    (view,) = views.resample(pixels_of(split_of([image])), slice(0, 1), True)
    assert view[0].tolist() == [[150, 175], [175, 200]]  # of the enlargement by hand


# Against torch's resize

CROPS = {
    "enlarged": (60, 70, (10, 20, 21, 33)),
    "reduced": (200, 230, (5, 10, 190, 220)),
    "reduced a lot": (400, 300, (0, 0, 400, 300)),
    "lying": (90, 200, (40, 3, 57, 190)),
    "upright": (200, 90, (3, 40, 190, 57)),
    "at the top left": (80, 100, (0, 0, 50, 44)),
    "at the bottom right": (80, 100, (30, 56, 80, 100)),
    "beyond the top left": (80, 100, (-12, -7, 40, 50)),
    "beyond the bottom right": (80, 100, (40, 50, 99, 103)),
    "beyond every side": (30, 40, (-5, -6, 37, 49)),
    "one pixel": (80, 100, (7, 9, 8, 10)),
}


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("size", [17, 64])
def test_crops_of_every_kind_at_once_are_those_of_torchs_antialiased_resize(size: int, exact: bool, flip: bool) -> None:
    images = [noise(1, height, width)[0] for height, width, _ in CROPS.values()]
    boxes = np.array([box for _, _, box in CROPS.values()])
    views = views_of(images, boxes, size, np.full(len(CROPS), flip))
    found = views.resample(pixels_of(split_of(images)), slice(0, len(CROPS)), exact)
    for name, image, box, view in zip(CROPS, images, boxes, found, strict=True):
        crop = cut(channels_first(image), box)
        floating, rounded = (
            interpolate(source[None], (size, size), mode="bilinear", antialias=True)[0]
            for source in (crop.float(), crop)
        )
        seen = view.flip(-1) if flip else view
        assert (seen - floating).abs().max() <= ROUNDING[exact], name
        assert (seen - rounded.float()).abs().max() <= 1, name


@pytest.mark.parametrize(("size", "crop_pct"), [(32, 0.875), (48, 1.0), (24, 0.6)])
def test_evaluation_views_are_those_of_the_host(size: int, crop_pct: float) -> None:
    images = [*oblong(30), noise(1, 250, 333)[0], noise(1, 333, 251)[0]]
    split = split_of(images)
    axes = evaluation_axes(split.index[:, 1:], size, round(size / crop_pct))
    found = Views(split.index, axes, None, size, CPU).resample(pixels_of(split), slice(0, len(images)), True)
    for image, view in zip(images, found, strict=True):
        assert (view - evaluation_view(image, size, crop_pct).float()).abs().max() <= 1


def test_an_evaluation_axis_is_rounded_as_torchvision_rounds() -> None:
    # 30 x 45 -> 28 x 42, of which rows 2 to 26 and columns 9 to 33; then 28 x 37 (37.33), its centre at 6.5: 6.
    down, across = evaluation_axes(np.array([[30, 45], [30, 40]]), 24, 28)
    assert (down.offsets.tolist(), across.offsets.tolist()) == ([2, 2], [9, 6])
    assert down.scales.tolist() == pytest.approx([30 / 28, 30 / 28])
    assert across.scales.tolist() == pytest.approx([45 / 42, 40 / 37])
    assert (down.lengths.tolist(), across.lengths.tolist()) == ([30, 30], [45, 40])


# Many at once


def test_more_images_than_are_gathered_at_once_are_each_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "_AT_ONCE", 128 * (32 * 32 + 2 * 16 * 32))  # of 128 images of 20 x 18 pixels
    images = noise(300, 20, 18)
    found = resampled(images, whole(images), 16)
    for i in (0, 127, 128, 129, 255, 256, 299):
        alone = resampled([images[i]], whole([images[i]]), 16)
        assert torch.equal(found[i], alone[0]), i


@pytest.mark.parametrize("at_once", [1, 20_000, 10**9])  # one image, 2 or 3, all
@pytest.mark.parametrize("exact", [True, False])
def test_in_however_many_parts_the_views_are_the_same(
    exact: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = oblong(11)
    boxes = whole(images) + np.array([-1, 2, 0, 1])
    expected = resampled(images, boxes, 16, exact)
    monkeypatch.setattr(resampling, "_AT_ONCE", at_once)
    assert torch.equal(resampled(images, boxes, 16, exact), expected)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("beyond", "most"), [(0, 21), (3, 23)])
def test_a_batch_takes_as_many_operations_as_the_module_says(beyond: int, most: int, exact: bool) -> None:
    for images in (oblong(3), oblong(300)):
        boxes = whole(images) + np.array([-beyond, 0, 0, beyond])
        views, pixels = views_of(images, boxes, 16, np.arange(len(images)) % 2 == 0), pixels_of(split_of(images))
        views.resample(pixels, slice(0, len(images)), exact)  # what is kept is made
        with Operations() as operations:
            views.resample(pixels, slice(0, len(images)), exact)
        assert len(operations.seen) <= most, operations.seen
    assert f"{most}" in str(resampling.__doc__)


@pytest.mark.parametrize("rows", [slice(0, 4), slice(3, 7), slice(6, 10), slice(2, 152)])
def test_rows_are_a_slice_of_the_views(rows: slice) -> None:
    images = oblong(160)
    generator = np.random.default_rng(0)
    flips, boxes = generator.random(160) < 0.5, whole(images) + np.array([-1, 2, 0, 1])
    views, pixels = views_of(images, boxes, 16, flips), pixels_of(split_of(images))
    everything = views.resample(pixels, slice(0, 160), True)
    assert (views.resample(pixels, rows, True) - everything[rows]).abs().max() <= 1
    assert len(views.resample(pixels, rows, True)) == rows.stop - rows.start


def test_a_slice_may_end_beyond_the_last_view() -> None:
    images = noise(5)
    views, pixels = views_of(images, whole(images), 16), pixels_of(split_of(images))
    assert torch.equal(views.resample(pixels, slice(3, 99), True), views.resample(pixels, slice(0, 5), True)[3:])


def test_the_pixels_of_other_images_do_not_show() -> None:
    images = [np.full((30, 30, 3), 255, np.uint8), np.full((9, 12, 3), 100, np.uint8), np.full((40, 8, 3), 7, np.uint8)]
    found = resampled(images, whole(images), 16)
    assert [view.unique().tolist() for view in found] == [[255], [100], [7]]
