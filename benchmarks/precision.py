"""From which width on bfloat16 pays on this machine: one training step of a small backbone, float32 against bfloat16.

    python benchmarks/precision.py

Prints, for each width, the median milliseconds of both and their ratio, measured in turns within one run. The result
is what `CPU_BFLOAT16_WIDTH` in bigr/training/device.py stands for.
"""

import statistics
import time

import torch

from bigr.models.bigr import BiGR, BiGRConfig
from bigr.seeds import generator

WIDTHS = (64, 128, 256, 512, 1024)
ROUNDS = 5
BATCH = 16


def step(model: BiGR, bfloat16: bool) -> float:
    """Seconds of one forward and backward pass."""
    draws = generator(0, "precision")
    codes = torch.rand(BATCH, 16, 24, generator=draws).round()
    masked = torch.rand(BATCH, 16, generator=draws).argsort(1)[:, :10]
    labels = torch.zeros(BATCH, dtype=torch.long)
    start = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        loss = model.loss(codes, labels, masked, draws)
    loss.backward()
    return time.perf_counter() - start


def main() -> None:
    print(f"{'width':>6} {'float32 ms':>12} {'bfloat16 ms':>12} {'ratio':>7}")
    for width in WIDTHS:
        model = BiGR(BiGRConfig(24, 4, 10, width, 2, 4, width, 2, ffn_multiple_of=32, dropout=0.0))
        times: dict[bool, list[float]] = {False: [], True: []}
        for turn in range(ROUNDS + 1):
            for bfloat16 in (False, True):
                seconds = step(model, bfloat16)
                if turn:
                    times[bfloat16].append(1e3 * seconds)
        plain, half = (statistics.median(times[kind]) for kind in (False, True))
        print(f"{width:>6} {plain:>12.1f} {half:>12.1f} {plain / half:>7.2f}")


if __name__ == "__main__":
    main()
