"""What an edit costs against how much of the picture it leaves unknown: `python benchmarks/editing.py`.

Samples a part of the tokens of random codes with an untrained model of the given shape, beside the whole
grid in one run; each share is the median of several rounds, in turn, so that other work falls on all of them alike.
"""

import argparse
import statistics
import time

import torch

from bigr.models.masked.generator import BiGR, BiGRConfig
from bigr.sampling.editing import inpaint_codes
from bigr.sampling.unmask import Sampling

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", type=int, default=16, help="tokens along one side")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--iterations", type=int, default=32, help="for the whole grid")
    parser.add_argument("--steps", type=int, default=10, help="diffusion steps")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = BiGR(BiGRConfig(24, args.grid, 10, args.dim, args.layers, 4, args.dim, 2)).eval()
    tokens, sampling = args.grid**2, Sampling(args.iterations, args.steps, guidance_scale=2.5)
    codes = torch.rand(args.images, tokens, 24) > 0.5
    labels, seeds = torch.zeros(args.images, dtype=torch.long), list(range(args.images))

    def seconds(share: float) -> float:
        unknown = torch.zeros(args.images, tokens, dtype=torch.bool)
        unknown[:, : round(tokens * share)] = True
        started = time.perf_counter()
        inpaint_codes(model, codes, unknown, labels, sampling, seeds)
        return time.perf_counter() - started

    seconds(SHARES[0])
    times: dict[float, list[float]] = {share: [] for share in SHARES}
    for _ in range(args.rounds):
        for share, found in times.items():
            found.append(seconds(share))
    whole = statistics.median(times[1.0])
    print(f"{args.grid}×{args.grid} tokens, width {args.dim}, {args.layers} layers; whole grid: {1000 * whole:.0f} ms")
    print("unknown   time of the whole grid's (median of the rounds)")
    for share, found in times.items():
        print(f"{share:7.1%}   {statistics.median(found) / whole:.1%}")


if __name__ == "__main__":
    main()
