"""The stream of training batches from shards, in memory or streamed from disk.

It has no state: the order of an epoch, and every flip, follow from the seed and the epoch, so that it can start at any
step. The order depends neither on the number of training processes nor on that of loading processes. Images are on the
CPU.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from bigr.data.shards import Shard, ShardIndex, decode_entry, image_starts, load_split, read_places
from bigr.data.stored_files import fetch
from bigr.runtime import seeds
from bigr.runtime.threads import map_ahead

_IN_MEMORY_BYTES = 2 << 30
"""A split whose pixels fit in this is decoded once and kept."""
_BLOCK_IMAGES = 4096
"""The fewest images that are shuffled together in a streamed split; a block is of whole shards."""

_Chosen = tuple[list[tuple[Shard, int, list[int]]], list[int]]
"""What a process reads of a block: shards, each with its first image's number and places in it; and the images."""


class ImageBatches:
    """The training stream of a split: endless batches in an order that follows from `seed`.

    An epoch visits every image at most once: the images that do not fill a global batch of batch_size × world are left
    out. A split smaller than one global batch is repeated within it. Process `rank` gets its own slice of each. A split
    that fits in memory is shuffled whole. A larger one is streamed: shards in random order, images shuffled within
    blocks of shards, decoded by `workers` processes. Each of the world × workers processes reads the images of its own
    batches and seeks over the others, so that together they read each image once in an epoch, however many shards
    there are. In its first epoch, each also reads the tars' headers, 1 KB an image. A shard at a URL is copied here
    whole, through the project's cache, while the block before it is used.

    batch_size: images of one process; horizontal_flip: mirror half of the images, drawn for each image and epoch.
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
        self._starts: dict[Shard, Sequence[int]] = {}

    def from_step(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches from `step` (≥ 0) on, without end: float [B,3,H,W] in [0, 1] and labels int64 [B].

        The batch of a step does not depend on the step that the stream started at.
        """
        if self._streams:
            # Without a generator, the loader would draw its workers' seed from torch's global one.
            draws = torch.Generator()
            loader = DataLoader(_Stream(self, step), batch_size=None, num_workers=self.workers, generator=draws)
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
        """This process's part of an epoch's global batch number `place`, as places in the epoch's order."""
        start = (place * self.world + self.rank) * self.batch_size
        return slice(start, start + self.batch_size)

    def _order(self, epoch: int) -> Tensor:
        """The epoch's order, int64: image numbers, at least one global batch of them."""
        order = torch.randperm(self.images, generator=seeds.generator(self.seed, "images", "order", epoch))
        return order.repeat(-(-self.batch_size * self.world // self.images)) if self.steps_per_epoch == 1 else order

    def _flips(self, epoch: int) -> Tensor:
        """Which images an epoch mirrors, bool [images]."""
        if not self.horizontal_flip:
            return torch.zeros(self.images, dtype=torch.bool)
        return torch.rand(self.images, generator=seeds.generator(self.seed, "images", "flip", epoch)) < 0.5

    def _blocks(self, epoch: int) -> Iterator[tuple[list[tuple[Shard, int]], Tensor]]:
        """A streamed epoch's order: blocks of shards, each with its first image's number; and the block's images."""
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
        """The batches of an epoch at `places`, read from disk: uint8 [B,3,H,W] and labels int64 [B]."""
        flips = self._flips(epoch)
        batch: list[tuple[Tensor, int, bool]] = []
        for shards, chosen in map_ahead(_fetched, self._chosen(epoch, places), workers=1, ahead=1):
            entries = self._read(shards)
            for image in chosen:
                png, label, shard = entries.pop(image)
                batch.append((decode_entry(png, shard), label, bool(flips[image])))
                if len(batch) == self.batch_size:
                    pixels, labels, flip = zip(*batch, strict=True)
                    yield _mirrored(torch.stack(pixels), torch.tensor(flip)), torch.tensor(labels)
                    batch = []

    def _chosen(self, epoch: int, places: range) -> Iterator[_Chosen]:
        """What the batches of an epoch at `places` are read from, block by block."""
        mine = torch.zeros(self.images, dtype=torch.bool)
        for place in places:
            mine[self._slice(place)] = True
        start = 0
        for block, members in self._blocks(epoch):
            chosen = members[mine[start : start + len(members)]].tolist()
            start += len(members)
            images = set(chosen)
            found = [(shard, first, [n for n in range(shard.images) if first + n in images]) for shard, first in block]
            yield [one for one in found if one[2]], chosen

    def _read(self, shards: list[tuple[Shard, int, list[int]]]) -> dict[int, tuple[bytes, int, Shard]]:
        """Image number → its PNG file, label and shard, for the chosen images of a block."""
        entries: dict[int, tuple[bytes, int, Shard]] = {}
        for shard, first, places in shards:
            if shard not in self._starts:
                self._starts[shard] = image_starts(shard)
            for place, entry in zip(places, read_places(shard, self._starts[shard], places), strict=True):
                entries[first + place] = (*entry, shard)
        return entries


class _Stream(IterableDataset):
    """The batches of one loading process: every n-th from a step on, with n loading processes."""

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


def _fetched(chosen: _Chosen) -> _Chosen:
    """The same, once the shards at URLs among them are here."""
    fetch(shard.file for shard, _, _ in chosen[0])
    return chosen


def _mirrored(images: Tensor, flips: Tensor) -> Tensor:
    """Images [B,C,H,W], mirrored where `flips` [B] is true."""
    return torch.where(flips[:, None, None, None], images.flip(-1), images)
