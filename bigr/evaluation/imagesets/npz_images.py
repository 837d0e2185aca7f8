"""Images in ADM's `.npz` files (`arr_0`, uint8 [n, H, W, 3]), and the statistics in some of them.

`images` reads them in blocks from the zip archive, since numpy would read the whole array: 10 GB for 50,000 images of
256². Nothing is unpickled.
"""

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from bigr.data.images import ImageError, check_pixels
from bigr.evaluation.imagesets.image_stream import ImageStream
from bigr.runtime.errors import BigrError
from bigr.sampling.inputs import NO_LABEL

IMAGES, LABELS, MEAN, COVARIANCE = "arr_0", "arr_1", "mu", "sigma"
TEXTS, TRAIN_IMAGES, TRAIN_TEXTS = "texts", "train_images", "train_texts"
_BLOCK_BYTES = 1 << 24
_LOCAL_HEADER, _NAME_LENGTH = 30, 26
"""Bytes of a member's header in a zip archive, without its name and extra field, and where the length of these is."""

_HEADERS: dict[tuple[int, int], Callable[[IO[bytes]], tuple[tuple[int, ...], bool, np.dtype[Any]]]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}


def has(path: Path, *names: str) -> bool:
    """Whether the archive holds arrays of all these names. Raises `BigrError` if it is not an archive."""
    with _reading(path), zipfile.ZipFile(path) as archive:
        return {f"{name}.npy" for name in names} <= set(archive.namelist())


def shape(path: Path, max_pixels: int | None = None) -> tuple[int, int, int]:
    """Number, height and width of the images, without reading them.

    Raises `BigrError` if `arr_0` does not hold images, or they have more than `max_pixels` (as in `decode`).
    """
    with _reading(path), zipfile.ZipFile(path) as archive, archive.open(f"{IMAGES}.npy") as file:
        count, height, width = _header(path, file)
    try:
        check_pixels(width, height, max_pixels)
    except ImageError as error:
        raise BigrError(f"{path}: images of {error}") from None
    return count, height, width


