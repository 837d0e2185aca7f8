"""From codes to 8-bit images, each independent of the others that are decoded with it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from bigr.models.autoencoder.tokenizer import Tokenizer, to_uint8
from bigr.runtime.precision import decoding

DECODED_TOGETHER = 16
"""The batch size of every pass of the decoder, but on a CPU for large images."""

LARGE = 256
"""Tokens of an image that keeps a CPU busy by itself."""


def decoded_together(tokens: int, on_cpu: bool) -> int:
    """The batch size of every pass of the decoder, for images of so many tokens."""
    return 1 if on_cpu and tokens >= LARGE else DECODED_TOGETHER


def batched(count: int, size: int) -> Iterator[range]:
    """0..count in ranges of at most `size`."""
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


@torch.no_grad()
def decoded(tokenizer: Tokenizer, codes: Tensor, precision: str = "float32") -> Tensor:
    """Codes [n, N, K] → images uint8 [n, H, W, 3] on the CPU, in `precision` (as `run.decode_precision`), whatever
    autocast is around.

    Every batch has the same size, the last one is filled up: convolutions round differently for batches of other sizes,
    and a sample must not depend on the others in its batch.
    """
    parts, together = [], decoded_together(codes.shape[1], codes.device.type == "cpu")
    for part in codes.split(together):
        filled = torch.zeros(together, *codes.shape[1:], dtype=codes.dtype, device=codes.device)
        filled[: len(part)] = part
        with decoding(codes.device, precision):
            images = to_uint8(tokenizer.decode(filled).float())
        parts.append(images[: len(part)].permute(0, 2, 3, 1).cpu())
    return torch.cat(parts)
