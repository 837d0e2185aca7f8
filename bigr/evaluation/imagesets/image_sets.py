"""Opens an image set for measurement: a folder, ADM's `.npz`, webdataset shards, or statistics in a file.

Opening reads every byte once, for the set's hash and the formats. Pixels are decoded later, a few at a time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bigr.data.images import center_crop, to_tensor
from bigr.data.shards import ShardIndex
from bigr.data.sources.storage import SUFFIXES
from bigr.data.stored_files import StoredFile
from bigr.evaluation.fidelity.extractors import INCEPTION
from bigr.evaluation.fidelity.statistics import Statistics
from bigr.evaluation.fidelity.statistics_files import read_statistics
from bigr.evaluation.imagesets import encoded_images, npz_images
from bigr.evaluation.imagesets.encoded_images import EncodedImage
from bigr.evaluation.imagesets.image_stream import ImageStream, files_hash
from bigr.runtime.errors import BigrError
from bigr.runtime.files import sha256_file
from bigr.runtime.threads import map_ahead

ARRAY = "array"
"""The format of images in an `.npz`, which may have been compressed before."""

_AHEAD = 64  # images of any size that are decoded ahead


@dataclass(frozen=True)
class ImageSet:
    """An opened set.

    kind: folder, shards, npz or statistics; hash: of the content as it is measured; count: images, None if unknown;
    formats: format → images; size: width and height of every image; images: uint8 [3, H, W], None if there are
    statistics alone; statistics: those in a file, or beside the images; split: of shards with this project's index.
    """

    path: Path
    kind: str
    hash: str
    count: int | None
    formats: dict[str, int] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    images: ImageStream | None = None
    statistics: Statistics | None = None
    split: str | None = None

    @property
    def lossy(self) -> int:
        """The number of lossily compressed images."""
        return sum(self.formats.get(name, 0) for name in encoded_images.LOSSY)

    @property
    def lossless(self) -> int:
        """The number of other images."""
        return sum(self.formats.values()) - self.lossy


@dataclass(frozen=True)
class _Options:
    """How the images of a set are read; see `open_set`."""

    size: int | None
    workers: int
    max_pixels: int | None

    def hash(self, content: str) -> str:
        """The hash of content that is cropped before it is measured."""
        return content if self.size is None else files_hash([content, f"center crop {self.size}"])


def open_set(
    path: Path,
    *,
    split: str = "train",
    size: int | None = None,
    workers: int = 1,
    max_pixels: int | None = None,
) -> ImageSet:
    """Open the image set at `path`. Raises `BigrError` for anything that cannot be measured.

    split: of shards with this project's index; size: ADM's centre crop of every image to size×size, without which all
    images must have one size; workers: threads that decode; max_pixels: as in `bigr.data.images.decode`.
    """
    options = _Options(size, workers, max_pixels)
    if not path.exists():
        raise BigrError(f"{path}: there is no such folder or file")
    if path.is_dir():
        if has_splits(path):
            return _shards(path, split, options)
        if tars := sorted(path.glob("*.tar")):
            return _tars(path, [StoredFile(str(tar), "shards") for tar in tars], None, options)
        return _files(path, "folder", lambda: encoded_images.folder_images(path), None, None, options)
    if path.suffix == ".tar":
        return _tars(path, [StoredFile(str(path), "shards")], None, options)
    if path.suffix == ".npz":
        return _npz(path, options)
    if path.suffix == ".safetensors":
        return _statistics(path, size)
    raise BigrError(
        f"{path}: not a set of images; name a folder of images, an .npz, a folder of .tar shards, or a .safetensors "
        "file of statistics"
    )


def has_splits(path: Path) -> bool:
    """Whether `path` is a folder of shards with this project's index."""
    return (path / "index.json").is_file()


def _shards(path: Path, split: str, options: _Options) -> ImageSet:
    index = ShardIndex.load(path)
    if split not in index.splits:
        raise BigrError(f"{path} has no split {split!r}; it has {', '.join(index.splits)}")
    found = _tars(path, index.tars(split), split, options)
    if found.count != (expected := index.images(split)):
        raise BigrError(f"{path}: the shards of {split} hold {found.count} images, index.json says {expected}")
    return found


def _tars(path: Path, tars: list[StoredFile], split: str | None, options: _Options) -> ImageSet:
    return _files(path, "shards", lambda: encoded_images.tar_images(tars), tars, split, options)


def _files(
    path: Path,
    kind: str,
    read: Callable[[], Iterator[EncodedImage]],
    tars: list[StoredFile] | None,
    split: str | None,
    options: _Options,
) -> ImageSet:
    """A set of image files; its content is that of `tars`, else of the files."""
    found = encoded_images.scan(read(), options.size, options.max_pixels)
    if not found.hashes:
        raise BigrError(f"{path}: there is no image in it ({', '.join(SUFFIXES)})")

    def pixels(image: EncodedImage) -> Tensor:
        return encoded_images.pixels(image, options.size, found.size, options.max_pixels)

    content = files_hash(found.hashes if tars is None else (tar.checksum() for tar in tars))
    images = ImageStream(len(found.hashes), lambda: map_ahead(pixels, read(), options.workers, _AHEAD))
    return ImageSet(
        path, kind, options.hash(content), len(found.hashes), found.formats, found.size, images, split=split
    )


def _npz(path: Path, options: _Options) -> ImageSet:
    statistics = None
    if npz_images.has(path, npz_images.MEAN, npz_images.COVARIANCE):
        # ADM's references do not name their extractor, which is Inception.
        statistics = Statistics(INCEPTION, "", None, *npz_images.moments(path))
        if not npz_images.has(path, npz_images.IMAGES):
            return ImageSet(path, "statistics", sha256_file(path), None, statistics=statistics)
    count, height, width = npz_images.shape(path, options.max_pixels)
    size = options.size

    def stream() -> Iterator[Tensor]:
        if size is None:
            return (torch.from_numpy(image.copy()).permute(2, 0, 1) for image in npz_images.images(path))

        def cropped(image: np.ndarray) -> Tensor:
            return to_tensor(center_crop(Image.fromarray(image), size))

        return map_ahead(cropped, npz_images.images(path), options.workers, _AHEAD)

    content, shown = options.hash(npz_images.content(path)), (size, size) if size else (width, height)
    return ImageSet(path, "npz", content, count, {ARRAY: count}, shown, ImageStream(count, stream), statistics)


def _statistics(path: Path, size: int | None) -> ImageSet:
    found, about = read_statistics(path)
    shown = tuple(about["size"]) if about["size"] else None
    if size and shown and shown != (size, size):
        raise BigrError(f"{path} has statistics of images of {shown[0]}×{shown[1]} pixels, --size is {size}")
    return ImageSet(path, "statistics", about["hash"], found.count, about["formats"], shown, statistics=found)
