"""Batches made on the device show what those made on the host show, from resident and from streamed pixels."""

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from finetune import resampling
from finetune.batches import Batches, DeviceBatches
from finetune.params import AugmentationParams
from finetune.resampling import Views
from finetune.store import Split
from operations import Operations
from small_splits import NONE, PAD_CROP, RESIZED_CROP, levels_apart, noise, oblong, split_of

AUGMENTATIONS = [PAD_CROP, RESIZED_CROP, NONE]
CPU = torch.device("cpu")
WAYS = ["resident", "streamed"]

Batch = tuple[Tensor, Tensor]


def host(split: Split, batch_size: int = 4, size: int = 24, crop_pct: float = 0.8) -> Batches:
    return Batches(split, size, batch_size, CPU, torch.channels_last, crop_pct)


def device(
    split: Split,
    way: str,
    batch_size: int = 4,
    size: int = 24,
    layout: torch.memory_format = torch.channels_last,
    exact: bool = True,
) -> DeviceBatches:
    pixels = torch.from_numpy(split.pixels) if way == "resident" else None
    return DeviceBatches(split, size, batch_size, CPU, layout, 0.8, pixels, exact)


def assert_alike(found: Iterator[Batch], expected: Iterator[Batch], levels: float) -> None:
    for (images, labels), (same, order) in zip(found, expected, strict=True):
        assert labels.tolist() == order.tolist()
        assert images.shape == same.shape
        assert levels_apart(images, same) <= levels


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("exact", [True, False])
def test_training_shows_the_hosts_views_in_the_hosts_order(
    augmentation: AugmentationParams, way: str, exact: bool
) -> None:
    split = split_of(oblong(26))  # six whole batches, more than are gathered ahead, and two images
    found = device(split, way, exact=exact).training(augmentation, 3, 1)
    assert_alike(found, host(split).training(augmentation, 3, 1), levels=1.01)


@pytest.mark.parametrize("way", WAYS)
def test_evaluation_shows_the_hosts_views_in_the_stores_order(way: str) -> None:
    split = split_of(oblong(9))
    assert_alike(device(split, way).evaluation(), host(split).evaluation(), levels=1.01)
    assert [labels.tolist() for _, labels in device(split, way).evaluation()] == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


@pytest.mark.parametrize("way", WAYS)
def test_where_nothing_is_resized_the_views_are_the_hosts_bit_for_bit(way: str) -> None:
    split = split_of(noise(10, 24, 24))
    assert_alike(device(split, way).training(PAD_CROP, 3, 1), host(split).training(PAD_CROP, 3, 1), levels=0)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("batch_size", [5, 140])  # 140: two goes of the resampling
def test_resident_and_streamed_pixels_give_the_same_bits(
    augmentation: AugmentationParams, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resampling, "_AT_ONCE", 128 * (80 * 80 + 2 * 16 * 80))  # of 128 images of up to 80 pixels
    split = split_of(oblong(27 if batch_size == 5 else 145))
    for resident, streamed in zip(
        *(device(split, way, batch_size, 16).training(augmentation, 3, 1) for way in WAYS), strict=True
    ):
        assert torch.equal(resident[0], streamed[0])
        assert torch.equal(resident[1], streamed[1])


def test_images_that_lie_in_another_order_or_far_apart_in_the_file_are_found() -> None:
    # As validation's do, which are rows of the training file.
    all_of = split_of(oblong(30))
    rows = [29, 3, 17, 4, 0, 11]
    some = Split(all_of.pixels, all_of.index[rows], all_of.labels[rows])
    for way in WAYS:
        assert_alike(device(some, way).evaluation(), host(some).evaluation(), levels=1.01)
        assert_alike(device(some, way).training(PAD_CROP, 0, 0), host(some).training(PAD_CROP, 0, 0), levels=1.01)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("images", "sizes"), [(9, [4, 4]), (10, [4, 4, 2]), (3, [3]), (8, [4, 4]), (1, [1])])
