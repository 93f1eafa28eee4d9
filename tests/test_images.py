"""Every kind of image file becomes upright RGB; shrinking keeps the aspect and never enlarges."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.errors import InputError
from finetune.images import decode, shrink

RED, GREEN, BLUE, GREY = (200, 30, 30), (30, 200, 30), (30, 30, 200), (120, 120, 120)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def quarters() -> np.ndarray:
    """16 x 32 pixels: red top left, green top right, blue bottom left, grey bottom right."""
    image = np.zeros((16, 32, 3), np.uint8)
    image[:8, :16], image[:8, 16:], image[8:, :16], image[8:, 16:] = RED, GREEN, BLUE, GREY
    return image


def test_rgb_pixels_are_kept_exactly() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    found = decode(encoded(Image.fromarray(pixels)), "here")
    assert found.dtype == np.uint8
    assert np.array_equal(found, pixels)


def test_grayscale_becomes_three_equal_channels() -> None:
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5) * 12
    assert np.array_equal(decode(encoded(Image.fromarray(grey)), "here"), np.dstack([grey] * 3))


def test_grayscale_with_alpha_becomes_three_equal_channels() -> None:
    found = decode(encoded(Image.new("LA", (3, 2), (77, 255))), "here")
    assert np.array_equal(found, np.full((2, 3, 3), 77))


def test_black_and_white_becomes_0_and_255() -> None:
    bits = Image.fromarray(np.array([[True, False]]))
    assert decode(encoded(bits), "here").tolist() == [[[255] * 3, [0] * 3]]


def test_sixteen_bit_grayscale_keeps_its_brightness() -> None:
    deep = Image.fromarray(np.array([[0, 0x4000, 0x8000, 0xFFFF]], np.uint16))
    found = decode(encoded(deep), "here")
    assert found[0, :, 0].tolist() == pytest.approx([0, 64, 128, 255], abs=1)
    assert np.array_equal(found[..., 0], found[..., 2])


def test_rgba_loses_its_alpha_and_keeps_its_colour() -> None:
    found = decode(encoded(Image.new("RGBA", (3, 2), (*RED, 255))), "here")
    assert np.array_equal(found, np.full((2, 3, 3), RED))


def test_a_palette_is_looked_up() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putdata([1, 0])
    assert decode(encoded(image), "here").tolist() == [[list(BLUE), list(RED)]]


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("transparency", [1, b"\xff\x80"])
def test_a_palette_with_transparency_is_looked_up(transparency: Any) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putdata([0, 0])
    assert decode(encoded(image, transparency=transparency), "here").tolist() == [[list(RED)] * 2]


def test_a_cmyk_jpeg_becomes_rgb() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, all magenta, all yellow, no black
    found = decode(encoded(red, "JPEG", quality=95), "here")
    assert found.shape == (16, 16, 3)
    assert np.abs(found.astype(int) - (255, 0, 0)).max() <= 8


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, BLUE)]
    found = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "here")
    assert np.abs(found.astype(int) - RED).max() <= 4


# Orientation, EXIF 2.3: what row 0 and column 0 of the stored pixels are on the upright image.

STORED = {
    1: lambda upright: upright,  # top, left
    2: lambda upright: upright[:, ::-1],  # top, right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: upright.transpose(1, 0, 2),  # left, top
    6: lambda upright: upright[:, ::-1].transpose(1, 0, 2),  # right, top
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),  # right, bottom
    8: lambda upright: upright[::-1].transpose(1, 0, 2),  # left, bottom
}


def rotated(orientation: int, kind: str, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](quarters()))
    return encoded(Image.fromarray(stored), kind, exif=exif, **options)


@pytest.mark.parametrize("orientation", STORED)
def test_an_exif_rotated_png_is_turned_upright(orientation: int) -> None:
    assert np.array_equal(decode(rotated(orientation, "PNG"), "here"), quarters())


@pytest.mark.parametrize("orientation", STORED)
def test_an_exif_rotated_jpeg_is_turned_upright(orientation: int) -> None:
    found = decode(rotated(orientation, "JPEG", quality=95, subsampling=0), "here")
    assert found.shape == quarters().shape
    assert np.abs(found.astype(int) - quarters()).max() <= 12


def test_a_rotated_grayscale_jpeg_is_upright_and_rgb() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.full((8, 24), 90, np.uint8))
    assert decode(encoded(stored, "JPEG", exif=exif), "here").shape == (24, 8, 3)


def test_what_turns_a_jpeg_is_found_behind_other_parts_of_the_header() -> None:
    """A preview, say, which begins and ends as the image does; and bytes that fill."""
    data = rotated(6, "JPEG", quality=95, subsampling=0)
    preview = b"\xff\xd8\xff\xda\0\3\0\xff\xd9"
    part = b"\xff\xed" + (len(preview) + 2).to_bytes(2, "big") + preview
    for before in (part, b"\xff\xff" + part[1:], 3 * part + b"\xff"):
        found = decode(data[:2] + before + data[2:], "here")
        assert np.array_equal(found, decode(data, "here"))
        assert found.shape == quarters().shape


def test_a_jpeg_that_is_turned_by_xmp_is_upright() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'
    stored = np.ascontiguousarray(STORED[6](quarters()))
    data = encoded(Image.fromarray(stored), "JPEG", quality=95, subsampling=0, xmp=xmp)
    assert decode(data, "here").shape == quarters().shape


# What cannot be read


def photograph() -> bytes:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    return encoded(Image.fromarray(noise), "JPEG", quality=90)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_jpeg_is_refused_naming_where(share: float) -> None:
    data = photograph()
    with pytest.raises(InputError, match=r"food\.tgz: pie/1\.jpg: a broken image"):
        decode(data[: int(share * len(data))], "food.tgz: pie/1.jpg")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_png_is_refused_naming_where(share: float) -> None:
    data = encoded(Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3)).astype(np.uint8)))
    with pytest.raises(InputError, match=r"food\.tgz: pie/1\.png: "):
        decode(data[: int(share * len(data))], "food.tgz: pie/1.png")


@pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"\xff\xd8\xff"])
def test_what_is_no_image_is_refused_naming_where(data: bytes) -> None:
    with pytest.raises(InputError, match=r"food\.tgz: pie/1\.jpg: not an image"):
        decode(data, "food.tgz: pie/1.jpg")


def test_an_image_that_would_fill_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(InputError, match=r"here: a broken image"):
        decode(photograph(), "here")


# Shrinking


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (100, 200, (32, 64)),
        (200, 100, (64, 32)),
        (64, 64, (32, 32)),
        (33, 50, (32, 48)),  # 50 x 32 / 33 = 48.48
        (40, 1000, (32, 800)),
    ],
)
def test_the_short_side_is_met_and_the_aspect_kept(height: int, width: int, expected: tuple[int, int]) -> None:
    found = shrink(np.zeros((height, width, 3), np.uint8), 32)
    assert found.shape == (*expected, 3)
    assert found.dtype == np.uint8


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 500), (20, 90), (8, 8)])
def test_an_image_that_is_small_enough_stays_as_it_is(height: int, width: int) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (height, width, 3)).astype(np.uint8)
    assert np.array_equal(shrink(pixels, 32), pixels)


def test_halving_averages_neighbours() -> None:
    # Antialiased by 2: a triangle of four pixels, weights 1 3 3 1; black and white stripes become mid grey.
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    inner = shrink(stripes, 32)[2:-2, 2:-2]
    assert np.abs(inner.astype(int) - 127.5).max() <= 1


def test_shrinking_keeps_each_quarter_where_it_was() -> None:
    large = quarters().repeat(8, 0).repeat(8, 1)
    found = shrink(large, 16).astype(int)
    for rows, columns, colour in ((2, 4, RED), (2, 28, GREEN), (13, 4, BLUE), (13, 28, GREY)):
        assert np.abs(found[rows, columns] - colour).max() <= 1


# Against Pillow


def scene(height: int, width: int, seed: int) -> np.ndarray:
    """Coloured blobs with edges and a little noise."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return np.clip(smooth + generator.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)


def by_pillow(data: bytes, short_side: int) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        scale = short_side / min(width, height)
        return np.asarray(
            image.convert("RGB").resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
        )


@pytest.mark.parametrize("options", [{"quality": 90}, {"quality": 75, "progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_decodes_to_pillows_very_pixels(mode: str, options: dict[str, Any]) -> None:
    data = encoded(Image.fromarray(scene(97, 131, 0)).convert(mode), "JPEG", **options)
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(decode(data, "here"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("seed", range(6))
def test_shrinking_is_within_two_levels_of_pillows(seed: int) -> None:
    data = encoded(Image.fromarray(scene(150 + 40 * seed, 410 - 30 * seed, seed)), "JPEG", quality=90)
    found, expected = shrink(decode(data, "here"), 96).astype(int), by_pillow(data, 96).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 2
