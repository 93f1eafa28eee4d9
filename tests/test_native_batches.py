"""Views by this project's kernels for a CPU: the bits of PyTorch's."""

import numpy as np
import pytest
import torch

from finetune import kernel_library
from finetune.batches import Batches
from finetune.device import Feed
from finetune.native_batches import NativeBatches
from finetune.params import AugmentationParams, TrainingParams
from finetune.store import Split

pytestmark = [
    pytest.mark.skipif(not kernel_library.available(), reason="no C++ compiler"),
    pytest.mark.usefixtures("threads_put_back"),
]

CPU = torch.device("cpu")
CROP = AugmentationParams(name="random_resized_crop")
AUGMENTATIONS = {
    "none": AugmentationParams(name="none"),
    "crops": CROP,
    "tiny crops": AugmentationParams(name="random_resized_crop", scale=(0.001, 0.01), ratio=(0.2, 5.0)),
    "wide crops": AugmentationParams(name="random_resized_crop", ratio=(20.0, 30.0)),  # of some images next to nothing
    "padded": AugmentationParams(name="pad_crop", padding=4),
    "padded beyond the image": AugmentationParams(name="pad_crop", padding=60),
}


def split_of(sizes: list[tuple[int, int]]) -> Split:
    """Noise, and edges between black and white, of height x width, without a byte behind the last one."""
    made = np.random.default_rng(0)
    images = [made.integers(0, 256, (height, width, 3), np.uint8) for height, width in sizes]
    images[::2] = [np.where(image < 128, np.uint8(0), np.uint8(255)) for image in images[::2]]
    ends = np.cumsum([image.size for image in images])
    index = np.array([(end - image.size, *image.shape[:2]) for image, end in zip(images, ends, strict=True)], np.int64)
    return Split(np.concatenate([image.ravel() for image in images]), index, np.arange(len(images)))


SPLIT = split_of([(41, 60), (7, 5), (64, 64), (1, 1), (300, 31), (33, 200), (2, 90), (224, 224), (50, 3), (97, 96)])


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("size", [1, 5, 32, 96, 224])
def test_in_training_they_are_pytorchs(size: int, augmentation: str) -> None:
    common = SPLIT, size, 4, CPU, torch.channels_last, 0.875
    for epoch in range(5):
        drawn = AUGMENTATIONS[augmentation], 3, epoch
        pairs = zip(Batches(*common).training(*drawn), NativeBatches(*common).training(*drawn), strict=True)
        for (theirs, labels), (ours, our_labels) in pairs:
            assert torch.equal(theirs, ours)
            assert torch.equal(labels, our_labels)
            assert ours.stride() == theirs.stride()
            assert ours.dtype == torch.float32


@pytest.mark.parametrize("crop_pct", [0.5, 0.875, 1.0])
@pytest.mark.parametrize("size", [1, 32, 77])
def test_in_evaluation_they_are_pytorchs(size: int, crop_pct: float) -> None:
    common = SPLIT, size, 4, CPU, torch.channels_last, crop_pct
    for (theirs, _), (ours, _) in zip(Batches(*common).evaluation(), NativeBatches(*common).evaluation(), strict=True):
        assert torch.equal(theirs, ours)


def test_in_both_memory_formats() -> None:
    for layout in (torch.channels_last, torch.contiguous_format):
        common = SPLIT, 32, 4, CPU, layout, 0.875
        theirs, ours = (next(kind(*common).training(CROP, 0, 0))[0] for kind in (Batches, NativeBatches))
        assert torch.equal(theirs, ours)
        assert ours.is_contiguous(memory_format=layout)


def test_threads_change_nothing() -> None:
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        batches = NativeBatches(SPLIT, 32, 10, CPU, torch.channels_last, 0.875)
        found.append(next(batches.training(CROP, 0, 0))[0])
    assert all(torch.equal(one, found[0]) for one in found)


def test_a_training_by_the_kernels_is_fed_by_them() -> None:
    for kernels, kind in (("native", NativeBatches), ("torch", Batches)):
        recipe = TrainingParams.model_validate({"device": "cpu", "cpu_kernels": kernels})
        assert type(Feed(recipe).batches(SPLIT)) is kind
