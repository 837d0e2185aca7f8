"""Reads shards: their index, whole splits, and the stream of batches that training needs.

Written by `bigr.data.packing`, which is a module of its own so that a change there does not retrain what reads here.
The stream has no state: the order of an epoch, and every flip, follows from the seed and the epoch, so that it can
start at any step. Knows no models and no devices: images are on the CPU.
"""

import io
import itertools
import json
import tarfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from bigr.runtime import seeds
from bigr.runtime.errors import BigrError
from bigr.runtime.extras import require

_IN_MEMORY_BYTES = 2 << 30
"""A split whose pixels fit in this is decoded once and kept."""
_BLOCK_IMAGES = 4096
"""Images that are shuffled among each other where a split is streamed: whole shards, together at least so many."""

_AHEAD = 256
"""Images that are decoded before they are asked for."""


class Shard(NamedTuple):
    """One tar, the number of images in it, and the side of each in pixels."""

    path: Path
    images: int
    image_size: int


@dataclass(frozen=True)
class ShardIndex:
    """The shards' `index.json`. classes: names in the order of the labels."""

    folder: Path
    image_size: int
    classes: list[str]
    splits: dict[str, dict[str, Any]]

    @classmethod
    def load(cls, folder: Path) -> "ShardIndex":
        """Read the index. Raises `BigrError` where there is none, or an unreadable one."""
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
        return [Shard(self.folder / entry["name"], int(entry["images"]), size) for entry in entries]

    def tars(self, split: str) -> list[Path]:
        """The files of a split, in order."""
        return [shard.path for shard in self.shards(split)]

    def class_counts(self, split: str) -> list[int]:
        """The number of images of each class of a split."""
        return [int(count) for count in self.splits[split]["class_counts"]]


def read_shard(shard: Shard, workers: int = 1) -> Iterator[tuple[Tensor, int]]:
    """Every image of one shard, in order: uint8 [3,H,W] and its label. Raises `BigrError` for a damaged shard.

    `workers` threads decode a little ahead of the reader (Pillow decodes without Python's lock).
    """
    pool = ThreadPoolExecutor(max(1, workers))
    ahead: deque[tuple[Future[Tensor], int]] = deque()
    try:
        for png, label in _encoded(shard):
            ahead.append((pool.submit(_decoded, png, shard), label))
            if len(ahead) > _AHEAD:
                image, label = ahead.popleft()
                yield image.result(), label
        for image, label in ahead:
            yield image.result(), label
    finally:
        pool.shutdown(cancel_futures=True)


def read_split(folder: Path, split: str, workers: int = 1) -> Iterator[tuple[Tensor, int]]:
    """Every image of a split once, in the shards' order: uint8 [3,H,W] and its label."""
    for shard in ShardIndex.load(folder).shards(split):
        yield from read_shard(shard, workers)


def load_split(folder: Path, split: str, limit: int | None = None, workers: int = 1) -> tuple[Tensor, Tensor]:
    """A split, or its first `limit` images (of mixed classes), in memory: uint8 [n,3,H,W] and labels int64 [n]."""
    index = ShardIndex.load(folder)
    count = index.images(split) if limit is None else min(limit, index.images(split))
    images = torch.empty(count, 3, index.image_size, index.image_size, dtype=torch.uint8)
    labels = torch.empty(count, dtype=torch.int64)
    for place, (image, label) in enumerate(itertools.islice(read_split(folder, split, workers), count)):
        images[place], labels[place] = image, label
    return images, labels


def _encoded(shard: Shard) -> Iterator[tuple[bytes, int]]:
    """Every image of one shard, in order: a PNG file's bytes and the label."""
    require("train", "reading shards")
    from webdataset.tariterators import group_by_keys, tar_file_expander

    count = 0
    try:
        # Opened here: webdataset's own opener would read braces and colons of a path as its URL syntax.
        with shard.path.open("rb") as stream:
            for sample in group_by_keys(tar_file_expander([{"url": str(shard.path), "stream": stream}])):
                yield sample["png"], int(sample["cls"])
                count += 1
    except (OSError, EOFError, tarfile.TarError, KeyError, ValueError) as error:
        raise BigrError(f"{shard.path} cannot be read ({_reason(error)}); run the stage shards again") from None
    if count != shard.images:
        raise BigrError(f"{shard.path} holds {count} images, its index says {shard.images}; run the stage shards again")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first = error.args[0] if error.args else None
    return repr(first) if isinstance(first, str) and first else type(error).__name__  # webdataset adds its stream


def _decoded(png: bytes, shard: Shard) -> Tensor:
    """Pixels as uint8 [3,H,W]. What the index does not announce is refused from its header: it may unfold to gigabytes
    that were never looked at."""
    size = shard.image_size
    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            if (image.width, image.height, image.mode) == (size, size, "RGB"):
                return torch.from_numpy(np.array(image)).permute(2, 0, 1)
            found = f"of {image.width}×{image.height} pixels ({image.mode})"
    except Exception as error:  # decoders raise many kinds over a broken file
        found = f"that cannot be read ({' '.join(str(error).split()) or type(error).__name__})"
    raise BigrError(
        f"{shard.path} holds an image {found}, its index says {size}×{size} pixels (RGB); run the stage shards again"
    )


