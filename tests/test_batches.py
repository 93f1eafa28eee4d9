"""What the network is shown: order, crops, flips, resizing and normalisation, by hand and against torchvision."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from finetune.batches import (
    MEAN,
    STD,
    Batches,
    Box,
    Decisions,
    evaluation_view,
    normalise,
    pad_crop,
    random_resized_box,
    resize,
)
from finetune.params import AugmentationParams
from finetune.store import Split

SIDE = 32
PAD_CROP = AugmentationParams(name="pad_crop", padding=4)
RESIZED_CROP = AugmentationParams(name="random_resized_crop")
NONE = AugmentationParams(name="none")


def split_of(images: Sequence[np.ndarray]) -> Split:
    """A split of `images` whose label is the image's index."""
    sizes = [image.size for image in images]
    offsets = np.cumsum([0, *sizes[:-1]])
    index = np.array([(offset, *image.shape[:2]) for offset, image in zip(offsets, images, strict=True)], np.int64)
    return Split(np.concatenate([image.ravel() for image in images]), index, np.arange(len(images)))


def noise(images: int = 10, height: int = SIDE, width: int = SIDE) -> list[np.ndarray]:
    generator = np.random.default_rng(5)
    return [generator.integers(0, 256, (height, width, 3)).astype(np.uint8) for _ in range(images)]


def batches_of(split: Split, batch_size: int = 4, crop_pct: float = 1.0, size: int = SIDE) -> Batches:
    return Batches(split, size, batch_size, torch.device("cpu"), torch.contiguous_format, crop_pct)


def shown(batches: Batches, augmentation: AugmentationParams, seed: int, epoch: int) -> dict[int, torch.Tensor]:
    """Image index -> its training view."""
    found: dict[int, torch.Tensor] = {}
    for images, labels in batches.training(augmentation, seed, epoch):
        for image, label in zip(images, labels.tolist(), strict=True):
            assert label not in found, "an image came twice"
            found[label] = image
    return found


def order(batches: Batches, seed: int, epoch: int) -> list[int]:
    return [label for _, labels in batches.training(NONE, seed, epoch) for label in labels.tolist()]


def gradient(height: int, width: int) -> np.ndarray:
    """Smooth: no resizing moves it far."""
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([255 * rows, 255 * columns, 127 * (rows + columns)], -1).astype(np.uint8)


# Determinism: (seed, epoch, index) decides


@pytest.mark.parametrize("augmentation", [PAD_CROP, RESIZED_CROP])
def test_an_image_is_augmented_alike_whatever_the_batch_size(augmentation: AugmentationParams) -> None:
    split = split_of(noise(12))
    small, large = (shown(batches_of(split, size), augmentation, 3, 1) for size in (3, 12))
    assert all(torch.equal(small[i], large[i]) for i in range(12))


def test_the_order_is_the_same_whatever_the_batch_size() -> None:
    split = split_of(noise(12))
    assert order(batches_of(split, 3), 3, 1) == order(batches_of(split, 12), 3, 1)


@pytest.mark.parametrize("augmentation", [PAD_CROP, RESIZED_CROP])
def test_an_epoch_may_be_walked_again(augmentation: AugmentationParams) -> None:
    batches = batches_of(split_of(noise()), 5)
    first, second = (shown(batches, augmentation, 3, 1) for _ in range(2))
    assert all(torch.equal(first[i], second[i]) for i in range(10))


@pytest.mark.parametrize(("seed", "epoch"), [(3, 2), (4, 1)])
def test_another_epoch_or_seed_has_another_order(seed: int, epoch: int) -> None:
    batches = batches_of(split_of(noise(20)), 5)
    assert order(batches, seed, epoch) != order(batches, 3, 1)


@pytest.mark.parametrize("augmentation", [PAD_CROP, RESIZED_CROP])
@pytest.mark.parametrize(("seed", "epoch"), [(3, 2), (4, 1)])
def test_another_epoch_or_seed_shows_other_views(augmentation: AugmentationParams, seed: int, epoch: int) -> None:
    batches = batches_of(split_of(noise(20)), 5)
    here, there = shown(batches, augmentation, 3, 1), shown(batches, augmentation, seed, epoch)
    assert sum(torch.equal(here[i], there[i]) for i in range(20)) <= 4


