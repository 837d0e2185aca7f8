"""Images that users upload, and masks that they paint. The size of both is checked before they are read."""

import base64
import binascii
import io
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from bigr.app.bounds import MAX_MASK_PIXELS, MAX_SIDE, MAX_UPLOAD_BYTES, MAX_UPLOAD_PIXELS
from bigr.data.images import FORMATS, decode
from bigr.runtime.errors import BigrError

_PNG = "data:image/png;base64,"


class Upload(NamedTuple):
    """An image, reduced where it is too large, and its size in the file, width and height."""

    picture: Image.Image
    size: tuple[int, int]

    @property
    def scaled(self) -> bool:
        """Whether it was reduced."""
        return self.picture.size != self.size


def read_upload(path: Path) -> Upload:
    """An uploaded file as an upright RGB image of at most `MAX_SIDE` pixels along a side.

    Raises `BigrError` with the reason where it is no image, or too large.
    """
    if path.stat().st_size > MAX_UPLOAD_BYTES:
        raise BigrError(f"{path.name} must be at most {MAX_UPLOAD_BYTES >> 20} MB")
    try:
        with Image.open(path, formats=FORMATS) as header:
            pixels = header.width * header.height
    except Exception:  # `decode` below names the error
        pixels = 0
    if pixels > MAX_UPLOAD_PIXELS:
        raise BigrError(
            f"{path.name} must have at most {MAX_UPLOAD_PIXELS / 1e6:.0f} megapixels, got {pixels / 1e6:.0f}"
        )
    try:
        picture = decode(path)
    except BigrError as error:
        raise BigrError(f"{path.name}: {error}") from None
    size = picture.size
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return Upload(picture, size)


def read_mask(text: str) -> Image.Image:
    """The mask of the page's brush, a data URI, as grey: 255 where painted.

    Raises `BigrError` where nothing is painted, or it is no PNG.
    """
    if not text:
        raise BigrError("Nothing is marked yet; paint over what is to change")
    try:
        data = base64.b64decode(text.removeprefix(_PNG), validate=True)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > MAX_MASK_PIXELS:
                raise BigrError(
                    f"The mask must have at most {MAX_MASK_PIXELS:,} pixels, got {image.width}×{image.height}"
                )
            mask = image.convert("RGBA").getchannel("A")
    except (OSError, ValueError, SyntaxError, binascii.Error):
        raise BigrError("The mask must be a PNG") from None
    if not mask.getbbox():
        raise BigrError("Nothing is marked yet; paint over what is to change")
    return mask.point(lambda alpha: 255 if alpha >= 128 else 0)