class ImageBatches:
    """The training stream of a split: endless batches whose order follows from the seed alone.

    An epoch visits every image at most once: what does not fill a batch of all processes is left out, and the next
    epoch has another order. A split smaller than one such batch is repeated within it, so that every batch has
    `batch_size` images. Of each global batch of batch_size × world images, process `rank` gets its own slice. A split
    that fits in memory is shuffled whole; a larger one is streamed: shards in random order, images shuffled within
    blocks of shards, decoded by `workers` processes of which each keeps only what its own batches need.

    batch_size: images per process. horizontal_flip: mirrors half of the images, drawn per image and epoch.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        batch_size: int,
        *,
        seed: int,
        horizontal_flip: bool,
        rank: int = 0,
        world: int = 1,
        workers: int = 1,
    ) -> None:
        self.index, self.split, self.batch_size = ShardIndex.load(folder), split, batch_size
        self.seed, self.horizontal_flip = seed, horizontal_flip
        self.rank, self.world, self.workers = rank, world, workers
        self.images = self.index.images(split)
        self.steps_per_epoch = max(1, self.images // (batch_size * world))
        too_large = self.images * 3 * self.index.image_size**2 > _IN_MEMORY_BYTES
        self._streams = too_large and self.images >= batch_size * world
        self._memory: tuple[Tensor, Tensor] | None = None

    def from_step(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The stream from a step on: float [B,3,H,W] in [0, 1] and labels int64 [B], endless.

        What it gives at a step does not depend on where it was started.
        """
        if self._streams:
            # A generator of its own: the loader would otherwise draw its workers' seed from torch's global one.
            own = torch.Generator()
            loader = DataLoader(_Stream(self, step), batch_size=None, num_workers=self.workers, generator=own)
            for images, labels in loader:
                yield images.float() / 255, labels
            return
        if self._memory is None:
            self._memory = load_split(self.index.folder, self.split, workers=self.workers)
        images, labels = self._memory
        while True:
            epoch, first = divmod(step, self.steps_per_epoch)
            order, flips = self._order(epoch), self._flips(epoch)
            for place in range(first, self.steps_per_epoch):
                chosen = order[self._slice(place)]
                yield _mirrored(images[chosen], flips[chosen]).float() / 255, labels[chosen]
            step += self.steps_per_epoch - first

    def _slice(self, place: int) -> slice:
        """Where the batch of this process stands in the order of an epoch."""
        start = (place * self.world + self.rank) * self.batch_size
        return slice(start, start + self.batch_size)

    def _order(self, epoch: int) -> Tensor:
        """Numbers of images, at least one global batch of them."""
        order = torch.randperm(self.images, generator=seeds.generator(self.seed, "images", "order", epoch))
        return order.repeat(-(-self.batch_size * self.world // self.images)) if self.steps_per_epoch == 1 else order

    def _flips(self, epoch: int) -> Tensor:
        """Which images are mirrored, bool [images]."""
        if not self.horizontal_flip:
            return torch.zeros(self.images, dtype=torch.bool)
        return torch.rand(self.images, generator=seeds.generator(self.seed, "images", "flip", epoch)) < 0.5

    def _blocks(self, epoch: int) -> Iterator[tuple[list[tuple[Shard, int]], Tensor]]:
        """The order of an epoch that is streamed: blocks of shards (with their first image's number), their images."""
        draw = seeds.generator(self.seed, "images", "blocks", epoch)
        shards = self.index.shards(self.split)
        firsts = [0, *itertools.accumulate(shard.images for shard in shards)]
        block: list[tuple[Shard, int]] = []
        members: list[Tensor] = []
        for number in torch.randperm(len(shards), generator=draw).tolist():
            block.append((shards[number], firsts[number]))
            members.append(torch.arange(firsts[number], firsts[number + 1]))
            if sum(map(len, members)) >= _BLOCK_IMAGES:
                yield block, torch.cat(members)[torch.randperm(sum(map(len, members)), generator=draw)]
                block, members = [], []
        if block:
            yield block, torch.cat(members)[torch.randperm(sum(map(len, members)), generator=draw)]

    def streamed(self, epoch: int, places: range) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches at some places of an epoch, read shard by shard: uint8 [B,3,H,W] and labels [B]."""
        flips = self._flips(epoch)
        mine = torch.zeros(self.images, dtype=torch.bool)
        for place in places:
            mine[self._slice(place)] = True
        batch: list[tuple[Tensor, int, bool]] = []
        start = 0
        for block, members in self._blocks(epoch):
            wanted = members[mine[start : start + len(members)]].tolist()
            start += len(members)
            encoded = _read(block, set(wanted)) if wanted else {}
            for image in wanted:
                png, label, shard = encoded.pop(image)
                batch.append((_decoded(png, shard), label, bool(flips[image])))
                if len(batch) == self.batch_size:
                    pixels, labels, flip = zip(*batch, strict=True)
                    yield _mirrored(torch.stack(pixels), torch.tensor(flip)), torch.tensor(labels)
                    batch = []


class _Stream(IterableDataset):
    """What one loading process reads: every n-th batch from a step on, n being the number of such processes."""

    def __init__(self, batches: ImageBatches, step: int) -> None:
        self.batches, self.step = batches, step

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = get_worker_info()
        step, stride = (self.step + worker.id, worker.num_workers) if worker else (self.step, 1)
        while True:
            epoch, first = divmod(step, self.batches.steps_per_epoch)
            places = range(first, self.batches.steps_per_epoch, stride)
            yield from self.batches.streamed(epoch, places)
            step += len(places) * stride


def _read(block: list[tuple[Shard, int]], wanted: set[int]) -> dict[int, tuple[bytes, int, Shard]]:
    """Image number → its PNG file, label and shard, for the wanted images of a block."""
    found: dict[int, tuple[bytes, int, Shard]] = {}
    for shard, first in block:
        for number, (png, label) in enumerate(_encoded(shard), start=first):
            if number in wanted:
                found[number] = png, label, shard
    return found


def _mirrored(images: Tensor, flips: Tensor) -> Tensor:
    """Images [B,C,H,W] with those mirrored for which `flips` [B] is true."""
    return torch.where(flips[:, None, None, None], images.flip(-1), images)
