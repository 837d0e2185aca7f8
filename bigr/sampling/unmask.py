"""Entropy-ordered sampling: from all tokens masked to none, the most certain first (docs/method.md, section 4).

Each iteration asks the backbone for h, the transcoder for the bit probabilities of the tokens still masked, and fixes
the most certain of them. Tokens given from the start keep their bits, and the schedule runs over the unknown ones.

Every image draws from a generator of its own, and its noise belongs to its tokens: a sample does not depend on which
others stand in its batch. Shapes: B images, N tokens, m of them masked, K bits, S diffusion steps.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from bigr.models.bits import entropy as binary_entropy
from bigr.models.described import described
from bigr.models.masked.generator import BiGR, gather_tokens
from bigr.runtime.errors import BigrError
from bigr.runtime.transfer import to_device
from bigr.sampling.reverse import bit_probabilities


@dataclass(frozen=True)
class Sampling:
    """How to sample; the fields are those of params.yaml's section `samples`."""

    iterations: int
    diffusion_steps: int
    order: str = "entropy"
    guidance_scale: float = 1.0
    guidance_schedule: str = "constant"
    temperature: float = 1.0
    gumbel_temperature: float = 0.0
    gumbel_schedule: str = "constant"
    deterministic_bits: bool = False

    @classmethod
    def of(cls, section: object) -> "Sampling":
        """The sampler that the section `samples` of params.yaml describes."""
        return described(cls, section)


@dataclass(frozen=True)
class Iteration:
    """What one iteration has come to, on the model's device.

    number: from 0; codes: bool [B, N, K], zeros where still masked; masked: bool [B, N], what is still unknown;
    entropy: [B, N], the mean binary entropy in bits of each token that was masked before it, 0 to 1; NaN elsewhere.
    """

    number: int
    codes: Tensor
    masked: Tensor
    entropy: Tensor


@torch.no_grad()
def sample_codes(
    model: BiGR,
    labels: Tensor,
    sampling: Sampling,
    seeds: Sequence[int],
    *,
    codes: Tensor | None = None,
    unknown: Tensor | None = None,
    condition: Tensor | None = None,
    on_iteration: Callable[[Iteration], None] | None = None,
) -> Tensor:
    """Sample codes, bool [B, N, K].

    labels: int64 [B] on the model's device (num_classes: unconditional, which is then not guided); seeds: one for each
    image; codes [B, N, K] and unknown bool [B, N]: given tokens, and those to sample (all, where not given);
    condition: embeddings [B, D] to go by in place of the labels' own (docs/method.md, section 5, interpolation);
    on_iteration: called after each iteration that fixes tokens.
    """
    config, device = model.config, labels.device
    batch, tokens = len(labels), config.grid**2
    if unknown is None:
        unknown = torch.ones(batch, tokens, dtype=torch.bool, device=device)
    codes = torch.zeros(batch, tokens, config.code_bits, device=device) if codes is None else codes.to(device).float()
    codes = torch.where(unknown.unsqueeze(-1), 0.0, codes)
    generators = [torch.Generator(device=device).manual_seed(seed) for seed in seeds]
    counts = unknown.sum(1).tolist()  # the one look at the device; from here on the schedule is arithmetic
    ratios = [(i + 1) / sampling.iterations for i in range(sampling.iterations)]
    left = [counts, *([still_masked(count, ratio) for count in counts] for ratio in ratios)]
    quotas = -to_device(torch.tensor(left), device).diff(dim=0)  # [iterations, B], how many tokens each fixes
    masked = unknown.clone()
    embed = model.backbone.condition
    condition = embed(labels) if condition is None else condition.to(device)
    unconditional = embed(torch.full_like(labels, config.num_classes))

    for i, ratio in enumerate(ratios):
        noise, gumbel, final = _draws(generators, sampling, tokens, config.code_bits, device)
        if left[i + 1] == left[i]:  # nothing would be fixed: the draws are made, the networks need not run
            continue
        scale = guidance(sampling, ratio)
        guided = scale != 1.0 and sampling.guidance_scale != 1.0
        widest = max(left[i])
        positions = masked.float().argsort(dim=1, descending=True, stable=True)[:, :widest]  # [B, m], masked first

        both_codes, both_conditions, both_masked = codes, condition, masked
        if guided:
            both_codes, both_masked = torch.cat([codes, codes]), torch.cat([masked, masked])
            both_conditions = torch.cat([condition, unconditional])
        hidden = model.backbone(both_codes, both_conditions, both_masked)
        probability = bit_probabilities(
            model.transcoder,
            gather_tokens(hidden[:batch], positions),
            _noise_of(noise, positions),
            hidden_unconditional=gather_tokens(hidden[batch:], positions) if guided else None,
            guidance_scale=scale,
            temperature=sampling.temperature,
        ).unflatten(0, (batch, widest))

        certain = certainty(probability, positions, sampling.order, torch.gather(gumbel, 1, positions), ratio, sampling)
        certain = certain.masked_fill(~torch.gather(masked, 1, positions), -math.inf)
        ranks = certain.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
        fixed = ranks < quotas[i].unsqueeze(1)  # [B, m]

        thresholds = 0.5 if sampling.deterministic_bits else torch.take_along_dim(final, positions.unsqueeze(-1), 1)
        bits = (probability > thresholds).float()
        current = torch.take_along_dim(codes, positions.unsqueeze(-1), 1)
        bits = torch.where(fixed.unsqueeze(-1), bits, current)
        codes = codes.scatter(1, positions.unsqueeze(-1).expand_as(bits), bits)
        if on_iteration is not None:
            entropy = torch.full(masked.shape, math.nan, device=device).scatter(1, positions, bit_entropy(probability))
            entropy = entropy.masked_fill(~masked, math.nan)
        masked = masked.scatter(1, positions, torch.gather(masked, 1, positions) & ~fixed)
        if on_iteration is not None:
            on_iteration(Iteration(i, codes.bool(), masked, entropy))
    return codes.bool()


