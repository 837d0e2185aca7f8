"""Batches of images of the model's own size, drawn with both networks.

Shapes: n images, N tokens, K bits.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.models.masked.generator import BiGR
from bigr.runtime.cpu_parts import in_parts
from bigr.sampling.decode import batched, decoded
from bigr.sampling.unmask import Sampling


@dataclass(eq=False)
class Sampler:
    """Tokenizer and generator.

    autocast: the context in which the generator runs; decode_precision: as `run.decode_precision`.
    """

    tokenizer: Tokenizer
    network: BiGR
    batch_size: int
    autocast: Callable[[], AbstractContextManager[Any]]
    decode_precision: str = "float32"

    @property
    def device(self) -> torch.device:
        """The networks' device."""
        return self.network.backbone.mask_tok.device

    @property
    def tokens(self) -> int:
        """N, the tokens of an image."""
        return int(self.network.config.grid**2)

    def draw(
        self, sample: Callable[..., Tensor], *rows: Tensor, sampling: Sampling, seeds: Sequence[int], **options: Any
    ) -> list[Image.Image]:
        """n images, of the codes that `sample(network, *rows, sampling, seeds, **options)` samples for each batch.

        sample: `sample_codes`, or one of bigr/sampling/editing.py; rows: its tensors [n, …]; seeds: one for each image;
        options: an `on_iteration` sees each batch as a whole.
        """

        def codes(some: slice) -> Tensor:
            with self.autocast():
                return sample(self.network, *(row[some] for row in rows), sampling, seeds[some], **options)

        found = []
        for places in batched(len(seeds), self.batch_size):
            if options.get("on_iteration") is None:
                found += in_parts(codes, places, self.tokens, self.device)
            else:
                found.append(codes(slice(places.start, places.stop)))
        return self.decode(torch.cat(found))

    def decode(self, codes: Tensor) -> list[Image.Image]:
        """Codes [n, N, K] as images."""
        return [Image.fromarray(pixels.numpy()) for pixels in decoded(self.tokenizer, codes, self.decode_precision)]

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Images of the model's size as codes, bool [n, N, K], in float32; each by itself, whatever is beside it."""
        return torch.cat([self.tokenizer.codes(self.pixels([image])) for image in images])

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Images of the model's size as float [n, 3, H, W] in [0, 1] on the device."""
        array = np.stack([np.asarray(image) for image in images])
        return torch.from_numpy(array).to(self.device).permute(0, 3, 1, 2).float() / 255