def images(path: Path, first: int = 0) -> Iterator[np.ndarray]:
    """Every image in order from number `first` on, uint8 [H, W, 3]."""
    with _reading(path), zipfile.ZipFile(path) as archive, archive.open(f"{IMAGES}.npy") as file:
        count, height, width = _header(path, file)
        one = height * width * 3
        at_once = max(1, _BLOCK_BYTES // one)
        stored = archive.getinfo(f"{IMAGES}.npy").compress_type == zipfile.ZIP_STORED
        with _at(path, archive, file.tell() + first * one) if first and stored else nullcontext(file) as source:
            if first and not stored:
                file.seek(first * one, 1)  # reads and drops them
            for start in range(first, count, at_once):
                number = min(at_once, count - start)
                block = source.read(number * one)
                if len(block) != number * one:
                    raise BigrError(f"{path} is cut off: its header says {count} images, {start} were read")
                yield from np.frombuffer(block, np.uint8).reshape(number, height, width, 3)


def _at(path: Path, archive: zipfile.ZipFile, offset: int) -> IO[bytes]:
    """The file, at `offset` in the images' member, which is stored as it is: zipfile would read all before it."""
    member = archive.getinfo(f"{IMAGES}.npy")
    file = path.open("rb")
    file.seek(member.header_offset + _NAME_LENGTH)
    name, extra = struct.unpack("<HH", file.read(4))
    file.seek(member.header_offset + _LOCAL_HEADER + name + extra + offset)
    return file


def content(path: Path) -> str:
    """SHA-256 of the array of images alone."""
    digest = hashlib.sha256()
    with _reading(path), zipfile.ZipFile(path) as archive, archive.open(f"{IMAGES}.npy") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def moments(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """`mu` [F] and `sigma` [F, F] of ADM's published references, float64. Raises `BigrError` for other shapes."""
    with _reading(path), np.load(path, allow_pickle=False) as file:
        mu, sigma = file[MEAN].astype(np.float64), file[COVARIANCE].astype(np.float64)
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise BigrError(f"{path}: mu {list(mu.shape)} and sigma {list(sigma.shape)} must be [F] and [F, F]")
    return mu, sigma


def read_samples(path: Path, image_size: int, classes: int) -> tuple[ImageStream, Tensor]:
    """The images, which are not loaded, and the labels int64 [n] (`arr_1`) of samples.

    image_size: H = W; classes: labels must be in [0, classes), or all of them `NO_LABEL`. Raises `BigrError` for a
    missing, damaged or other file.
    """
    again = "run the stage samples again"
    try:
        with zipfile.ZipFile(path) as archive:
            stored = archive.getinfo(f"{IMAGES}.npy").file_size
            with archive.open(f"{IMAGES}.npy") as file:
                version = npy.read_magic(file)
                shape, _, dtype = _HEADERS[version](file)
                held = stored - file.tell()
        with np.load(path, allow_pickle=False) as arrays:
            labels = arrays[LABELS]
    except FileNotFoundError:
        raise BigrError(f"{path} is missing; run the stage samples first") from None
    except Exception as error:  # zipfile's errors have no other common base
        raise BigrError(f"{path} is not a file of samples, or damaged ({error}); {again}") from None
    if dtype != np.uint8 or shape[1:] != (image_size, image_size, 3):
        raise BigrError(
            f"{path}: {IMAGES} must be uint8 [n, {image_size}, {image_size}, 3], as the shards' images, got "
            f"{dtype} {list(shape)}; {again}"
        )
    count = shape[0]
    if held != count * image_size**2 * 3:
        raise BigrError(f"{path}: {IMAGES} holds {held:,} bytes, not those of {count:,} images; {again}")
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise BigrError(
            f"{path}: {LABELS} must be integers [{count}], got {labels.dtype} {list(labels.shape)}; {again}"
        )
    if len(labels) and not (0 <= labels.min() <= labels.max() < classes or (labels == NO_LABEL).all()):
        raise BigrError(f"{path}: labels must be in [0, {classes}), got {labels.min()} to {labels.max()}; {again}")

    def at(number: int) -> Iterator[Tensor]:
        return (torch.from_numpy(image.copy()).permute(2, 0, 1) for image in images(path, number))

    return ImageStream(count, lambda: at(0), at), torch.from_numpy(labels.astype(np.int64))


def read_texts(path: Path) -> list[str] | None:
    """The texts of samples that were drawn from texts; None of others. The file has been read by `read_samples`."""
    with np.load(path, allow_pickle=False) as file:
        return [str(text) for text in file[TEXTS]] if TEXTS in file else None


def read_train_samples(path: Path) -> tuple[Tensor, list[str]] | None:
    """Samples of training captions, uint8 [n, 3, H, W], and these; None where there are none. As `read_texts`."""
    with np.load(path, allow_pickle=False) as file:
        if TRAIN_TEXTS not in file:
            return None
        return torch.from_numpy(file[TRAIN_IMAGES]).permute(0, 3, 1, 2), [str(text) for text in file[TRAIN_TEXTS]]


def _header(path: Path, file: IO[bytes]) -> tuple[int, int, int]:
    version = npy.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of numpy's format")
    dimensions, fortran, dtype = _HEADERS[version](file)
    if dtype != np.uint8 or len(dimensions) != 4 or dimensions[3] != 3 or 0 in dimensions or fortran:
        raise BigrError(
            f"{path}: {IMAGES} must be uint8 [n, height, width, 3], as ADM's evaluator reads it, got {dtype} "
            f"{list(dimensions)}{' in Fortran order' if fortran else ''}"
        )
    return dimensions[0], dimensions[1], dimensions[2]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except KeyError:
        raise BigrError(f"{path} holds neither images ({IMAGES}) nor statistics ({MEAN}, {COVARIANCE})") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise BigrError(f"{path} cannot be read as an .npz file: {error}") from None
