"""Reads shards: their index, one shard, a whole split. The training stream is `bigr.data.image_batches`.

`bigr.data.packing` writes them. Images are uint8 on the CPU.
"""

import io
import itertools
import json
import tarfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from bigr.data.images import to_tensor
from bigr.data.stored_files import StoredFile, stored_file
from bigr.runtime.errors import BigrError
from bigr.runtime.extras import require
from bigr.runtime.threads import map_ahead

STORED = ("png", "jpg", "jpeg", "webp")
"""Suffixes of the images in a shard; those that this project writes are PNG."""
_FORMATS = ("PNG", "JPEG", "WEBP")


class Shard(NamedTuple):
    """One tar, here or at a URL, the number of images in it, and the side of each in pixels."""

    file: StoredFile
    images: int
    image_size: int


@dataclass(frozen=True)
class ShardIndex:
    """The shards' `index.json`. image_size: pixels of one side; classes: names in the order of the labels."""

    folder: Path
    image_size: int
    classes: list[str]
    splits: dict[str, dict[str, Any]]

    @classmethod
    def load(cls, folder: Path) -> "ShardIndex":
        """Read the index. Raises `BigrError` if it is missing or damaged."""
        path = folder / "index.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(folder, values["image_size"], values["classes"], values["splits"])
        except FileNotFoundError:
            raise BigrError(f"{path} is missing; run the stage shards first") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BigrError(f"{path} is not an index of shards ({error!r}); run the stage shards again") from None

    def images(self, split: str) -> int:
        """The number of images of a split."""
        return int(self.splits[split]["images"])

    def shards(self, split: str) -> list[Shard]:
        """The shards of a split, in order."""
        entries, size = self.splits[split]["shards"], self.image_size
        try:
            return [Shard(stored_file(self.folder, e, "shards"), int(e["images"]), size) for e in entries]
        except (KeyError, ValueError, TypeError) as error:
            path = self.folder / "index.json"
            raise BigrError(f"{path} is not an index of shards ({error!r}); run the stage shards again") from None

    def tars(self, split: str) -> list[StoredFile]:
        """The files of a split, in order."""
        return [shard.file for shard in self.shards(split)]

    def class_counts(self, split: str) -> list[int]:
        """The number of images of each class of a split."""
        return [int(count) for count in self.splits[split]["class_counts"]]


def read_shard(shard: Shard, workers: int = 1) -> Iterator[tuple[Tensor, int]]:
    """Every image of one shard, in order: uint8 [3,H,W] and its label; `workers` threads decode.

    Raises `BigrError` for a damaged shard.
    """
    return map_ahead(lambda entry: (decode_entry(entry[0], shard), entry[1]), read_entries(shard), workers)


def read_split(folder: Path, split: str, workers: int = 1) -> Iterator[tuple[Tensor, int]]:
    """Every image of a split once, in the shards' order: uint8 [3,H,W] and its label."""
    for shard in ShardIndex.load(folder).shards(split):
        yield from read_shard(shard, workers)


def load_split(folder: Path, split: str, limit: int | None = None, workers: int = 1) -> tuple[Tensor, Tensor]:
    """A split, or its first `limit` images, in memory: uint8 [n,3,H,W] and labels int64 [n]. Classes are mixed."""
    index = ShardIndex.load(folder)
    count = index.images(split) if limit is None else min(limit, index.images(split))
    images = torch.empty(count, 3, index.image_size, index.image_size, dtype=torch.uint8)
    labels = torch.empty(count, dtype=torch.int64)
    for place, (image, label) in enumerate(itertools.islice(read_split(folder, split, workers), count)):
        images[place], labels[place] = image, label
    return images, labels


def read_entries(shard: Shard) -> Iterator[tuple[bytes, int]]:
    """Every image of one shard, in order and not decoded: the bytes of its file, and the label.

    Raises `BigrError` for a shard that cannot be read, or holds another number of images than its index says.
    """
    count = 0
    with _explained(shard), shard.file.open() as stream:
        for entry in _entries(shard, stream):
            yield entry
            count += 1
    _check_count(shard, count)


def read_captions(shard: Shard) -> Iterator[str]:
    """The caption of every image of one shard, in order; empty where there is none. Decodes no image.

    Raises as `read_entries` does.
    """
    count = 0
    with _explained(shard), shard.file.open() as stream:
        for members in members_of(str(shard.file), stream):
            yield members.get("txt", b"").decode("utf-8", "replace")
            count += 1
    _check_count(shard, count)


