"""Sets of images as torch-fidelity reads them: one after another, uint8 [3, H, W], none kept in memory."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from bigr.data.codes import CodesDataset
from bigr.data.shards import ShardIndex, read_split
from bigr.models.autoencoder.tokenizer import Tokenizer, to_uint8
from bigr.runtime.errors import BigrError


class InOrder(Dataset[Tensor]):
    """A stream behind a data set's interface. Made to be read in order: any other index starts the stream again.

    count: images; start: makes the stream, of uint8 [3, H, W], anew.
    """

    def __init__(self, count: int, start: Callable[[], Iterator[Tensor]]) -> None:
        self._count, self._start = count, start
        self._stream: Iterator[Tensor] = iter(())
        self._next = -1

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self._count:
            raise IndexError(index)
        if index != self._next:
            self._stream = islice(self._start(), index, None)
        self._next = index + 1
        return next(self._stream)

    def batches(self, size: int) -> Iterator[Tensor]:
        """The whole set in order, uint8 [B, 3, H, W] with B = size but for the last."""
        stream = islice(self._start(), self._count)
        while batch := list(islice(stream, size)):
            yield torch.stack(batch)

    def first(self, count: int, size: int) -> Tensor:
        """The first `count` images in memory, uint8 [count, 3, H, W]; at least one, read `size` at a time."""
        return torch.cat(list(InOrder(count, self._start).batches(size)))


def split_images(shards: Path, split: str, count: int, workers: int) -> InOrder:
    """The first `count` images of a split of the shards."""
    return InOrder(count, lambda: (image for image, _ in read_split(shards, split, workers)))


def split_hash(index: ShardIndex, split: str) -> str:
    """What tells a split's images from any others: `files_hash` of its shards, whose hashes the index keeps."""
    return files_hash(str(entry["sha256"]) for entry in index.splits[split]["shards"])


def files_hash(hashes: Iterable[str]) -> str:
    """SHA-256 over the SHA-256 of files, in their order."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def reconstructions(tokenizer: Tokenizer, codes: CodesDataset, count: int, batch_size: int) -> InOrder:
    """What the tokenizer makes of the first `count` images' codes (first view), in float32, rounded to 8 bits."""
    device = next(tokenizer.parameters()).device

    def stream() -> Iterator[Tensor]:
        for indices in torch.arange(count).split(batch_size):
            with torch.no_grad():
                decoded = tokenizer.decode(codes.batch(indices)[0].to(device))
            yield from to_uint8(decoded).cpu()

    return InOrder(count, stream)


def psnr(images: InOrder, originals: InOrder, batch_size: int) -> float:
    """Peak signal-to-noise ratio of 8-bit images against their originals, in dB, the mean over images.

    An image that equals its original counts as 100 dB.
    """
    values = []
    for a, b in zip(images.batches(batch_size), originals.batches(batch_size), strict=True):
        squared = ((a.double() - b.double()) / 255).square().mean(dim=(1, 2, 3)).clamp(min=1e-10)
        values.append(-10 * squared.log10())
    return float(torch.cat(values).mean())


def read_samples(path: Path, image_size: int, classes: int) -> tuple[Tensor, Tensor]:
    """ADM's layout: images uint8 [n, 3, H, W] and labels int64 [n] of an `.npz`; both are held in memory.

    Raises `BigrError` where the file is missing, damaged, or does not fit the shards.
    """
    again = "run the stage samples again"
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels = file["arr_0"], file["arr_1"]
    except FileNotFoundError:
        raise BigrError(f"{path} is missing; run the stage samples first") from None
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise BigrError(f"{path} is not a file of samples ({error}); {again}") from None
    except Exception as error:  # zipfile's errors have no common base but this
        raise BigrError(f"{path} is damaged ({error}); {again}") from None
    if images.dtype != np.uint8 or images.shape[1:] != (image_size, image_size, 3):
        raise BigrError(
            f"{path}: arr_0 is {images.dtype} {list(images.shape)}; the shards' images ask for "
            f"uint8 [n, {image_size}, {image_size}, 3]; {again}"
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise BigrError(f"{path}: arr_1 is {labels.dtype} {list(labels.shape)}; integers [{len(images)}] are needed")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise BigrError(f"{path}: labels reach {labels.min()} to {labels.max()}, the shards have {classes} classes")
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels.astype(np.int64))
