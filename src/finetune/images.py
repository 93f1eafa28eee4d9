"""Encoded image files -> upright RGB pixels, and pixels made smaller."""

import io
import warnings

import numpy as np
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


def shrink(image: np.ndarray, short_side: int) -> np.ndarray:
    """Resize so that the short side is `short_side` pixels (antialiased bilinear); smaller images stay as they are.

    Args:
        image: uint8 pixels, height x width x 3.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    if short <= short_side:
        return image
    size = max(short_side, round(width * short_side / short)), max(short_side, round(height * short_side / short))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
