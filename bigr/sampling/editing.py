"""What the model does without further training, on codes: inpainting, editing, interpolation, enrichment.

Source: docs/method.md, section 5. Each is entropy-ordered sampling with given tokens or another condition.
bigr/imaging/ does the same with images and masks of any size.

Shapes: B images, g×g grid of N tokens, K bits, f pixels along one side of a token.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from bigr.models.masked.generator import BiGR
from bigr.runtime.seeds import derive_seed, generator
from bigr.sampling.unmask import Iteration, Sampling, sample_codes, working_iterations

OnIteration = Callable[[Iteration], None]

CELL = 2
"""d: enrichment splits the tokens of each cell of d×d into d² groups (docs/method.md, section 5)."""


def unknown_tokens(mask: Tensor, grid: int) -> Tensor:
    """Pixel masks bool [B, H, W] (True: to be painted) → unknown tokens bool [B, N]: those with any such pixel.

    H and W are multiples of `grid`.
    """
    patches = (mask.shape[1] // grid, mask.shape[2] // grid)
    return F.max_pool2d(mask.float().unsqueeze(1), patches).flatten(1) > 0


def in_proportion(sampling: Sampling, unknown: int, tokens: int) -> Sampling:
    """`sampling` with iterations in proportion to the unknown tokens' share of all, rounded up.

    Each iteration then fixes about as many tokens as in a whole image, and the cost is proportional to the edit.
    """
    return replace(sampling, iterations=max(1, math.ceil(sampling.iterations * unknown / tokens)))


def inpaint_codes(
    model: BiGR,
    codes: Tensor,
    unknown: Tensor,
    labels: Tensor,
    sampling: Sampling,
    seeds: Sequence[int],
    *,
    on_iteration: OnIteration | None = None,
) -> Tensor:
    """Sample the unknown tokens, given the others; codes bool [B, N, K] in which the known keep their bits.

    codes: [B, N, K]; unknown: bool [B, N]; labels: int64 [B], num_classes for none (inpainting, outpainting), a class
    to edit to. The iterations are `sampling.iterations` for a whole image, fewer for a part of it; images that take
    different numbers are sampled apart, and `on_iteration` then sees those of one number after those of another.
    """
    plans = [in_proportion(sampling, count, unknown.shape[1]) for count in unknown.sum(1).tolist()]
    found = torch.empty_like(codes, dtype=torch.bool)
    for plan in dict.fromkeys(plans):  # the images that take as many iterations
        rows = [row for row, own in enumerate(plans) if own == plan]
        found[rows] = sample_codes(
            model,
            labels[rows],
            plan,
            [seeds[row] for row in rows],
            codes=codes[rows],
            unknown=unknown[rows],
            on_iteration=on_iteration,
        )
    return found


def interpolate_codes(
    model: BiGR,
    first: Tensor,
    second: Tensor,
    ratios: Tensor,
    sampling: Sampling,
    seeds: Sequence[int],
    *,
    on_iteration: OnIteration | None = None,
) -> Tensor:
    """Sample under the conditions r·e(first) + (1 − r)·e(second); codes bool [B, N, K].

    first, second: int64 [B], labels, or texts; ratios: r in [0, 1], float [B]. Texts are mixed place by place.
    """
    ends = model.backbone.condition(first), model.backbone.condition(second)
    r = ratios.view(-1, *[1] * (ends[0].ndim - 1))
    condition = r * ends[0] + (1 - r) * ends[1]
    return sample_codes(model, first, sampling, seeds, condition=condition, on_iteration=on_iteration)


def enrich_codes(
    model: BiGR,
    codes: Tensor,
    labels: Tensor,
    sampling: Sampling,
    seeds: Sequence[int],
    *,
    rounds: int = 1,
    cell: int = CELL,
    on_iteration: OnIteration | None = None,
) -> Tensor:
    """Sample each token anew, given the others; codes bool [B, N, K].

    codes: [B, N, K] of an image that was enlarged; labels: int64 [B], num_classes for none. The grid is split into
    cells of `cell`×`cell` tokens, smaller at the right and lower border of a grid that is no multiple of `cell`; the
    places of a cell are dealt to cell² groups at random. Groups are sampled one after the other, all in each round.
    """
    grid = model.config.grid
    for round_ in range(rounds):
        order = torch.stack([enrichment_groups(grid, cell, seed, round_) for seed in seeds]).to(codes.device)
        for group, size in enumerate(group_sizes(grid, cell)):
            if size == 0:  # of a grid with fewer tokens than a cell
                continue
            own = [derive_seed(seed, "enrich", round_, group) for seed in seeds]
            codes = inpaint_codes(model, codes, order == group, labels, sampling, own, on_iteration=on_iteration)
    return codes


def enrich_iterations(sampling: Sampling, grid: int, *, rounds: int = 1, cell: int = CELL) -> int:
    """How often `enrich_codes` calls `on_iteration`, whatever the seeds are."""
    sizes = group_sizes(grid, cell)
    return rounds * sum(working_iterations(in_proportion(sampling, size, grid**2), size) for size in sizes)


def group_sizes(grid: int, cell: int) -> list[int]:
    """How many tokens are in each of the cell² groups: the same number, but for one more in the first few."""
    return [len(range(group, grid**2, cell**2)) for group in range(cell**2)]


def enrichment_groups(grid: int, cell: int, seed: int, round_: int) -> Tensor:
    """The group of each token, int64 [N]: no group twice in a cell, each cell in its own random order.

    A smaller cell at the border continues in the circle of groups where the cell before it ended, so that the sizes of
    groups, and the number of iterations, do not depend on the seed.
    """
    side = math.ceil(grid / cell)
    shuffled = torch.rand(side**2, cell**2, generator=generator(seed, "enrich groups", round_)).argsort(1)
    rows = torch.arange(side * cell).view(side, 1, cell, 1) < grid
    columns = torch.arange(side * cell).view(1, side, 1, cell) < grid
    inside = (rows & columns).reshape(side**2, cell**2)
    places = inside.sum(1)
    ranks = shuffled.masked_fill(~inside, cell**2).argsort(1).argsort(1)
    groups = (ranks + (places.cumsum(0) - places).unsqueeze(1)) % cell**2
    whole = F.pixel_shuffle(groups.T.reshape(cell**2, side, side).float(), cell)[0]
    return whole[:grid, :grid].flatten().long()
