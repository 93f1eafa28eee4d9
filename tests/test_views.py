"""One view of one image: cutting, resizing and normalisation, by hand and against torchvision."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from finetune.augmentation import pad_crop_boxes
from finetune.batches import MEAN, STD, cut, evaluation_view, normalise, resize
from small_splits import channels_first, noise

# Cutting


@pytest.mark.parametrize(
    ("uniforms", "top", "left"),
    [((0.0, 0.0), 0, 0), ((0.999, 0.0), 8, 0), ((0.5, 0.5), 4, 4), ((0.12, 0.99), 1, 8)],  # of 9 offsets
)
def test_pad_crop_cuts_the_padded_image(uniforms: tuple[float, float], top: int, left: int) -> None:
    (image,) = noise(1)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))  # black
    (box,) = pad_crop_boxes(np.array([[32, 32]]), 4, np.array([uniforms]))
    assert torch.equal(cut(channels_first(image), box), channels_first(padded[top : top + 32, left : left + 32]))


def test_pad_crop_shows_where_an_oblong_image_continues_and_black_only_outside_of_it() -> None:
    image = noise(1, 32, 48)[0]
    (box,) = pad_crop_boxes(np.array([[32, 48]]), 4, np.array([[0.999, 0.999]]))
    found = cut(channels_first(image), box)
    assert torch.equal(found[:, :28], channels_first(image[4:, 12:44]))  # the central square is columns 8 to 40
    assert found[:, 28:].eq(0).all()
    assert found.shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 2, 2), [[1, 2], [4, 5]]),
        ((1, 1, 2, 3), [[5, 6]]),
        ((-1, -1, 1, 2), [[0, 0, 0], [0, 1, 2]]),
        ((1, 2, 3, 5), [[6, 0, 0], [0, 0, 0]]),
        ((-1, 1, 3, 2), [[0], [2], [5], [0]]),
    ],
)
def test_a_cut_by_hand(box: tuple[int, ...], expected: list[list[int]]) -> None:
    image = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.uint8).expand(3, 2, 3)
    found = cut(image, np.array(box))
    assert all(channel.tolist() == expected for channel in found)


def test_pad_crop_pads_the_stored_image_and_resizes_last() -> None:
    white = torch.full((3, 32, 32), 200, dtype=torch.uint8)
    view = resize(cut(white, np.array([-4, -4, 28, 28])), 64)
    assert view.shape == (3, 64, 64)
    # 4 stored pixels of black above and on the left: 8 shown ones.
    assert view[:, :7].max() == 0
    assert view[:, :, :7].max() == 0
    assert view[:, 9:, 9:].min() == 200


# Evaluation

SIZES = [(32, 32), (256, 256), (64, 48), (250, 333), (333, 250), (375, 500), (301, 200), (427, 640)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("size", "crop_pct"), [(224, 0.875), (96, 1.0), (64, 0.9)])
def test_an_evaluation_view_is_torchvisions_resize_and_centre_crop(
    height: int, width: int, size: int, crop_pct: float
) -> None:
    image = noise(1, height, width)[0]
    theirs = v2.Compose([v2.Resize(round(size / crop_pct), antialias=True), v2.CenterCrop(size)])
    expected = theirs(channels_first(image)).int()
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
    assert torch.equal(evaluation_view(image, 32, 1.0), channels_first(image))


def test_pixels_that_must_not_be_written_to_are_viewed_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    (image,) = noise(1)
    image.flags.writeable = False
    evaluation_view(image, 16, 1.0)
    assert not [warning for warning in recwarn if "not writable" in str(warning.message)]


def test_resizing_to_the_same_size_changes_nothing() -> None:
    image = torch.from_numpy(noise(1)[0]).permute(2, 0, 1)
    assert torch.equal(resize(image, 32), image)


# Normalisation


def test_normalisation_by_hand() -> None:
    images = torch.tensor([0, 255, 128], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = [(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (128 / 255 - 0.406) / 0.225]
    assert normalise(images).flatten().tolist() == pytest.approx(expected, rel=1e-5)
    assert normalise(images).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_normalised_images_lie_as_they_are_wanted(layout: torch.memory_format, dtype: torch.dtype) -> None:
    images = torch.arange(2 * 3 * 4 * 5).view(2, 4, 3, 5).transpose(1, 2).to(dtype)
    before = images.clone()
    found = normalise(images, layout)
    assert found.is_contiguous(memory_format=layout)
    assert torch.equal(found, normalise(before))
    assert torch.equal(images, before)


def test_mean_and_deviation_are_those_of_torchvisions_weights() -> None:
    from torchvision.models import MobileNet_V2_Weights

    preset = MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    assert (list(MEAN), list(STD)) == (preset.mean, preset.std)


def test_normalisation_leaves_its_input_alone() -> None:
    images = torch.full((1, 3, 2, 2), 9, dtype=torch.uint8)
    normalise(images)
    assert (images == 9).all()
