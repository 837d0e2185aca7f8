"""Codes of labelled images, in memory, for a model that need not know their classes.

Crop, split and order are those of the stage `shards`; each image is decoded once, and none is kept.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bigr.data.images import ImageError, to_tensor
from bigr.data.packed_parts import Packing, stored
from bigr.data.sources.source import Sample, Source
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.runtime.errors import BigrError
from bigr.runtime.files import sha256_file
from bigr.runtime.threads import map_ahead

log = logging.getLogger(__name__)

_PART = 1000
"""Images of a part that is read at a time, where the format leaves the choice."""


@torch.no_grad()
def source_codes(
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

    packing = Packing(size, _PART, max_pixels)

    def read(sample: Sample) -> tuple[Sample, Tensor | ImageError]:
        try:
            return sample, to_tensor(stored(sample, packing))
        except ImageError as error:
            return sample, error

    def readable() -> Iterator[tuple[Tensor, int]]:
        bad = 0
        for sample, image in map_ahead(read, islice(samples(source, split), count), workers):
            if isinstance(image, Tensor):
                yield image, sample.label
                continue
            bad += 1
            if bad > bad_fraction * count:
                reason = f"{source.where}/{sample.name} cannot be read ({image})"
                raise BigrError(f"{reason}; repair or remove it, or raise shards.max_bad_fraction")
            log.warning("%s/%s: %s", source.where, sample.name, image)

    stream = readable()
    while batch := list(islice(stream, batch_size)):
        images = torch.stack([image for image, _ in batch]).to(device).float() / 255
        yield tokenizer.codes(images), torch.tensor([label for _, label in batch])


def samples(source: Source, split: str) -> Iterator[Sample]:
    """The images of a split, in the source's order."""
    for part in source.parts(_PART):
        if part.split in (split, None):
            yield from (sample for sample in source.read(part) if sample.split == split)


def content_hash(source: Source, counts: dict[str, int], workers: int) -> str:
    """SHA-256 over the names, labels, order and contents of the first `counts[split]` images of each split."""

    def read(sample: Sample) -> tuple[Sample, str]:
        image = sample.image
        if isinstance(image, Path):
            try:
                return sample, sha256_file(image)
            except OSError as error:
                return sample, str(error.strerror)  # an image that cannot be read has no features either
        content = image if isinstance(image, bytes) else str(image).encode()
        return sample, hashlib.sha256(image.tobytes() if isinstance(image, np.ndarray) else content).hexdigest()

    digest = hashlib.sha256()
    for split, count in counts.items():
        for sample, content in map_ahead(read, islice(samples(source, split), count), workers):
            digest.update(json.dumps([split, sample.name, sample.label, content]).encode())
    return digest.hexdigest()