def check_finite(model: BiGR) -> None:
    """Raise `BigrError` where a weight of `model` is not finite; to be asked once, before anything is sampled.

    Sampling itself never looks: a NaN is above no threshold, and would be drawn as zeros.
    """
    if not torch.stack([parameter.isfinite().all() for parameter in model.parameters()]).all().item():
        raise BigrError(
            "the model has weights that are not finite: it has diverged in training, or its file is damaged; train it "
            "again, or take another"
        )


def still_masked(unknown: int, ratio: float) -> int:
    """How many of the unknown tokens stay masked after the part `ratio` of the iterations: ⌊N·cos(π/2·ratio)⌋."""
    return math.floor(unknown * math.cos(math.pi / 2 * ratio))


def working_iterations(sampling: Sampling, unknown: int) -> int:
    """How many iterations fix any of `unknown` tokens; the networks run in these alone."""
    stages = [(i + 1) / sampling.iterations for i in range(sampling.iterations)]
    left = [unknown, *(still_masked(unknown, ratio) for ratio in stages)]
    return sum(before != after for before, after in pairwise(left))


def guidance(sampling: Sampling, ratio: float) -> float:
    """The guidance scale of an iteration: constant, or rising linearly as 1 + (s − 1)·ratio."""
    if sampling.guidance_schedule == "linear":
        return 1 + (sampling.guidance_scale - 1) * ratio
    return sampling.guidance_scale


def certainty(
    probability: Tensor, positions: Tensor, order: str, gumbel: Tensor, ratio: float, sampling: Sampling
) -> Tensor:
    """How certain each masked token is, [B, m]; the largest are fixed first.

    probability: [B, m, K]; positions: int64 [B, m]; gumbel: Gumbel noise [B, m].
    entropy: minus the mean binary entropy in bits; margin: the mean of |2P − 1|, as in the published code; both lie
    in a range of width 1 and get the noise × its temperature, which is constant, or times the `ratio` of the iteration
    (schedule "up") or 1 − ratio ("down"). random: the noise alone; raster: reading order.
    """
    if order == "raster":
        return -positions.float()
    if order == "random":
        return gumbel
    certain = (2 * probability - 1).abs().mean(-1) if order == "margin" else -bit_entropy(probability)
    factor = {"constant": 1.0, "up": ratio, "down": 1 - ratio}[sampling.gumbel_schedule]
    return certain + sampling.gumbel_temperature * factor * gumbel


def bit_entropy(probability: Tensor) -> Tensor:
    """Bit probabilities [B, m, K] → each token's mean binary entropy in bits, [B, m]."""
    return binary_entropy(probability).mean(-1)


def _draws(
    generators: Sequence[torch.Generator], sampling: Sampling, tokens: int, bits: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """One iteration's uniform noise [B, S, N, K], Gumbel noise [B, N], and uniforms that decide bits [B, N, K]."""
    shape = (sampling.diffusion_steps + 1, tokens, bits)
    uniform = torch.stack([torch.rand(shape, generator=g, device=device) for g in generators])
    order = torch.stack([torch.rand(tokens, generator=g, device=device) for g in generators])
    gumbel = -torch.log(-torch.log(order.clamp(1e-20, 1 - 1e-7)))
    return uniform[:, :-1], gumbel, uniform[:, -1]


def _noise_of(noise: Tensor, positions: Tensor) -> Tensor:
    """The noise [B, S, N, K] of the tokens at positions [B, m], as [S, B·m, K]."""
    index = positions[:, None, :, None]
    return torch.take_along_dim(noise, index, dim=2).transpose(0, 1).flatten(1, 2)


def balanced_labels(count: int, classes: int) -> Tensor:
    """int64 [count]: 0, 1, … over and over, so that classes differ by one image at most."""
    return torch.arange(count) % classes