def test_a_last_batch_is_smaller_and_one_of_a_single_image_is_left_out_of_training(
    images: int, sizes: list[int], way: str
) -> None:
    batches = device(split_of(noise(images)), way)
    assert [len(labels) for _, labels in batches.training(PAD_CROP, 0, 0)] == sizes
    assert batches.training_steps() == len(sizes)


@pytest.mark.parametrize("way", WAYS)
def test_a_split_without_images_has_no_batches(way: str) -> None:
    split = split_of(noise(2))
    empty = Split(split.pixels, split.index[:0], split.labels[:0])
    assert list(device(empty, way).evaluation()) == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_batches_are_float_in_the_memory_format_asked_for(way: str, layout: torch.memory_format) -> None:
    batches = device(split_of(noise(6)), way, layout=layout)
    for images, labels in (*batches.training(RESIZED_CROP, 0, 0), *batches.evaluation()):
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=layout)
        assert labels.dtype == torch.int64


@pytest.mark.parametrize("way", WAYS)
def test_an_epoch_may_be_walked_again(way: str) -> None:
    batches = device(split_of(oblong(12)), way)
    first, second = (list(batches.training(RESIZED_CROP, 3, 1)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))
    assert all(torch.equal(one[0], other[0]) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("first", [1, 5])  # of seven, of which three are gathered ahead
def test_an_epoch_begun_at_a_step_gives_the_batches_of_the_whole_one_from_there(
    augmentation: AugmentationParams, way: str, first: int
) -> None:
    batches = device(split_of(oblong(26)), way)
    whole = list(batches.training(augmentation, 3, 1))
    rest = list(batches.training(augmentation, 3, 1, first=first))
    assert len(rest) == 7 - first
    for (images, labels), (same, expected) in zip(rest, whole[first:], strict=True):
        assert torch.equal(images, same)
        assert torch.equal(labels, expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("images", "steps"), [(8, 2), (9, 2), (10, 3)])
def test_an_epoch_begun_after_its_last_step_has_no_batches(images: int, steps: int, way: str) -> None:
    assert list(device(split_of(noise(images)), way).training(PAD_CROP, 0, 0, first=steps)) == []


@pytest.mark.parametrize("way", WAYS)
def test_no_view_of_an_earlier_step_is_made(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resampled: list[int] = []
    resample = Views.resample

    def counted(self: Views, pixels: Tensor, rows: slice, exact: bool) -> Tensor:
        resampled.append(rows.stop - rows.start)
        return resample(self, pixels, rows, exact)

    monkeypatch.setattr(Views, "resample", counted)
    list(device(split_of(noise(10)), way).training(PAD_CROP, 3, 1, first=1))
    assert resampled == [4, 2]


def test_no_pixel_of_an_earlier_step_is_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = device(split_of(noise(10)), "streamed")
    wanted = [label for _, labels in batches.training(PAD_CROP, 3, 1) for label in labels.tolist()][8:]
    read: list[int] = []
    put = Split.put
    monkeypatch.setattr(Split, "put", lambda self, i, into: read.append(i) or put(self, i, into))
    list(batches.training(PAD_CROP, 3, 1, first=2))
    assert read == wanted


def test_an_epoch_that_is_not_walked_to_its_end_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    batches = device(split_of(noise(30)), "streamed", batch_size=2).training(PAD_CROP, 0, 0)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


@pytest.mark.parametrize(("augmentation", "most"), [(RESIZED_CROP, 24), (NONE, 24), (PAD_CROP, 26)])
@pytest.mark.parametrize("exact", [True, False])
def test_a_batch_takes_two_dozen_operations_whatever_its_size(
    augmentation: AugmentationParams, exact: bool, most: int
) -> None:
    for batch_size in (3, 200):
        batches = device(split_of(oblong(200)), "resident", batch_size, 16, exact=exact)
        next(batches.training(augmentation, 0, 0))  # what is kept is made
        with Operations() as operations:
            next(batches.training(augmentation, 0, 0))
        assert len(operations.seen) <= most, operations.seen