def first_captions(index: ShardIndex, split: str, count: int) -> list[str]:
    """The captions of the first `count` images of a split, of all where there are fewer; as `read_captions`."""
    return list(itertools.islice(itertools.chain.from_iterable(map(read_captions, index.shards(split))), count))


def image_starts(shard: Shard) -> Sequence[int]:
    """Where each image of one shard starts in its tar, and where the last ends, in bytes: images + 1 numbers.

    Reads the tar's headers, 1 KB for each image, and seeks over the rest. Raises as `read_entries` does.
    """
    with _explained(shard), shard.file.open(buffering=0) as stream:
        starts = image_starts_of(stream)
    _check_count(shard, len(starts) - 1)
    return starts


def image_starts_of(stream: BinaryIO) -> Sequence[int]:
    """As `image_starts`, of any tar of such members, from its start. Raises what reading a tar raises."""
    require("train", "reading shards")
    from webdataset.tariterators import base_plus_ext

    starts = array("q")
    last = None
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        for member in tar:
            key, _ = base_plus_ext(member.name)
            if key != last:
                starts.append(member.offset)
            last = key
        starts.append(tar.offset)
    return starts


def read_places(shard: Shard, starts: Sequence[int], places: Iterable[int]) -> Iterator[tuple[bytes, int]]:
    """As `read_entries`, but only the images at `places`, from 0; no byte of another is read.

    starts: of `image_starts`.
    """
    with _explained(shard), shard.file.open(buffering=0) as stream:
        for place in places:
            stream.seek(starts[place])
            yield from _entries(shard, io.BytesIO(stream.read(starts[place + 1] - starts[place])))


def _entries(shard: Shard, stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """The file and label of each image in a tar, or a part of one that starts with an image."""
    for members in members_of(str(shard.file), stream):
        image = next((suffix for suffix in STORED if suffix in members), "png")
        yield members[image], int(members["cls"])


def members_of(name: str, stream: BinaryIO) -> Iterator[dict[str, bytes]]:
    """The members of each image of a tar by their suffixes. Raises what reading a tar raises."""
    require("train", "reading shards")
    from webdataset.tariterators import group_by_keys, tar_file_expander

    # A stream that is open, since webdataset's own opener reads braces and colons of a path as its URL syntax.
    yield from group_by_keys(tar_file_expander([{"url": name, "stream": stream}]))


@contextmanager
def _explained(shard: Shard) -> Iterator[None]:
    """Turn what reading a tar raises into a `BigrError`."""
    try:
        yield
    except (OSError, EOFError, tarfile.TarError, KeyError, ValueError) as error:
        raise BigrError(f"{shard.file} cannot be read ({_reason(error)}); run the stage shards again") from None


def _check_count(shard: Shard, count: int) -> None:
    if count != shard.images:
        raise BigrError(f"{shard.file} holds {count} images, its index says {shard.images}; run the stage shards again")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first = error.args[0] if error.args else None
    return repr(first) if isinstance(first, str) and first else type(error).__name__  # webdataset adds its stream


def decode_entry(data: bytes, shard: Shard) -> Tensor:
    """The pixels of one image of `shard`, uint8 [3,H,W].

    Raises `BigrError` for an image of another size or mode than the index says, by its header: a small file may decode
    to gigabytes.
    """
    size = shard.image_size
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if _fits(image, size):
                return to_tensor(image)
            found = f"of {image.width}×{image.height} pixels ({image.mode})"
    except Exception as error:  # decoders raise many kinds for a broken file
        found = f"that cannot be read ({' '.join(str(error).split()) or type(error).__name__})"
    raise BigrError(
        f"{shard.file} holds an image {found}, its index says {size}×{size} pixels (RGB or L); run the stage "
        "shards again"
    )


def fits(data: bytes, image_size: int) -> bool:
    """Whether an image, by its header, is one that a shard holds: of this size, RGB or grey, and upright."""
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            turned = image.format != "PNG" and image.getexif().get(_ORIENTATION, 1) != 1
            return _fits(image, image_size) and not turned
    except Exception:  # decoders raise many kinds for a broken file
        return False


_ORIENTATION = 0x0112


def _fits(image: Image.Image, size: int) -> bool:
    return (image.width, image.height) == (size, size) and image.mode in ("RGB", "L")
