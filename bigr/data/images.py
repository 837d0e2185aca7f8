"""From an image file to RGB pixels, and ADM's centre crop.

Formats are JPEG, PNG and WebP, recognised by content, not by name; of an animation the first frame is read. Grey,
palette, CMYK, 16-bit, transparent and EXIF-rotated images become upright 8-bit RGB. Colour profiles are ignored, as in
the published pipelines.
"""

import io
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from bigr.runtime.errors import BigrError

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 100_000_000
"""The limit where no setting gives one: a larger image is refused by its header. Decoding takes 8 to 24 bytes a pixel,
2.4 GB at most."""

# Pillow's own limit warns at 89 megapixels and raises at 179; MAX_PIXELS takes its place in `decode`.
Image.MAX_IMAGE_PIXELS = None

_MAX_ASPECT = 16
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(BigrError):
    """An image that cannot be read; `str()` is the reason, in one line, without the file's name."""


def decode(source: Path | BinaryIO, max_pixels: int | None = None) -> Image.Image:
    """Read an image file as upright 8-bit RGB. Transparent pixels are composited on white; 16-bit grey is scaled.

    max_pixels: the setting shards.max_pixels, or None for `MAX_PIXELS`. A larger image is refused before it is decoded.
    Raises `ImageError` with the reason for any file that cannot be read.
    """
    try:
        if isinstance(source, Path) and not source.is_file():
            raise ImageError("not a regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow comments on odd files that it reads well
            with Image.open(source, formats=FORMATS) as image:
                check_pixels(image.width, image.height, max_pixels)
                return upright_rgb(image)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError("not a JPEG, PNG or WebP image") from None
    except Exception as error:  # decoders raise many kinds over a broken file, and each is the file's fault
        raise ImageError(_reason(error)) from None


def check_pixels(width: int, height: int, max_pixels: int | None = None) -> None:
    """Raise `ImageError` for an image of more pixels than may be decoded; max_pixels: as in `decode`."""
    most, setting = (MAX_PIXELS, "") if max_pixels is None else (max_pixels, " (shards.max_pixels)")
    if width * height > most:
        raise ImageError(f"{width}×{height} pixels; at most {most:,} are read{setting}")


def upright_rgb(image: Image.Image) -> Image.Image:
    """A PIL image of any mode as a new upright 8-bit RGB image, as `decode` returns it."""
    image.load()
    turn = _UPRIGHT.get(_orientation(image))
    rgb = _to_rgb(image)
    return rgb.transpose(turn) if turn is not None else rgb


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken EXIF block loses the rotation, not the image
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint32)
        eight_bit = ((grey + 128) // 257).astype(np.uint8)
        transparent = image.info.get("transparency")
        if transparent is not None:
            eight_bit[grey == transparent] = 255
        return Image.fromarray(eight_bit).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's centre crop to size×size: halve with a box filter while possible, scale the short side, cut the middle.

    As in guided-diffusion (`center_crop_arr`), so that metrics compare with published ones. A smaller image is
    enlarged. Of an image longer than 16 times its width the ends are cut first, which the crop would drop anyway.
    """
    short = min(image.size)
    if max(image.size) > _MAX_ASPECT * short:  # enlarging a 1×10000 strip whole would take gigabytes
        image = _cut(image, min(image.width, _MAX_ASPECT * short), min(image.height, _MAX_ASPECT * short))
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), resample=Image.Resampling.BICUBIC)
    return _cut(image, size, size)


def _cut(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def grey_if_grey(image: Image.Image) -> Image.Image:
    """An 8-bit RGB image, or with one channel where all of its pixels are grey: a third of the bytes."""
    red, green, blue = image.split()
    return red if red.tobytes() == green.tobytes() == blue.tobytes() else image


def to_tensor(image: Image.Image) -> Tensor:
    """An 8-bit image, RGB or grey, as uint8 [3, H, W]."""
    image = image if image.mode == "RGB" else image.convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def to_image(pixels: Tensor) -> Image.Image:
    """uint8 [3, H, W] as an RGB image."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def encode_png(image: Image.Image) -> bytes:
    """The image as the bytes of a PNG file: lossless, and the same bytes for the same pixels."""
    with io.BytesIO() as stream:
        image.save(stream, format="PNG")
        return stream.getvalue()
