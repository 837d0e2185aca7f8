"""Images in ADM's `.npz` files (`arr_0`, uint8 [n, H, W, 3]), read a batch at a time, and the statistics in some.

numpy would read the array whole: 50,000 images of 256² are 10 GB. Here it is a stream from the zip archive, compressed
or not. Nothing is unpickled.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from bigr.data.images import ImageError, check_pixels
from bigr.runtime.errors import BigrError

IMAGES, MEAN, COVARIANCE = "arr_0", "mu", "sigma"
_BLOCK_BYTES = 1 << 24

_HEADERS: dict[tuple[int, int], Callable[[IO[bytes]], tuple[tuple[int, ...], bool, np.dtype[Any]]]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}


def has(path: Path, *names: str) -> bool:
    """Whether the archive holds arrays of all these names. Raises `BigrError` where it is no archive."""
    with _reading(path), zipfile.ZipFile(path) as archive:
        return {f"{name}.npy" for name in names} <= set(archive.namelist())


def shape(path: Path, max_pixels: int | None = None) -> tuple[int, int, int]:
    """Number, height and width of the images, none of which is read.

    Raises `BigrError` where `arr_0` does not hold images, or images of more than `max_pixels` (as in `decode`).
    """
    with _reading(path), zipfile.ZipFile(path) as archive, archive.open(f"{IMAGES}.npy") as file:
        count, height, width = _header(path, file)
    try:
        check_pixels(width, height, max_pixels)
    except ImageError as error:
        raise BigrError(f"{path}: images of {error}") from None
    return count, height, width


def images(path: Path) -> Iterator[np.ndarray]:
    """Every image in order, uint8 [H, W, 3]."""
    with _reading(path), zipfile.ZipFile(path) as archive, archive.open(f"{IMAGES}.npy") as file:
        count, height, width = _header(path, file)
        one = height * width * 3
        at_once = max(1, _BLOCK_BYTES // one)
        for start in range(0, count, at_once):
            wanted = min(at_once, count - start)
            block = file.read(wanted * one)
            if len(block) != wanted * one:
                raise BigrError(f"{path} is cut off: {count} images are announced, {start} were read")
            yield from np.frombuffer(block, np.uint8).reshape(wanted, height, width, 3)


def content(path: Path) -> str:
    """SHA-256 of the array of images, whatever else the archive holds."""
    digest = hashlib.sha256()
    with _reading(path), zipfile.ZipFile(path) as archive, archive.open(f"{IMAGES}.npy") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def moments(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """`mu` [F] and `sigma` [F, F] of ADM's published references, float64. Raises `BigrError` where they do not fit."""
    with _reading(path), np.load(path, allow_pickle=False) as file:
        mu, sigma = file[MEAN].astype(np.float64), file[COVARIANCE].astype(np.float64)
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise BigrError(f"{path}: mu {list(mu.shape)} and sigma {list(sigma.shape)} are no mean and covariance")
    return mu, sigma


def _header(path: Path, file: IO[bytes]) -> tuple[int, int, int]:
    version = npy.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of numpy's format")
    dimensions, fortran, dtype = _HEADERS[version](file)
    if dtype != np.uint8 or len(dimensions) != 4 or dimensions[3] != 3 or 0 in dimensions or fortran:
        raise BigrError(
            f"{path}: {IMAGES} is {dtype} {list(dimensions)}{' in Fortran order' if fortran else ''}; images are uint8 "
            "[n, height, width, 3], as ADM's evaluator reads them"
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
