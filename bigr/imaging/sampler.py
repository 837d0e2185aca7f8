"""Batches of images of the model's own size, drawn with both networks.

Every method takes what is to be drawn for n images, each with the seed of its generator, and draws them `batch_size`
at a time. Shapes: g×g grid of N tokens, K bits.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.models.masked.generator import BiGR
from bigr.runtime.transfer import to_device
from bigr.sampling.decode import batched, decoded
from bigr.sampling.editing import OnIteration, enrich_codes, inpaint_codes, interpolate_codes
from bigr.sampling.inputs import check_finite
from bigr.sampling.unmask import Sampling, sample_codes


class Sampler:
    """Tokenizer and generator. autocast: the context in which the generator runs.

    Raises `BigrError` where the generator's weights are not finite.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        network: BiGR,
        batch_size: int,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        check_finite(network)
        self.tokenizer, self.network, self.batch_size, self._autocast = tokenizer, network, batch_size, autocast

    @property
    def device(self) -> torch.device:
        """The networks' device."""
        return self.network.backbone.mask_tok.device

    @property
    def tokens(self) -> int:
        """N, the tokens of an image."""
        return int(self.network.config.grid**2)

    def generate(
        self, labels: Tensor, sampling: Sampling, seeds: Sequence[int], on_iteration: OnIteration | None = None
    ) -> list[Image.Image]:
        """Images of labels int64 [n]."""

        def draw(some: slice) -> Tensor:
            return sample_codes(self.network, labels[some], sampling, seeds[some], on_iteration=on_iteration)

        return self._draw(len(seeds), draw)

    def inpaint(
        self,
        codes: Tensor,
        unknown: Tensor,
        labels: Tensor,
        sampling: Sampling,
        seeds: Sequence[int],
        on_iteration: OnIteration | None = None,
    ) -> list[Image.Image]:
        """Images of codes [n, N, K] whose unknown tokens, bool [n, N], are sampled under labels int64 [n]."""

        def draw(some: slice) -> Tensor:
            given = self.network, codes[some], unknown[some], labels[some], sampling, seeds[some]
            return inpaint_codes(*given, on_iteration=on_iteration)

        unknown = to_device(unknown, self.device)
        return self._draw(len(seeds), draw)

    def interpolate(
        self,
        first: Tensor,
        second: Tensor,
        ratios: Tensor,
        sampling: Sampling,
        seeds: Sequence[int],
        on_iteration: OnIteration | None = None,
    ) -> list[Image.Image]:
        """Images under r·e(first) + (1 − r)·e(second); first, second: int64 [n]; ratios: r in [0, 1], float [n]."""

        def draw(some: slice) -> Tensor:
            given = self.network, first[some], second[some], ratios[some], sampling, seeds[some]
            return interpolate_codes(*given, on_iteration=on_iteration)

        return self._draw(len(seeds), draw)

    def enrich(
        self,
        codes: Tensor,
        labels: Tensor,
        sampling: Sampling,
        seeds: Sequence[int],
        rounds: int,
        on_iteration: OnIteration | None = None,
    ) -> list[Image.Image]:
        """Images of codes [n, N, K] whose tokens are all sampled anew, `rounds` times, under labels int64 [n]."""

        def draw(some: slice) -> Tensor:
            given = self.network, codes[some], labels[some], sampling, seeds[some]
            return enrich_codes(*given, rounds=rounds, on_iteration=on_iteration)

        return self._draw(len(seeds), draw)

    def decode(self, codes: Tensor) -> list[Image.Image]:
        """Codes [n, N, K] as images."""
        return [Image.fromarray(pixels.numpy()) for pixels in decoded(self.tokenizer, codes)]

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Images of the model's size as codes, bool [n, N, K], in float32; each by itself, whatever is beside it."""
        return torch.cat([self.tokenizer.codes(self.pixels([image])) for image in images])

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Images of the model's size as float [n, 3, H, W] in [0, 1] on the device."""
        array = np.stack([np.asarray(image) for image in images])
        return torch.from_numpy(array).to(self.device).permute(0, 3, 1, 2).float() / 255

    def _draw(self, count: int, draw: Callable[[slice], Tensor]) -> list[Image.Image]:
        """`count` images, from what `draw` samples for each batch: codes bool [b, N, K]."""
        parts = []
        for places in batched(count, self.batch_size):
            with self._autocast():
                parts.append(draw(slice(places.start, places.stop)))
        return self.decode(torch.cat(parts))