@pytest.mark.parametrize("name", ["pad_crop", "random_resized_crop"])
def test_each_image_of_an_epoch_has_a_crop_of_its_own(name: Literal["pad_crop", "random_resized_crop"]) -> None:
    alike = noise(1) * 20
    views = shown(batches_of(split_of(alike), 5), AugmentationParams(name=name, flip=False), 3, 1)
    assert len({view.numpy().tobytes() for view in views.values()}) >= 15  # of 81 offsets two may be the same


# Coverage of an epoch


@pytest.mark.parametrize("batch_size", [2, 5, 10, 64])
def test_every_image_comes_once_per_training_epoch(batch_size: int) -> None:
    batches = batches_of(split_of(noise(10)), batch_size)
    assert sorted(order(batches, 0, 0)) == list(range(10))


def test_a_last_batch_of_one_is_left_out_of_training() -> None:
    batches = batches_of(split_of(noise(9)), 4)
    sizes = [len(labels) for _, labels in batches.training(NONE, 0, 0)]
    assert sizes == [4, 4]
    assert batches.training_steps() == 2


def test_who_is_left_out_changes_with_the_epoch() -> None:
    batches = batches_of(split_of(noise(9)), 4)
    left_out = {(set(range(9)) - set(order(batches, 0, epoch))).pop() for epoch in range(8)}
    assert len(left_out) > 1


def test_a_last_batch_of_two_is_trained_on() -> None:
    batches = batches_of(split_of(noise(6)), 4)
    assert [len(labels) for _, labels in batches.training(NONE, 0, 0)] == [4, 2]
    assert batches.training_steps() == 2


def test_evaluation_shows_every_image_in_the_stores_order_also_a_last_single_one() -> None:
    batches = batches_of(split_of(noise(9)), 4)
    labels = [labels.tolist() for _, labels in batches.evaluation()]
    assert labels == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert len(batches) == 3


# Flips


def test_about_half_are_flipped() -> None:
    flips = np.concatenate([Decisions.draw(PAD_CROP, 1000, 0, epoch).flips for epoch in range(10)])
    assert 0.48 < flips.mean() < 0.52  # four standard deviations


def test_each_image_is_flipped_in_about_half_of_the_epochs() -> None:
    flips = np.stack([Decisions.draw(PAD_CROP, 50, 0, epoch).flips for epoch in range(200)])
    assert flips.mean(0).min() > 0.3
    assert flips.mean(0).max() < 0.7


@pytest.mark.parametrize("name", ["pad_crop", "random_resized_crop"])
def test_no_flips_where_they_are_switched_off(name: Literal["pad_crop", "random_resized_crop"]) -> None:
    augmentation = AugmentationParams(name=name, flip=False)
    assert not Decisions.draw(augmentation, 1000, 0, 0).flips.any()


def test_a_flip_mirrors_left_and_right() -> None:
    augmentation = AugmentationParams(name="pad_crop", padding=0)
    images = noise(30)
    views = shown(batches_of(split_of(images), 30), augmentation, 0, 0)
    flips = Decisions.draw(augmentation, 30, 0, 0).flips
    assert 0 < flips.sum() < 30
    for i, image in enumerate(images):
        expected = image[:, ::-1] if flips[i] else image
        assert torch.equal(views[i], normalise(torch.from_numpy(expected.transpose(2, 0, 1).copy())[None])[0])


def test_without_augmentation_training_sees_what_evaluation_sees() -> None:
    batches = batches_of(split_of(noise(4)), 4, crop_pct=0.8)
    ((images, labels),) = batches.evaluation()
    views = shown(batches, NONE, 0, 0)
    assert all(torch.equal(views[label], image) for label, image in zip(labels.tolist(), images, strict=True))


# pad_crop


@pytest.mark.parametrize(
    ("uniforms", "top", "left"),
    [((0.0, 0.0), 0, 0), ((0.999, 0.0), 8, 0), ((0.5, 0.5), 4, 4), ((0.12, 0.99), 1, 8)],  # of 9 offsets
)
def test_pad_crop_cuts_the_padded_image(uniforms: tuple[float, float], top: int, left: int) -> None:
    (image,) = noise(1)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))  # black
    expected = padded[top : top + 32, left : left + 32].transpose(2, 0, 1)
    assert np.array_equal(pad_crop(image, 4, np.array(uniforms), 32).numpy(), expected)


def test_pad_crop_reaches_every_offset() -> None:
    uniforms = np.concatenate([Decisions.draw(PAD_CROP, 200, 0, epoch).uniforms for epoch in range(5)])
    offsets = {(int(a * 9), int(b * 9)) for a, b in uniforms}
    assert len(offsets) == 81


