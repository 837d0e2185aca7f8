"""Image sets as streams: uint8 [3, H, W] one after another, none kept in memory; and the hashes of their files."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from bigr.data.codes import CodesDataset
from bigr.data.shards import ShardIndex, read_split
from bigr.models.autoencoder.tokenizer import Tokenizer, to_uint8
from bigr.models.psnr import psnr


class ImageStream:
    """A set of images that can be read several times, from the first on. Its length is the number of images.

    count: images; start: starts the stream, of uint8 [3, H, W].
    """

    def __init__(self, count: int, start: Callable[[], Iterator[Tensor]]) -> None:
        self._count, self._start = count, start

    def __len__(self) -> int:
        return self._count

    def batches(self, size: int) -> Iterator[Tensor]:
        """All images in order, uint8 [B, 3, H, W], B = `size` except in the last batch."""
        stream = islice(self._start(), self._count)
        while batch := list(islice(stream, size)):
            yield torch.stack(batch)

    def limited(self, count: int) -> "ImageStream":
        """The first `count` images alone."""
        return ImageStream(count, self._start)

    def first(self, count: int, size: int) -> Tensor:
        """The first `count` ≥ 1 images in memory, uint8 [count, 3, H, W], read `size` at a time."""
        return torch.cat(list(self.limited(count).batches(size)))


def split_images(shards: Path, split: str, count: int, workers: int) -> ImageStream:
    """The first `count` images of a split of the shards; `workers` threads decode."""
    return ImageStream(count, lambda: (image for image, _ in read_split(shards, split, workers)))


def reconstructions(tokenizer: Tokenizer, codes: CodesDataset, count: int, batch_size: int) -> ImageStream:
    """The tokenizer's images from the codes of the first `count` images (first view): float32, rounded to 8 bits."""
    device = next(tokenizer.parameters()).device

    def stream() -> Iterator[Tensor]:
        for indices in torch.arange(count).split(batch_size):
            with torch.no_grad():
                decoded = tokenizer.decode(codes.batch(indices)[0].to(device))
            yield from to_uint8(decoded).cpu()

    return ImageStream(count, stream)


def mean_psnr(images: ImageStream, originals: ImageStream, batch_size: int) -> float:
    """The mean over images of their PSNR in dB against as many originals; see `bigr.models.psnr`."""
    pairs = zip(images.batches(batch_size), originals.batches(batch_size), strict=True)
    return float(torch.cat([psnr(a.double(), b.double(), peak=255) for a, b in pairs]).mean())


def split_hash(index: ShardIndex, split: str) -> str:
    """The hash of a split: `files_hash` of its shards, whose hashes the index holds."""
    return files_hash(str(entry["sha256"]) for entry in index.splits[split]["shards"])


def files_hash(hashes: Iterable[str]) -> str:
    """SHA-256 over the SHA-256 of files, in their order."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()
