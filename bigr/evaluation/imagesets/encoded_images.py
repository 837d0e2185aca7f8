"""Image files in a folder or in tar shards: their bytes, their formats, and their pixels.

JPEG is recognised by content: lossy and lossless sets do not compare.
"""

import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from bigr.data.images import FORMATS, ImageError, center_crop, decode, to_tensor
from bigr.data.sources.storage import SUFFIXES, image_files
from bigr.data.stored_files import StoredFile
from bigr.runtime.errors import BigrError

JPEG, PNG, WEBP, LOSSY_WEBP = "JPEG", "PNG", "WebP", "lossy WebP"
LOSSY = (JPEG, LOSSY_WEBP)

EncodedImage = tuple[str, bytes]
"""The name of an image, for messages, and the content of its file."""


def folder_images(root: Path) -> Iterator[EncodedImage]:
    """Every image below a folder, in the order of their paths; links are followed, hidden names skipped."""
    try:
        paths = image_files(root)
    except OSError as error:
        raise BigrError(f"{error.filename} cannot be listed: {error.strerror}") from None
    for path in paths:
        try:
            yield str(root / path), (root / path).read_bytes()
        except OSError as error:
            raise BigrError(f"{root / path} cannot be read: {error.strerror}") from None


def tar_images(tars: Iterable[StoredFile]) -> Iterator[EncodedImage]:
    """Every image in tar files, in their order."""
    for tar in tars:
        try:
            with tar.open() as file, tarfile.open(fileobj=file, mode="r|*") as stream:
                for member in stream:
                    if member.isfile() and member.name.lower().endswith(SUFFIXES):
                        content = stream.extractfile(member)
                        yield f"{tar}: {member.name}", content.read() if content else b""
        except (OSError, tarfile.TarError, EOFError) as error:
            raise BigrError(f"{tar} cannot be read: {error}") from None


@dataclass(frozen=True)
class Scan:
    """A set of image files. hashes: SHA-256 of each; formats: format → images; size: width and height of all."""

    hashes: list[str]
    formats: dict[str, int]
    size: tuple[int, int]


def scan(images: Iterable[EncodedImage], crop: int | None, max_pixels: int | None = None) -> Scan:
    """Read every file without decoding it.

    crop: the size of the crop that will be made, if any; max_pixels: as in `bigr.data.images.decode`.
    Raises `BigrError` for a file that is not an image, and, without `crop`, for images of several sizes.
    """
    hashes, formats = [], Counter[str]()
    size = (crop, crop) if crop else None
    for name, data in images:
        hashes.append(hashlib.sha256(data).hexdigest())
        formats[_format(name, data)] += 1
        size = size or _decoded(name, data, max_pixels).size
        if crop is None:
            _check_size(name, _header_size(name, data, size, max_pixels), size)
    return Scan(hashes, dict(sorted(formats.items())), size or (0, 0))


def pixels(image: EncodedImage, crop: int | None, size: tuple[int, int], max_pixels: int | None = None) -> Tensor:
    """An image as uint8 [3, H, W], after ADM's centre crop to crop×crop, if any. size: the width and height expected.

    Raises `BigrError` for an image that cannot be decoded, or has another size.
    """
    decoded = _decoded(*image, max_pixels)
    if crop is not None:
        decoded = center_crop(decoded, crop)
    _check_size(image[0], decoded.size, size)
    return to_tensor(decoded)


def _format(name: str, data: bytes) -> str:
    """The format of a file, by its content. Raises `BigrError` for any other."""
    if data.startswith(b"\xff\xd8\xff"):
        return JPEG
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WEBP if _webp_chunk(data) == b"VP8L" else LOSSY_WEBP
    raise BigrError(f"{name}: not a JPEG, PNG or WebP image; remove it from the set")


def _webp_chunk(data: bytes) -> bytes:
    """The name of the chunk with the pixels of the first frame: `VP8 ` or `VP8L`."""
    place = 12
    while place + 8 <= len(data):
        name, length = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        if name in (b"VP8 ", b"VP8L"):
            return name
        place += 24 if name == b"ANMF" else 8 + length + length % 2  # a frame's chunks follow 16 bytes about it
    return b""


def _header_size(name: str, data: bytes, expected: tuple[int, int], max_pixels: int | None) -> tuple[int, int]:
    """Width and height; decodes only if the header has others than expected, since EXIF may rotate the image."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.size == expected:
                return image.size
    except Exception:  # decoding gives the reason
        pass
    return _decoded(name, data, max_pixels).size


def _check_size(name: str, size: tuple[int, int], expected: tuple[int, int]) -> None:
    if size != expected:
        raise BigrError(
            f"{name} is {size[0]}×{size[1]} pixels, those before it {expected[0]}×{expected[1]}; --size N crops every "
            "image to N×N, as ADM does"
        )


def _decoded(name: str, data: bytes, max_pixels: int | None) -> Image.Image:
    try:
        return decode(io.BytesIO(data), max_pixels)
    except ImageError as error:
        raise BigrError(f"{name}: {error}; remove it from the set") from None