def test_pad_crop_of_an_oblong_image_takes_its_central_square() -> None:
    image = noise(1, 32, 48)[0]
    found = pad_crop(image, 4, np.array([0.5, 0.5]), 32)
    assert np.array_equal(found.numpy(), image[:, 8:40].transpose(2, 0, 1))


def test_pad_crop_pads_the_stored_image_and_resizes_last() -> None:
    view = pad_crop(np.full((32, 32, 3), 200, np.uint8), 4, np.array([0.0, 0.0]), 64)
    assert view.shape == (3, 64, 64)
    # 4 stored pixels of black above and on the left: 8 shown ones.
    assert view[:, :7].max() == 0
    assert view[:, :, :7].max() == 0
    assert view[:, 9:, 9:].min() == 200


# random_resized_crop


def boxes(height: int, width: int, augmentation: AugmentationParams, n: int = 3000) -> list[Box]:
    uniforms = Decisions.draw(augmentation, n, 0, 0).uniforms
    return [random_resized_box(height, width, augmentation, row) for row in uniforms]


@pytest.mark.parametrize(("height", "width"), [(256, 256), (200, 300), (300, 200)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.25, 0.5)])
def test_a_crop_lies_inside_with_area_and_ratio_within_limits(
    height: int, width: int, scale: tuple[float, float]
) -> None:
    for box in boxes(height, width, AugmentationParams(scale=scale)):
        h, w = box.bottom - box.top, box.right - box.left
        assert 0 <= box.top < box.bottom <= height
        assert 0 <= box.left < box.right <= width
        rounding = 1 / min(h, w)  # a side is a whole number of pixels
        assert scale[0] * (1 - 2 * rounding) <= h * w / (height * width) <= scale[1] * (1 + 2 * rounding)
        assert 3 / 4 * (1 - 2 * rounding) <= w / h <= 4 / 3 * (1 + 2 * rounding)


def test_crops_have_the_distribution_of_torchvisions() -> None:
    torch.manual_seed(0)
    blank = torch.empty(1, 200, 300)
    draw = v2.RandomResizedCrop(224).make_params
    theirs = np.array(
        [[p[k] for k in ("top", "left", "height", "width")] for p in (draw([blank]) for _ in range(3000))]
    )
    ours = np.array([(b.top, b.left, b.bottom - b.top, b.right - b.left) for b in boxes(200, 300, RESIZED_CROP)])
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        # Each is estimated from 3000 draws: a standard error of about 2 pixels here.
        assert np.abs(np.quantile(ours, quantile, axis=0) - np.quantile(theirs, quantile, axis=0)).max() <= 10


def test_a_crop_by_hand() -> None:
    # Area 0.08 + 0.5 x 0.92 = 0.54 of 10,000 is 5400; ratio exp(0) = 1: 73 x 73 of 100; 28 offsets.
    uniforms = np.zeros(40)
    uniforms[:4] = 0.5, 0.5, 0.25, 0.75
    assert random_resized_box(100, 100, RESIZED_CROP, uniforms) == Box(7, 21, 80, 94)


def test_a_try_that_does_not_fit_is_followed_by_the_next() -> None:
    # First: the whole area at ratio 4:3 is too wide for a square. Second: 0.54 at ratio 1, as above.
    uniforms = np.zeros(40)
    uniforms[:8] = 0.9999, 0.9999, 0, 0, 0.5, 0.5, 0, 0
    assert random_resized_box(100, 100, RESIZED_CROP, uniforms) == Box(0, 0, 73, 73)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (100, 400, Box(0, 133, 100, 266)),  # too wide: 100 x 4/3 = 133 of 400, the middle
        (400, 100, Box(133, 0, 266, 100)),  # too tall: 100 / (3/4) = 133
        (100, 110, Box(0, 0, 100, 110)),  # within the limits: all of it
    ],
)
def test_where_no_try_fits_the_largest_central_box_is_taken(height: int, width: int, expected: Box) -> None:
    # The whole area, at the ratio that the image is farthest from.
    uniforms = np.tile([1.0, 0.0 if width > height else 1.0, 0.0, 0.0], 10)
    whole = AugmentationParams(scale=(1.0, 1.0))
    assert random_resized_box(height, width, whole, uniforms) == expected


