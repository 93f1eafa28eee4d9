"""Encoded image files -> upright RGB pixels, and pixels made smaller.

JPEG files of the usual kinds are decoded by simplejpeg, which gives Pillow's very pixels and holds no lock meanwhile;
Pillow has the rest. Resizing is torch's for uint8, some five times as fast as Pillow's and within two levels of it.
"""

import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from finetune.errors import InputError

# Palette images may carry transparency as bytes; Pillow warns, and the conversion below is right.
warnings.filterwarnings("ignore", message="Palette images with Transparency", module="PIL")


def decode(data: bytes, where: str) -> np.ndarray:
    """Decode one image file: grayscale, RGBA, CMYK, palette and EXIF-rotated images become upright RGB.

    Args:
        data: the file's bytes, in any format Pillow reads.
        where: what to call the image in a message.

    Returns:
        uint8 pixels, height x width x 3.

    Raises:
        InputError: the bytes are no image, or the image is truncated.
    """
    if _plain_jpeg(data):
        try:
            return simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
        except ValueError:
            pass  # Pillow says what is wrong, or bears what simplejpeg does not
    try:
        with Image.open(io.BytesIO(data)) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I;16"):  # Pillow's own conversion clips at 255
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            return np.asarray(upright.convert("RGB"))
    except UnidentifiedImageError:
        raise InputError(f"{where}: not an image that can be read; replace it with a JPEG or PNG file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{where}: a broken image ({error}); replace it with a whole file") from None


def shape_in(data: bytes) -> tuple[int, int]:
    """Height and width of an image file by its header, not turned; zeros where that cannot be read."""
    try:
        if simplejpeg.is_jpeg(data):
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            return height, width
        with Image.open(io.BytesIO(data)) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # `decode` says what is wrong
        return 0, 0


def shrink(image: np.ndarray, short_side: int) -> np.ndarray:
    """Resize so that the short side is `short_side` pixels (antialiased bilinear); smaller images stay as they are.

    Args:
        image: uint8 pixels, height x width x 3.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    if short <= short_side:
        return image
    size = max(short_side, round(height * short_side / short)), max(short_side, round(width * short_side / short))
    import torch  # takes a second, and many stores need no resizing
    from torch.nn.functional import interpolate

    # With the strides of channels_last, batch included, torch takes the pixels as they lie: twice as fast.
    batch = torch.from_numpy(np.require(image, requirements=("C", "W")))[None].permute(0, 3, 1, 2)
    small = interpolate(batch, size, mode="bilinear", antialias=True, align_corners=False)
    return small[0].permute(1, 2, 0).numpy()


def _plain_jpeg(data: bytes) -> bool:
    """Whether this is a JPEG file in colour or grey that is small enough and needs no turning."""
    if not simplejpeg.is_jpeg(data):
        return False
    end = _start_of_scan(data)
    if data.find(b"Exif\0\0", 0, end) >= 0 or data.find(b"tiff:Orientation", 0, end) >= 0:
        return False
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return False
    return colours in ("YCbCr", "Gray") and height * width <= (Image.MAX_IMAGE_PIXELS or 0)


def _start_of_scan(data: bytes) -> int:
    """Where the header of a JPEG file ends, which says how the image is turned; the file's end where it never does."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:  # ITU-T T.81, B.1.1: a marker, most with a segment of some length
        marker = data[at + 1]
        if marker == 0xDA:
            return at
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4])  # 0xFF again: a fill byte
    return len(data)
