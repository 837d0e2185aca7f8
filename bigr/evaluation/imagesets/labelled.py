"""A labelled image folder, as it comes, for a model that may never have seen its classes: pictures to codes, in memory.

Crop, split and order are those of the stage `shards`, without the shards: a picture is decoded once, and none is kept.
"""

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from bigr.data.images import ImageError, center_crop, decode
from bigr.data.sources import Item, Source, printable
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.runtime.errors import BigrError
from bigr.runtime.files import sha256_file

log = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 256
"""Pictures that are read before they are asked for."""


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
    """The first `count` pictures of a split as batches of codes bool [B, N, K] and labels int64 [B].

    Pictures are cropped to the tokenizer's size; `workers` threads decode. Raises `BigrError` naming the file where
    more than `bad_fraction` of them cannot be read, or have more than `max_pixels`; others are left out, with a
    warning.
    """
    device = next(tokenizer.parameters()).device
    size = tokenizer.config.image_size

    def read(item: Item) -> Tensor | str:
        try:
            picture = center_crop(decode(source.root / item[0], max_pixels), size)
            return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        except ImageError as error:
            return str(error)

    def readable() -> Iterator[tuple[Tensor, int]]:
        items = source.items[split][:count]
        bad = 0
        for (path, label), image in _in_threads(read, items, workers):
            if isinstance(image, Tensor):
                yield image, label
                continue
            bad += 1
            if bad > bad_fraction * len(items):
                why = f"{source.root / printable(path)} cannot be read ({image})"
                raise BigrError(f"{why}; repair or remove it, or raise shards.max_bad_fraction")
            log.warning("%s: %s", source.root / printable(path), image)

    stream = readable()
    while batch := list(islice(stream, batch_size)):
        images = torch.stack([image for image, _ in batch]).to(device).float() / 255
        yield tokenizer.codes(images), torch.tensor([label for _, label in batch])


def content_hash(source: Source, counts: dict[str, int], workers: int) -> str:
    """SHA-256 over the pictures of each split that are measured: their names, labels, order and bytes."""

    def read(item: Item) -> str:
        try:
            return sha256_file(source.root / item[0])
        except OSError as error:
            return str(error.strerror)  # what cannot be read has no features either

    digest = hashlib.sha256()
    for split, count in counts.items():
        for (path, label), content in _in_threads(read, source.items[split][:count], workers):
            digest.update(json.dumps([split, printable(path), label, content]).encode())
    return digest.hexdigest()


def _in_threads(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[tuple[T, R]]:
    """Each item with what `work` makes of it, in order; a little ahead of the reader."""
    pool = ThreadPoolExecutor(max(1, workers))
    ahead: deque[tuple[T, Future[R]]] = deque()
    try:
        for item in items:
            ahead.append((item, pool.submit(work, item)))
            if len(ahead) > _AHEAD:
                first, result = ahead.popleft()
                yield first, result.result()
        for first, result in ahead:
            yield first, result.result()
    finally:
        pool.shutdown(cancel_futures=True)