def test_a_crop_is_resized_to_the_networks_size() -> None:
    batches = batches_of(split_of(noise(4, 50, 70)), 4)
    ((images, _),) = batches.training(RESIZED_CROP, 0, 0)
    assert images.shape == (4, 3, SIDE, SIDE)


def test_the_pixels_of_a_crop_are_those_of_its_box() -> None:
    image = gradient(60, 80)
    augmentation = AugmentationParams(flip=False)
    box = random_resized_box(60, 80, augmentation, Decisions.draw(augmentation, 2, 7, 2).uniforms[0])
    crop = torch.from_numpy(image[box.top : box.bottom, box.left : box.right].transpose(2, 0, 1).copy())
    expected = v2.functional.resize(crop, [SIDE, SIDE], antialias=True)
    found = shown(batches_of(split_of([image, image]), 2), augmentation, 7, 2)[0]
    grey_levels = (found - normalise(expected[None])[0]).abs() * 255 * torch.tensor(STD).view(3, 1, 1)
    assert grey_levels.max() <= 1.01


# Evaluation

SIZES = [(32, 32), (256, 256), (64, 48), (250, 333), (333, 250), (375, 500), (301, 200), (427, 640)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("size", "crop_pct"), [(224, 0.875), (96, 1.0), (64, 0.9)])
def test_an_evaluation_view_is_torchvisions_resize_and_centre_crop(
    height: int, width: int, size: int, crop_pct: float
) -> None:
    image = noise(1, height, width)[0]
    theirs = v2.Compose([v2.Resize(round(size / crop_pct), antialias=True), v2.CenterCrop(size)])
    expected = theirs(torch.from_numpy(image.transpose(2, 0, 1).copy())).int()
    found = evaluation_view(image, size, crop_pct).int()
    assert int((found - expected).abs().max()) <= 2


@pytest.mark.parametrize(("height", "width"), [(256, 256), (250, 333), (375, 500)])
def test_an_evaluation_view_is_pils_too(height: int, width: int) -> None:
    image = noise(1, height, width)[0]
    theirs = v2.Compose([v2.Resize(109), v2.CenterCrop(96)])
    expected = np.asarray(theirs(Image.fromarray(image))).transpose(2, 0, 1).astype(int)
    assert np.abs(evaluation_view(image, 96, 0.88).numpy().astype(int) - expected).max() <= 2


def test_an_evaluation_view_is_uint8_and_square() -> None:
    view = evaluation_view(noise(1, 40, 50)[0], 32, 0.875)
    assert view.shape == (3, 32, 32)
    assert view.dtype == torch.uint8


def test_an_image_of_the_networks_size_is_shown_as_it_is() -> None:
    (image,) = noise(1)
    assert np.array_equal(evaluation_view(image, SIDE, 1.0).numpy(), image.transpose(2, 0, 1))


def test_pixels_that_must_not_be_written_to_are_viewed_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    (image,) = noise(1)
    image.flags.writeable = False
    evaluation_view(image, 16, 1.0)
    assert not [warning for warning in recwarn if "not writable" in str(warning.message)]


def test_resizing_to_the_same_size_changes_nothing() -> None:
    image = torch.from_numpy(noise(1)[0]).permute(2, 0, 1)
    assert torch.equal(resize(image, SIDE), image)


# Normalisation and layout


def test_normalisation_by_hand() -> None:
    images = torch.tensor([0, 255, 128], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = [(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (128 / 255 - 0.406) / 0.225]
    assert normalise(images).flatten().tolist() == pytest.approx(expected, rel=1e-5)
    assert normalise(images).dtype == torch.float32


def test_mean_and_deviation_are_those_of_torchvisions_weights() -> None:
    from torchvision.models import MobileNet_V2_Weights

    preset = MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    assert (list(MEAN), list(STD)) == (preset.mean, preset.std)


def test_normalisation_leaves_its_input_alone() -> None:
    images = torch.full((1, 3, 2, 2), 9, dtype=torch.uint8)
    normalise(images)
    assert (images == 9).all()


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_batches_are_float_in_the_memory_format_asked_for(layout: torch.memory_format) -> None:
    batches = Batches(split_of(noise(4)), SIDE, 4, torch.device("cpu"), layout, 1.0)
    for images, labels in (next(iter(batches.training(PAD_CROP, 0, 0))), next(iter(batches.evaluation()))):
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=layout)
        assert labels.dtype == torch.int64
