"""The generator's features of images, and which of them are most alike (docs/method.md, section 5)."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bigr.data.images import center_crop
from bigr.imaging.pictures import Picture, read_picture
from bigr.imaging.sampler import Sampler
from bigr.interop.standardisation import FeatureStatistics
from bigr.models.masked.generator import BiGR
from bigr.runtime.cpu_parts import in_parts
from bigr.runtime.errors import BigrError
from bigr.sampling.decode import batched

_ENCODED_TOGETHER = 16
"""Images whose features are taken in one batch; a large image's activations fill much memory."""

_COMPARED_TOGETHER = 1 << 25
"""Similarities that are computed at a time."""


def token_averages(sampler: Sampler, images: Sequence[Picture]) -> Iterator[Tensor]:
    """Every layer's mean over tokens for each batch of the images' centre squares, float32 [b, L, D] on the CPU."""
    for places in batched(len(images), _ENCODED_TOGETHER):
        squares = [center_crop(read_picture(images[place]), sampler.tokenizer.config.image_size) for place in places]
        with torch.no_grad():
            codes = sampler.tokenizer.codes(sampler.pixels(squares))
        yield averages_of(sampler.network, codes).cpu()


def averages_of(model: BiGR, codes: Tensor) -> Tensor:
    """Codes bool [B, N, K] → features float32 [B, L, D] (docs/method.md, section 5).

    The residual stream after every block, averaged over the tokens without the condition token; unconditional, nothing
    masked.
    """

    def averages(images: slice) -> Tensor:
        with torch.no_grad():
            streams = model.features(codes[images])
            return torch.stack([stream.float().mean(dim=1) for stream in streams], dim=1)

    return torch.cat(in_parts(averages, range(len(codes)), codes.shape[1], codes.device))


def most_alike(asked: Tensor, known: Tensor, count: int, statistics: FeatureStatistics | None) -> tuple[Tensor, Tensor]:
    """For each of the features [q, D] the `count` most alike of [n, D]: cosines float32, places int64, [q, k].

    The cosine is of standardised features; statistics: mean and deviation of the layer, those of `known` by default.
    Raises `BigrError` where the shapes do not fit each other.
    """
    own = FeatureStatistics.of(known.unsqueeze(1)) if statistics is None else statistics
    if not len(known) or known.shape[1:] != asked.shape[1:] or own.mean.shape[1:] != known.shape[1:]:
        raise BigrError(
            f"features must be two tensors [n, D], D = {own.mean.shape[1]}, got {list(asked.shape)} and "
            f"{list(known.shape)}"
        )
    units = F.normalize(own.standardised(known.unsqueeze(1))[:, 0], dim=1)
    parts = []
    for some in asked.split(max(1, _COMPARED_TOGETHER // len(known))):
        cosines = F.normalize(own.standardised(some.unsqueeze(1))[:, 0], dim=1) @ units.T
        parts.append(cosines.topk(min(count, len(known)), dim=1))
    return torch.cat([values for values, _ in parts]), torch.cat([places for _, places in parts])
