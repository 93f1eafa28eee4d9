"""What the network is shown, batch by batch: order, coverage of an epoch, crops, flips and layout."""

from typing import Literal

import pytest
import torch
from torchvision.transforms import v2

from finetune.augmentation import draw
from finetune.batches import Batches, normalise
from finetune.params import AugmentationParams
from finetune.store import Split
from small_splits import (
    NONE,
    PAD_CROP,
    RESIZED_CROP,
    channels_first,
    gradient,
    levels_apart,
    noise,
    order,
    shown,
    split_of,
)

SIDE = 32


def batches_of(split: Split, batch_size: int = 4, crop_pct: float = 1.0, size: int = SIDE) -> Batches:
    return Batches(split, size, batch_size, torch.device("cpu"), torch.contiguous_format, crop_pct)


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


# Resuming within an epoch


@pytest.mark.parametrize("augmentation", [PAD_CROP, RESIZED_CROP, NONE])
@pytest.mark.parametrize("first", [1, 2])
def test_an_epoch_begun_at_a_step_gives_the_batches_of_the_whole_one_from_there(
    augmentation: AugmentationParams, first: int
) -> None:
    batches = batches_of(split_of(noise(10)), 4)
    whole = list(batches.training(augmentation, 3, 1))
    rest = list(batches.training(augmentation, 3, 1, first=first))
    assert len(rest) == 3 - first
    for (images, labels), (same, expected) in zip(rest, whole[first:], strict=True):
        assert torch.equal(images, same)
        assert torch.equal(labels, expected)


@pytest.mark.parametrize(("images", "steps"), [(8, 2), (9, 2), (10, 3)])
def test_an_epoch_begun_after_its_last_step_has_no_batches(images: int, steps: int) -> None:
    assert list(batches_of(split_of(noise(images)), 4).training(PAD_CROP, 0, 0, first=steps)) == []


def test_no_image_of_an_earlier_step_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_of(noise(10))
    batches = batches_of(split, 4)
    wanted = order(batches, 3, 1)[8:]
    read: list[int] = []
    image = Split.image
    monkeypatch.setattr(Split, "image", lambda self, i: read.append(i) or image(self, i))
    list(batches.training(PAD_CROP, 3, 1, first=2))
    assert read == wanted


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


# Views


def test_a_flip_mirrors_left_and_right() -> None:
    augmentation = AugmentationParams(name="pad_crop", padding=0)
    split = split_of(noise(30))
    views = shown(batches_of(split, 30), augmentation, 0, 0)
    crops = draw(augmentation, split.index[:, 1:], 0, 0)
    assert crops is not None
    assert 0 < crops.flips.sum() < 30
    for i in range(30):
        expected = split.image(i)[:, ::-1] if crops.flips[i] else split.image(i)
        assert torch.equal(views[i], normalise(channels_first(expected)[None])[0])


def test_without_augmentation_training_sees_what_evaluation_sees() -> None:
    batches = batches_of(split_of(noise(4)), 4, crop_pct=0.8)
    ((images, labels),) = batches.evaluation()
    views = shown(batches, NONE, 0, 0)
    assert all(torch.equal(views[label], image) for label, image in zip(labels.tolist(), images, strict=True))


def test_a_crop_is_resized_to_the_networks_size() -> None:
    batches = batches_of(split_of(noise(4, 50, 70)), 4)
    ((images, _),) = batches.training(RESIZED_CROP, 0, 0)
    assert images.shape == (4, 3, SIDE, SIDE)


def test_the_pixels_of_a_crop_are_those_of_its_box() -> None:
    image = gradient(60, 80)
    augmentation = AugmentationParams(flip=False)
    split = split_of([image, image])
    crops = draw(augmentation, split.index[:, 1:], 7, 2)
    assert crops is not None
    views = shown(batches_of(split, 2), augmentation, 7, 2)
    for i, (top, left, bottom, right) in enumerate(crops.boxes.tolist()):
        crop = channels_first(image[top:bottom, left:right])
        expected = v2.functional.resize(crop, [SIDE, SIDE], antialias=True)
        assert levels_apart(views[i], normalise(expected[None])[0]) <= 1.01


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_batches_are_float_in_the_memory_format_asked_for(layout: torch.memory_format) -> None:
    batches = Batches(split_of(noise(4)), SIDE, 4, torch.device("cpu"), layout, 1.0)
    for images, labels in (next(iter(batches.training(PAD_CROP, 0, 0))), next(iter(batches.evaluation()))):
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=layout)
        assert labels.dtype == torch.int64
