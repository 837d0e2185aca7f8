"""Entropy-ordered sampling (docs/method.md, section 4; the paper's section 3.3).

At first all tokens are masked. Each iteration

    predicts   the bits of the masked tokens: h from the backbone, P(bit = 1 | h) from the transcoder, a draw from it;
    ranks      the masked tokens by how certain their bits are;
    fixes      the most certain ones, as many as the schedule says: their bits stay.

Given tokens keep their bits, and the schedule runs over the unknown ones. Every image draws from its own generator, and
its noise belongs to its tokens: a sample does not depend on the other images in its batch.

Shapes: B images, N tokens, K bits, D width of h; m: as many tokens as are masked in the image where most are.
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
from bigr.models.masked.transcoder import Transcoder
from bigr.runtime.transfer import to_device
from bigr.sampling.bit_unmasking import bit_counts, unmasked_bits
from bigr.sampling.graphs import replayable
from bigr.sampling.halton import halton_places
from bigr.sampling.noise import Noise, diffusion_noise_at, draw_noise
from bigr.sampling.reverse import bit_probabilities


@dataclass(frozen=True)
class Sampling:
    """How to sample; the fields are those of params.yaml's section `samples`.

    diffusion_steps: S of every iteration, or (first, last): S of the first iteration and of the last; bit_counts: of
    iterations of so many steps, for the target "mask".
    """

    iterations: int
    diffusion_steps: int | tuple[int, int]
    order: str = "entropy"
    guidance_scale: float = 1.0
    guidance_schedule: str = "constant"
    guidance_start: float = 0.0
    guidance_power: float = 1.0
    temperature: float = 1.0
    gumbel_temperature: float = 0.0
    gumbel_schedule: str = "constant"
    deterministic_bits: bool = False
    bit_counts: tuple[int, ...] | None = None
    bit_noise: float = 0.0

    @classmethod
    def of(cls, section: object) -> "Sampling":
        """The sampler that the section `samples` of params.yaml describes."""
        return described(cls, section)

    def steps(self, iteration: int) -> int:
        """Sᵢ = round(S₀ + (S₁ − S₀)·i/(n−1)) of iteration i = 0 … n−1, halves to even (DiSA, arXiv 2505.20297)."""
        if isinstance(self.diffusion_steps, int):
            return self.diffusion_steps
        first, last = self.diffusion_steps
        return round(first + (last - first) * iteration / max(1, self.iterations - 1))


@dataclass(frozen=True)
class Iteration:
    """The state after an iteration, on the model's device.

    number: from 0; codes: bool [B, N, K], zeros where masked; masked: bool [B, N]; entropy: [B, N], the mean binary
    entropy in bits (0 to 1) of each token that was masked before the iteration, NaN elsewhere.
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

    labels: int64 [B] on the model's device, num_classes for no class; or texts, of a model that takes them; seeds: one
    for each image; codes [B, N, K] and unknown bool [B, N]: given tokens, and which of them to sample (all by default);
    condition: embeddings (`Backbone.condition`) in place of the labels' own (docs/method.md, section 5, interpolation);
    on_iteration: called after each iteration that fixes tokens.
    """
    config, device = model.config, labels.device
    shape = (len(labels), config.grid**2, config.code_bits)
    masked = torch.ones(shape[:2], dtype=torch.bool, device=device) if unknown is None else unknown
    codes = torch.zeros(shape, device=device) if codes is None else codes.to(device).float()
    codes = codes.masked_fill(masked.unsqueeze(-1), 0.0)

    conditional = model.backbone.condition(labels) if condition is None else condition.to(device)
    unconditional = model.backbone.condition(model.backbone.unconditional(len(labels), device))
    generators = [torch.Generator(device=device).manual_seed(seed) for seed in seeds]
    left = schedule(masked.sum(1).tolist(), sampling.iterations)  # the only read from the device
    quotas = -to_device(torch.tensor(left), device).diff(dim=0)  # [iterations, B], how many tokens each fixes

    for i in range(sampling.iterations):
        noise = draw_noise(generators, noise_rows(model, sampling, i), *shape[1:])
        if left[i + 1] == left[i]:  # nothing to fix: the draws are made, the networks need not run
            continue
        ratio = (i + 1) / sampling.iterations
        positions = masked_first(masked)[:, : max(left[i])]  # [B, m]: the transcoder runs on these tokens alone

        bits, probability = predict(
            model, codes, masked, positions, (conditional, unconditional), noise, sampling, ratio
        )
        ranks = rank(probability, masked, positions, noise.gumbel, sampling, ratio)
        fixed = ranks < quotas[i].unsqueeze(1)
        before, (codes, masked) = masked, fix(codes, masked, positions, fixed, bits)

        if on_iteration is not None:
            on_iteration(Iteration(i, codes.bool(), masked, entropies(probability, before, positions)))
    return codes.bool()


@replayable
def predict(
    model: BiGR,
    codes: Tensor,
    masked: Tensor,
    positions: Tensor,
    conditions: tuple[Tensor, Tensor],
    noise: Noise,
    sampling: Sampling,
    ratio: float,
) -> tuple[Tensor, Tensor]:
    """The bits of the tokens at positions int64 [B, m], bool [B, m, K], and P(bit = 1) from which each was drawn.

    codes: float [B, N, K]; conditions: embeddings, of the label or text and of none. Without guidance the networks
    run under the first condition alone, with guidance under both.
    """
    scale = guidance(sampling, ratio)
    unconditional = None
    if scale == 1.0:
        hidden = model.backbone(codes, conditions[0], masked)
    else:
        both = model.backbone(torch.cat([codes, codes]), torch.cat(conditions), torch.cat([masked, masked]))
        hidden, hidden_unconditional = both.chunk(2)
        unconditional = gather_tokens(hidden_unconditional, positions)
    bits, probability = transcode(
        model.transcoder,
        gather_tokens(hidden, positions),
        unconditional,
        diffusion_noise_at(noise.diffusion, positions),
        gather_tokens(noise.thresholds, positions),
        sampling,
        scale,
    )
    return bits.unflatten(0, positions.shape), probability.unflatten(0, positions.shape)


def transcode(
    transcoder: Transcoder,
    hidden: Tensor,
    unconditional: Tensor | None,
    noise: Tensor,
    thresholds: Tensor,
    sampling: Sampling,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The bits of M tokens, bool [M, K], and P(bit = 1) from which each was drawn, by the transcoder's target.

    hidden, unconditional: h [M, D] under the label and under none, or None without guidance; noise: uniform draws
    [`noise_rows`, M, K]; thresholds: the same, [M, K]; scale: of the guidance.
    """
    if transcoder.config.target == "mask":  # each bit hangs on those that were drawn before it
        return unmasked_bits(
            transcoder,
            hidden,
            noise,
            bit_counts(transcoder.config.code_bits, len(noise) // 2, sampling.bit_counts),
            bit_noise=sampling.bit_noise,
            deterministic=sampling.deterministic_bits,
            hidden_unconditional=unconditional,
            guidance_scale=scale,
            temperature=sampling.temperature,
        )
    probability = bit_probabilities(
        transcoder,
        hidden,
        noise,
        hidden_unconditional=unconditional,
        guidance_scale=scale,
        temperature=sampling.temperature,
    )
    return probability > (0.5 if sampling.deterministic_bits else thresholds), probability


def rank(
    probability: Tensor, masked: Tensor, positions: Tensor, gumbel: Tensor, sampling: Sampling, ratio: float
) -> Tensor:
    """The rank of each token at positions int64 [B, m]: 0 is the most certain; those not masked come last."""
    places = positions
    if sampling.order == "halton":
        places = to_device(torch.tensor(halton_places(masked.shape[1])), positions.device)[positions]
    certain = certainty(probability, places, gumbel.gather(1, positions), sampling, ratio)
    certain = certain.masked_fill(~masked.gather(1, positions), -math.inf)
    return certain.argsort(dim=1, descending=True, stable=True).argsort(dim=1)


def fix(codes: Tensor, masked: Tensor, positions: Tensor, fixed: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and mask once the `fixed` tokens, bool [B, m], at positions int64 [B, m] have their bits [B, m, K]."""
    bits = torch.where(fixed.unsqueeze(-1), bits, at(codes, positions))
    codes = codes.scatter(1, positions.unsqueeze(-1).expand_as(bits), bits)
    return codes, masked.scatter(1, positions, masked.gather(1, positions) & ~fixed)


def noise_rows(model: BiGR, sampling: Sampling, iteration: int) -> int:
    """How many uniform draws each bit gets in an iteration, beside its threshold: Sᵢ, twice for the target "mask"."""
    return sampling.steps(iteration) * (2 if model.config.target == "mask" else 1)


def schedule(unknown: Sequence[int], iterations: int) -> list[list[int]]:
    """How many of each image's unknown tokens are masked before the first iteration, and after each."""
    ratios = [i / iterations for i in range(1, iterations + 1)]
    return [list(unknown), *([still_masked(count, ratio) for count in unknown] for ratio in ratios)]


def still_masked(unknown: int, ratio: float) -> int:
    """How many of the unknown tokens are masked after the part `ratio` of the iterations: ⌊N·cos(π/2·ratio)⌋."""
    return math.floor(unknown * math.cos(math.pi / 2 * ratio))


def working_iterations(sampling: Sampling, unknown: int) -> int:
    """How many iterations fix any of `unknown` tokens; the networks run in these alone."""
    return sum(before != after for before, after in pairwise(schedule([unknown], sampling.iterations)))


def guidance(sampling: Sampling, ratio: float) -> float:
    """The guidance scale of an iteration: 1 in the share `guidance_start` of the iterations, then as the schedule says.

    constant: s; linear: 1 + (s − 1)·ratio; cosine: 1 + (s − 1)·½(1 − cos(π·ratioᵖ)), p = `guidance_power` (MaskBit).
    """
    if ratio <= sampling.guidance_start:
        return 1.0
    if sampling.guidance_schedule == "constant":
        return sampling.guidance_scale
    if sampling.guidance_schedule == "cosine":
        ratio = (1 - math.cos(math.pi * ratio**sampling.guidance_power)) / 2
    return 1 + (sampling.guidance_scale - 1) * ratio


def certainty(probability: Tensor, places: Tensor, gumbel: Tensor, sampling: Sampling, ratio: float) -> Tensor:
    """How certain each token is, [B, m]; the largest are fixed first.

    probability: [B, m, K]; places: int64 [B, m], of the tokens in a fixed order; gumbel: Gumbel noise [B, m].
    entropy: minus the mean binary entropy in bits; margin: the mean of |2P − 1|, as in the published code; to both,
    which lie in a range of width 1, the noise is added times its temperature, which is constant, or times the `ratio`
    of the iteration (schedule "up") or 1 − ratio ("down"). random: the noise alone; raster, halton: the
    places alone.
    """
    if sampling.order in ("raster", "halton"):
        return -places.float()
    if sampling.order == "random":
        return gumbel
    certain = (2 * probability - 1).abs().mean(-1) if sampling.order == "margin" else -bit_entropy(probability)
    factor = {"constant": 1.0, "up": ratio, "down": 1 - ratio}[sampling.gumbel_schedule]
    return certain + sampling.gumbel_temperature * factor * gumbel


def bit_entropy(probability: Tensor) -> Tensor:
    """Bit probabilities [B, m, K] → each token's mean binary entropy in bits, [B, m]."""
    return binary_entropy(probability).mean(-1)


def entropies(probability: Tensor, masked: Tensor, positions: Tensor) -> Tensor:
    """`bit_entropy` of the masked tokens in their places, [B, N]; NaN where a token is not masked."""
    found = torch.full(masked.shape, math.nan, device=masked.device)
    return found.scatter(1, positions, bit_entropy(probability)).masked_fill(~masked, math.nan)


def masked_first(masked: Tensor) -> Tensor:
    """The positions of all tokens, int64 [B, N]: those of the masked ones first, in reading order."""
    return masked.float().argsort(dim=1, descending=True, stable=True)


def at(x: Tensor, positions: Tensor) -> Tensor:
    """Tokens of x [B, N, C] at positions int64 [B, m], as [B, m, C]."""
    return torch.take_along_dim(x, positions.unsqueeze(-1), dim=1)
