"""Pictures as files, in a folder or in tar shards: where they are, how they are stored, and their pixels.

JPEG is told by content, not by name: compressed with losses or not decides whether two sets compare. Every picture that
cannot be used is one line that names it.
"""

import hashlib
import io
import os
import tarfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bigr.data.images import FORMATS, ImageError, center_crop, decode
from bigr.data.sources import SUFFIXES
from bigr.runtime.errors import BigrError

JPEG, PNG, WEBP, LOSSY_WEBP = "JPEG", "PNG", "WebP", "lossy WebP"
LOSSY = (JPEG, LOSSY_WEBP)

_AHEAD = 64  # images that are decoded before they are asked for

Encoded = tuple[str, bytes]
"""Where a picture is, for people, and its file's content."""

T = TypeVar("T")


def folder_pictures(root: Path) -> Iterator[Encoded]:
    """Every picture below a folder, in the order of paths; links are followed, hidden names passed over."""
    seen: set[tuple[int, int]] = set()
    found: list[str] = []
    for here, folders, files in os.walk(root, followlinks=True):
        status = Path(here).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back up would be walked for ever
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [str(Path(here, f)) for f in files if f.lower().endswith(SUFFIXES) and not f.startswith(".")]
    for name in sorted(found):
        try:
            yield name, Path(name).read_bytes()
        except OSError as error:
            raise BigrError(f"{name} cannot be read: {error.strerror}") from None


def tar_pictures(tars: Iterable[Path]) -> Iterator[Encoded]:
    """Every picture in tar files, in their order."""
    for tar in tars:
        try:
            with tarfile.open(tar, "r|*") as stream:
                for member in stream:
                    if member.isfile() and member.name.lower().endswith(SUFFIXES):
                        file = stream.extractfile(member)
                        yield f"{tar}: {member.name}", file.read() if file else b""
        except (OSError, tarfile.TarError, EOFError) as error:
            raise BigrError(f"{tar} cannot be read: {error}") from None


@dataclass(frozen=True)
class Look:
    """What one pass over the files of a set tells: a hash of each, how they are stored, their width and height."""

    hashes: list[str]
    formats: dict[str, int]
    size: tuple[int, int]


def look(pictures: Iterable[Encoded], size: int | None, max_pixels: int | None = None) -> Look:
    """Read every file, decode none. size: of the crop that will be made; max_pixels: of a picture, as in `decode`.

    Raises `BigrError` for a file that is no picture, and, without `size`, for pictures of several sizes.
    """
    hashes, formats = [], Counter[str]()
    first = (size, size) if size else None
    for name, data in pictures:
        hashes.append(hashlib.sha256(data).hexdigest())
        formats[_format(name, data)] += 1
        first = first or _decoded(name, data, max_pixels).size
        if size is None:
            _check_size(name, _header_size(name, data, first, max_pixels), first)
    return Look(hashes, dict(sorted(formats.items())), first or (0, 0))


def pixels(picture: Encoded, crop: int | None, size: tuple[int, int], max_pixels: int | None = None) -> Tensor:
    """A picture as uint8 [3, H, W], `size` being its width and height after ADM's centre crop to crop×crop, if any."""
    image = _decoded(*picture, max_pixels)
    if crop is not None:
        image = center_crop(image, crop)
    _check_size(picture[0], image.size, size)
    return to_tensor(image)


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as uint8 [3, H, W]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def ahead(work: Callable[[T], Tensor], items: Iterable[T], workers: int) -> Iterator[Tensor]:
    """`work` on every item, in order, by threads that are a little ahead (Pillow works without Python's lock)."""
    pool = ThreadPoolExecutor(max(1, workers))
    waiting: deque[Future[Tensor]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _format(name: str, data: bytes) -> str:
    """How a picture is stored, by its content. Raises `BigrError` where it is none of those that are read."""
    if data.startswith(b"\xff\xd8\xff"):
        return JPEG
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WEBP if _webp_chunk(data) == b"VP8L" else LOSSY_WEBP
    raise BigrError(f"{name}: not a JPEG, PNG or WebP image; remove it from the set")


def _webp_chunk(data: bytes) -> bytes:
    """The name of the chunk that holds the pixels (of an animation, of its first frame): `VP8 ` or `VP8L`."""
    place = 12
    while place + 8 <= len(data):
        name, length = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        if name in (b"VP8 ", b"VP8L"):
            return name
        place += 24 if name == b"ANMF" else 8 + length + length % 2  # a frame's chunks follow 16 bytes about it
    return b""


def _header_size(name: str, data: bytes, expected: tuple[int, int], max_pixels: int | None) -> tuple[int, int]:
    """Width and height without decoding, unless they are not as expected: the picture may be turned then."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.size == expected:
                return image.size
    except Exception:  # decoding tells what is wrong with it
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
