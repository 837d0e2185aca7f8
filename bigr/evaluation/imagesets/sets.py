"""Opens a set of images for measurement: a folder, ADM's `.npz`, webdataset shards, or statistics kept in a file.

Opening reads every byte once: for the hash by which the set is known, and to tell by content what is JPEG. Pixels are
decoded later, as they are needed, and never all at once. Whatever cannot be measured is one line that names the file.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bigr.data.images import center_crop
from bigr.data.shards import ShardIndex
from bigr.data.sources import SUFFIXES
from bigr.evaluation.fidelity import kept
from bigr.evaluation.fidelity.extractors import INCEPTION
from bigr.evaluation.fidelity.statistics import Statistics
from bigr.evaluation.imagesets import arrays, encoded
from bigr.evaluation.imagesets.streams import InOrder, files_hash
from bigr.runtime.errors import BigrError
from bigr.runtime.files import sha256_file

ARRAY = "array"
"""The format of images in an `.npz`: as they are, though nobody knows what they went through before."""


@dataclass(frozen=True)
class ImageSet:
    """A set, opened.

    hash: of its content as it is measured; formats: how many images are stored how; size: width and height of every
    image. images: uint8 [3, H, W], None of a set of which only statistics are kept; statistics: what is kept, or comes
    with the images. The count is None where statistics do not tell it. split: of shards with this project's index.
    """

    path: Path
    kind: str
    hash: str
    count: int | None
    formats: dict[str, int] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    images: InOrder | None = None
    statistics: Statistics | None = None
    split: str | None = None

    @property
    def lossy(self) -> int:
        """The number of images that were compressed with losses."""
        return sum(self.formats.get(name, 0) for name in encoded.LOSSY)

    @property
    def lossless(self) -> int:
        """The number of images that are stored as they are."""
        return sum(self.formats.values()) - self.lossy


@dataclass(frozen=True)
class _Reading:
    """How the images of a set are read; see `open_set`."""

    size: int | None
    workers: int
    max_pixels: int | None


def open_set(
    path: Path,
    *,
    split: str = "train",
    size: int | None = None,
    workers: int = 1,
    max_pixels: int | None = None,
) -> ImageSet:
    """Open what `path` names, told by what it is. Raises `BigrError` for whatever cannot be measured.

    split: of shards with this project's index. size: ADM's centre crop to size×size of every image; without it all
    images must be of one size. workers: threads that decode. max_pixels: a larger image is refused before it is decoded
    (None: `bigr.data.images.MAX_PIXELS`).
    """
    how = _Reading(size, workers, max_pixels)
    if not path.exists():
        raise BigrError(f"{path}: there is no such folder or file")
    if path.is_dir():
        if has_splits(path):
            return _shards(path, split, how)
        if tars := sorted(path.glob("*.tar")):
            return _tars(path, tars, None, how)
        return _folder(path, how)
    if path.suffix == ".tar":
        return _tars(path, [path], None, how)
    if path.suffix == ".npz":
        return _npz(path, how)
    if path.suffix == ".safetensors":
        return _statistics(path, size)
    raise BigrError(
        f"{path}: not a set of images; name a folder of images, an .npz, a folder of .tar shards, or a .safetensors "
        "file of statistics"
    )


def has_splits(path: Path) -> bool:
    """Whether `path` is a folder of shards with this project's index."""
    return (path / "index.json").is_file()


def _folder(path: Path, how: _Reading) -> ImageSet:
    def read() -> Iterator[encoded.Encoded]:
        return encoded.folder_pictures(path)

    seen = _look(path, read, how)
    return _pictures(path, "folder", files_hash(seen.hashes), seen, read, how)


def _shards(path: Path, split: str, how: _Reading) -> ImageSet:
    index = ShardIndex.load(path)
    if split not in index.splits:
        raise BigrError(f"{path} has no split {split!r}; it has {', '.join(index.splits)}")
    found = _tars(path, index.tars(split), split, how)
    if found.count != (said := index.images(split)):
        raise BigrError(f"{path}: the shards of {split} hold {found.count} images, index.json says {said}")
    return found


def _tars(path: Path, tars: list[Path], split: str | None, how: _Reading) -> ImageSet:
    def read() -> Iterator[encoded.Encoded]:
        return encoded.tar_pictures(tars)

    seen = _look(path, read, how)
    return _pictures(path, "shards", files_hash(map(sha256_file, tars)), seen, read, how, split)


def _look(path: Path, read: Callable[[], Iterator[encoded.Encoded]], how: _Reading) -> encoded.Look:
    seen = encoded.look(read(), how.size, how.max_pixels)
    if not seen.hashes:
        raise BigrError(f"{path}: there is no image in it ({', '.join(SUFFIXES)})")
    return seen


def _pictures(
    path: Path,
    kind: str,
    content: str,
    seen: encoded.Look,
    read: Callable[[], Iterator[encoded.Encoded]],
    how: _Reading,
    split: str | None = None,
) -> ImageSet:
    """A set of picture files that were looked at."""

    def pixels(picture: encoded.Encoded) -> Tensor:
        return encoded.pixels(picture, how.size, seen.size, how.max_pixels)

    def stream() -> Iterator[Tensor]:
        return encoded.ahead(pixels, read(), how.workers)

    count = len(seen.hashes)
    images = InOrder(count, stream)
    return ImageSet(path, kind, _prepared(content, how.size), count, seen.formats, seen.size, images, split=split)


def _npz(path: Path, how: _Reading) -> ImageSet:
    statistics = None
    if arrays.has(path, arrays.MEAN, arrays.COVARIANCE):
        # ADM's references do not name their extractor: there is one, Inception.
        statistics = Statistics(INCEPTION, "", None, *arrays.moments(path))
        if not arrays.has(path, arrays.IMAGES):
            return ImageSet(path, "statistics", sha256_file(path), None, statistics=statistics)
    count, height, width = arrays.shape(path, how.max_pixels)
    size = how.size

    def stream() -> Iterator[Tensor]:
        if size is None:
            return (torch.from_numpy(image.copy()).permute(2, 0, 1) for image in arrays.images(path))

        def cropped(image: np.ndarray) -> Tensor:
            return encoded.to_tensor(center_crop(Image.fromarray(image), size))

        return encoded.ahead(cropped, arrays.images(path), how.workers)

    content, shown = _prepared(arrays.content(path), size), (size, size) if size else (width, height)
    return ImageSet(path, "npz", content, count, {ARRAY: count}, shown, InOrder(count, stream), statistics)


def _statistics(path: Path, size: int | None) -> ImageSet:
    found = kept.read(path)
    about, shown = found.about, found.about["size"]
    if size and shown and shown != [size, size]:
        raise BigrError(
            f"{path} has statistics of images of {shown[0]}×{shown[1]} pixels, --size asks for {size}×{size}"
        )
    return ImageSet(
        path,
        "statistics",
        about["hash"],
        found.statistics.count,
        about["formats"],
        (shown[0], shown[1]) if shown else None,
        statistics=found.statistics,
    )


def _prepared(content: str, size: int | None) -> str:
    """The hash of content that is cropped before it is measured."""
    return content if size is None else files_hash([content, f"center crop {size}"])
