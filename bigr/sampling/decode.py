"""From codes to pictures of eight bits, so that a picture does not depend on which others are decoded with it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from bigr.models.autoencoder.tokenizer import Tokenizer, to_uint8

DECODED_TOGETHER = 16
"""Codes in one pass of the decoder, always."""


def batched(count: int, size: int) -> Iterator[range]:
    """0..count in ranges of at most `size`."""
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


@torch.no_grad()
def decoded(tokenizer: Tokenizer, codes: Tensor) -> Tensor:
    """Codes [n, N, K] → images uint8 [n, H, W, 3] on the CPU, in float32 also under autocast.

    Always so many at a time, the last ones filled up: convolutions round by the size of their batch, and a sample must
    not depend on which others stand in its batch.
    """
    parts = []
    for part in codes.split(DECODED_TOGETHER):
        filled = torch.zeros(DECODED_TOGETHER, *codes.shape[1:], dtype=codes.dtype, device=codes.device)
        filled[: len(part)] = part
        with torch.autocast(codes.device.type, enabled=False):
            images = to_uint8(tokenizer.decode(filled))
        parts.append(images[: len(part)].permute(0, 2, 3, 1).cpu())
    return torch.cat(parts)
