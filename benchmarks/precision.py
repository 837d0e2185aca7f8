"""From which width on bfloat16 pays on this machine: one training step in float32 against one in bfloat16.

    python -m benchmarks precision

Prints, for small backbones and small tokenizers of several widths, the median milliseconds of both and their ratio,
measured in turns within one run. The result is what `CPU_BFLOAT16_WIDTH` in bigr/runtime/precision.py stands for.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from bigr.models.autoencoder.tokenizer import Tokenizer, TokenizerConfig
from bigr.models.masked.generator import BiGR, BiGRConfig
from bigr.runtime.seeds import generator

WIDTHS = (64, 128, 256, 512, 1024)
MULTIPLIERS = (1, 2, 4)
ROUNDS = 5
BATCH = 16


def backbone_loss(width: int) -> Callable[[], Tensor]:
    """The objective of a small generator of this width."""
    draws = generator(0, "precision")
    model = BiGR(BiGRConfig(24, 4, 10, width, 2, 4, width, 2, ffn_multiple_of=32, dropout=0.0))
    codes = torch.rand(BATCH, 16, 24, generator=draws).round()
    masked = torch.rand(BATCH, 16, generator=draws).argsort(1)[:, :10]
    labels = torch.zeros(BATCH, dtype=torch.long)
    return lambda: model.loss(codes, labels, masked, draws)


def tokenizer_loss(multiplier: int) -> tuple[int, Callable[[], Tensor]]:
    """The width and the objective of a small tokenizer whose widest level has this multiplier."""
    draws = generator(0, "precision")
    tokenizer = Tokenizer(TokenizerConfig(16, 16, 64, 32, (1, 1, multiplier), 1, (4,)))
    images = torch.rand(BATCH, 3, 16, 16, generator=draws)
    return tokenizer.width, lambda: (tokenizer.autoencode(images, draws)[0] - images).abs().mean()


def seconds(loss: Callable[[], Tensor], bfloat16: bool) -> float:
    """Of one forward and backward pass."""
    start = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        value = loss()
    value.backward()
    return time.perf_counter() - start


def main() -> None:
    """Measure."""
    networks = [("backbone", width, backbone_loss(width)) for width in WIDTHS]
    networks += [("tokenizer", *tokenizer_loss(multiplier)) for multiplier in MULTIPLIERS]
    print(f"{'':<10} {'width':>6} {'float32 ms':>12} {'bfloat16 ms':>12} {'ratio':>7}")
    for name, width, loss in networks:
        times: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(ROUNDS + 1):
            for bfloat16 in (False, True):
                taken = seconds(loss, bfloat16)
                if turn:
                    times[bfloat16].append(1e3 * taken)
        plain, half = (statistics.median(times[kind]) for kind in (False, True))
        print(f"{name:<10} {width:>6} {plain:>12.1f} {half:>12.1f} {plain / half:>7.2f}")
