"""What an edit costs against how much of the picture it leaves unknown: `python -m benchmarks editing`.

Samples a part of the tokens of random codes with an untrained model of the given shape, beside the whole
grid in one run; each share is the median of several rounds, in turn, so that other work falls on all of them alike.
"""

import statistics
import time
from typing import Annotated

import torch
import typer

from bigr.models.masked.generator import BiGR, BiGRConfig
from bigr.sampling.editing import inpaint_codes
from bigr.sampling.unmask import Sampling

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


def main(
    grid: Annotated[int, typer.Option(help="Tokens along one side.")] = 16,
    dim: int = 256,
    layers: int = 6,
    iterations: Annotated[int, typer.Option(help="For the whole grid.")] = 32,
    steps: Annotated[int, typer.Option(help="Diffusion steps.")] = 10,
    images: int = 1,
    rounds: int = 5,
) -> None:
    """Measure."""
    torch.manual_seed(0)
    model = BiGR(BiGRConfig(24, grid, 10, dim, layers, 4, dim, 2)).eval()
    tokens, sampling = grid**2, Sampling(iterations, steps, guidance_scale=2.5)
    codes = torch.rand(images, tokens, 24) > 0.5
    labels, seeds = torch.zeros(images, dtype=torch.long), list(range(images))

    def seconds(share: float) -> float:
        unknown = torch.zeros(images, tokens, dtype=torch.bool)
        unknown[:, : round(tokens * share)] = True
        started = time.perf_counter()
        inpaint_codes(model, codes, unknown, labels, sampling, seeds)
        return time.perf_counter() - started

    seconds(SHARES[0])
    times: dict[float, list[float]] = {share: [] for share in SHARES}
    for _ in range(rounds):
        for share, found in times.items():
            found.append(seconds(share))
    whole = statistics.median(times[1.0])
    print(f"{grid}×{grid} tokens, width {dim}, {layers} layers; whole grid: {1000 * whole:.0f} ms")
    print("unknown   time of the whole grid's (median of the rounds)")
    for share, found in times.items():
        print(f"{share:7.1%}   {statistics.median(found) / whole:.1%}")
