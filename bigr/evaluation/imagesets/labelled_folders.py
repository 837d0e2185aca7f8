"""Codes of a labelled image folder, in memory, for a model that need not know its classes.

Crop, split and order are those of the stage `shards`; each image is decoded once, and none is kept.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from bigr.data.images import ImageError, center_crop, decode, to_tensor
from bigr.data.sources import Item, Source, printable
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.runtime.errors import BigrError
from bigr.runtime.files import sha256_file
from bigr.runtime.threads import map_ahead

log = logging.getLogger(__name__)


@torch.no_grad()
def folder_codes(
    source: Source,
    split: str,
    count: int,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    workers: int,
    bad_fraction: float,
    max_pixels: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The first `count` images of a split as batches of codes bool [B, N, K] and labels int64 [B].

    Images are cropped to the tokenizer's size; `workers` threads decode. Images that cannot be read, or have more than
    `max_pixels`, are left out with a warning; more than `bad_fraction` of them raise a `BigrError` that names the file.
    """
    device = next(tokenizer.parameters()).device
    size = tokenizer.config.image_size

    def read(item: Item) -> tuple[Item, Tensor | ImageError]:
        try:
            return item, to_tensor(center_crop(decode(source.root / item[0], max_pixels), size))
        except ImageError as error:
            return item, error

    def readable() -> Iterator[tuple[Tensor, int]]:
        items = source.items[split][:count]
        bad = 0
        for (path, label), image in map_ahead(read, items, workers):
            if isinstance(image, Tensor):
                yield image, label
                continue
            bad += 1
            if bad > bad_fraction * len(items):
                reason = f"{source.root / printable(path)} cannot be read ({image})"
                raise BigrError(f"{reason}; repair or remove it, or raise shards.max_bad_fraction")
            log.warning("%s: %s", source.root / printable(path), image)

    stream = readable()
    while batch := list(islice(stream, batch_size)):
        images = torch.stack([image for image, _ in batch]).to(device).float() / 255
        yield tokenizer.codes(images), torch.tensor([label for _, label in batch])


def content_hash(source: Source, counts: dict[str, int], workers: int) -> str:
    """SHA-256 over the names, labels, order and bytes of the first `counts[split]` images of each split."""

    def read(item: Item) -> str:
        try:
            return sha256_file(source.root / item[0])
        except OSError as error:
            return str(error.strerror)  # an image that cannot be read has no features either

    digest = hashlib.sha256()
    for split, count in counts.items():
        items = source.items[split][:count]
        for (path, label), content in zip(items, map_ahead(read, items, workers), strict=True):
            digest.update(json.dumps([split, printable(path), label, content]).encode())
    return digest.hexdigest()
