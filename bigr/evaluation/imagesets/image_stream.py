"""Image sets as streams: uint8 [3, H, W] one after another, none kept in memory; and the hashes of their files."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from bigr.data.codes import CodesDataset
from bigr.data.shards import Shard, ShardIndex, decode_entry, read_entries
from bigr.models.autoencoder.tokenizer import Tokenizer, to_uint8
from bigr.models.psnr import psnr
from bigr.runtime.distributed import my_range, of_each, together
from bigr.runtime.threads import map_ahead


class ImageStream:
    """A set of images that can be read several times. Its length is the number of images.

    count: images; start: starts the stream, of uint8 [3, H, W]; at: starts it at an image's number, where that takes
    less than reading all before it.
    """

    def __init__(
        self, count: int, start: Callable[[], Iterator[Tensor]], at: Callable[[int], Iterator[Tensor]] | None = None
    ) -> None:
        self._count, self._start, self._at = count, start, at

    def __len__(self) -> int:
        return self._count

    def batches(self, size: int, numbers: range | None = None) -> Iterator[Tensor]:
        """All images in order, or those of consecutive numbers: uint8 [B, 3, H, W], B = `size` but in the last."""
        numbers = range(self._count) if numbers is None else numbers
        stream = islice(self._from(numbers.start), len(numbers))
        while batch := list(islice(stream, size)):
            yield torch.stack(batch)

    def limited(self, count: int) -> "ImageStream":
        """The first `count` images alone."""
        return ImageStream(count, self._start, self._at)

    def first(self, count: int, size: int) -> Tensor:
        """The first `count` ≥ 1 images in memory, uint8 [count, 3, H, W], read `size` at a time."""
        return torch.cat(list(self.batches(size, range(count))))

    def some(self, numbers: Sequence[int]) -> Tensor:
        """Some images in memory, uint8 [n, 3, H, W], in the order of their numbers."""
        return torch.stack([next(self._from(number)) for number in numbers])

    def _from(self, number: int) -> Iterator[Tensor]:
        if number == 0 or self._at is None:
            return islice(self._start(), number, None)
        return self._at(number)


def split_images(shards: Path, split: str, count: int, workers: int) -> ImageStream:
    """The first `count` images of a split of the shards; `workers` threads decode."""

    def at(number: int) -> Iterator[Tensor]:
        for shard in ShardIndex.load(shards).shards(split):
            if number < shard.images:
                decode = partial(_decoded, shard=shard)
                yield from map_ahead(decode, islice(read_entries(shard), number, None), workers)
            number = max(0, number - shard.images)

    return ImageStream(count, lambda: at(0), at)


def _decoded(entry: tuple[bytes, int], shard: Shard) -> Tensor:
    return decode_entry(entry[0], shard)


def reconstructions(tokenizer: Tokenizer, codes: CodesDataset, count: int, batch_size: int) -> ImageStream:
    """The tokenizer's images from the codes of the first `count` images (first view): float32, rounded to 8 bits.

    Batches begin at multiples of `batch_size`, from whichever image it is read.
    """
    device = next(tokenizer.parameters()).device

    def stream(first: int) -> Iterator[Tensor]:
        start = first // batch_size * batch_size
        for indices in torch.arange(start, count).split(batch_size):
            with torch.no_grad():
                decoded = tokenizer.decode(codes.batch(indices)[0].to(device))
            yield from to_uint8(decoded).cpu()[max(0, first - int(indices[0])) :]

    return ImageStream(count, lambda: stream(0), stream)


def mean_psnr(images: ImageStream, originals: ImageStream, batch_size: int) -> float:
    """The mean over images of their PSNR in dB against as many originals; see `bigr.models.psnr`.

    Each process measures its share of the images.
    """
    if len(images) != len(originals):
        raise ValueError(f"{len(images)} images do not pair with {len(originals)} originals")
    mine = my_range(len(images), batch_size)

    def measured() -> list[Tensor]:
        pairs = zip(images.batches(batch_size, mine), originals.batches(batch_size, mine), strict=True)
        return [psnr(a.double(), b.double(), peak=255) for a, b in pairs]

    return float(torch.cat([part for parts in of_each(together(measured)) for part in parts]).mean())


def mean_picture(images: ImageStream) -> Tensor:
    """The mean of a set of images, float [3, H, W] in [0, 1]. Each process adds up its share."""
    size = 256

    def added() -> Tensor | int:
        return sum(batch.double().sum(0) for batch in images.batches(size, my_range(len(images), size)))

    return (torch.as_tensor(sum(of_each(together(added)))) / len(images) / 255).float()


def split_hash(index: ShardIndex, split: str) -> str:
    """The hash of a split: `files_hash` of its shards, whose hashes the index holds."""
    return files_hash(str(entry["sha256"]) for entry in index.splits[split]["shards"])


def files_hash(hashes: Iterable[str]) -> str:
    """SHA-256 over the SHA-256 of files, in their order."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
