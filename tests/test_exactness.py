"""Sampling is exact: samples are distributed as those of a literal transcription of docs/method.md, sections 3 and 4.

A tiny model of random weights (a grid of 2×2 tokens of 3 bits) is sampled 12,000 times by `sample_codes` and by
tests/literal_sampler.py. Compared are: each token-bit's frequency; how often both bits of each pair are 1, within a
token or across; each token's pattern of bits; and the iteration in which each token was fixed. Each comparison is a χ²
test of homogeneity, at 0.001 divided by the number of a case's comparisons (Bonferroni): a sampler that is exact is
rejected in at most 1 of 1,000 cases. The seeds are fixed, so that a case passes always or never.

That this would notice an error is shown by samplers that each make one mistake: all are rejected.
"""

import math
from functools import cache
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from bigr.models.masked.generator import BiGR, BiGRConfig
from bigr.runtime.seeds import derive_seed
from bigr.sampling.unmask import Iteration, Sampling, sample_codes
from tests.literal_sampler import Literal

SIGNIFICANCE = 1e-3
SAMPLES = 12_000
TOKENS, BITS, LABEL, STEPS = 4, 3, 1, 8
RARE = 20

Result = tuple[Tensor, Tensor]
"""Codes bool [M, N, K], and the iteration in which each token was fixed, int64 [M, N]."""

CASES: dict[str, dict[str, Any]] = {
    "unguided": {},
    "guided": {"guidance_scale": 2.5},
    "guidance below one": {"guidance_scale": 0.5},
    "guidance that rises": {"guidance_scale": 3.0, "guidance_schedule": "linear"},
    "Gumbel noise": {"guidance_scale": 2.0, "gumbel_temperature": 0.1},
    "Gumbel noise that rises": {"gumbel_temperature": 0.5, "gumbel_schedule": "up"},
    "Gumbel noise that falls": {"gumbel_temperature": 0.5, "gumbel_schedule": "down"},
    "margin order": {"order": "margin", "gumbel_temperature": 0.1},
    "random order": {"order": "random"},
    "raster order": {"order": "raster"},
    "deterministic bits": {"guidance_scale": 1.5, "deterministic_bits": True},
    "temperature": {"guidance_scale": 1.5, "temperature": 2.0},
    "every diffusion step": {"diffusion_steps": STEPS},
    "one iteration": {"iterations": 1},
    "an iteration for each token": {"iterations": 4},
    "target x0": {"target": "x0", "guidance_scale": 2.0},
    "target direct": {"target": "direct", "guidance_scale": 2.0},
    "known tokens": {"known": True},
    "known tokens, guided": {"known": True, "guidance_scale": 2.0, "gumbel_temperature": 0.2},
}


@cache
def model(target: str) -> BiGR:
    """Weights so large that bits are far from ½ and hang on each other, on the label, on xₜ and on t."""
    torch.manual_seed(0)
    model = BiGR(BiGRConfig(BITS, 2, 2, 16, 1, 1, 16, 1, ffn_multiple_of=16, diffusion_steps=STEPS, target=target))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def how(case: str) -> tuple[str, bool, Sampling]:
    """The model's target, whether some tokens are known, and how to sample."""
    values: dict[str, Any] = {"iterations": 3, "diffusion_steps": 4, **CASES[case]}
    return values.pop("target", "flip"), values.pop("known", False), Sampling(**values)


def given(known: bool) -> list[tuple[Tensor, Tensor]]:
    """Groups of images: codes [M, N, K], and which of the N tokens are unknown. Two groups where some are known."""
    unknown = [[True, True, False, True], [False, True, True, False]] if known else [[True] * TOKENS]
    draws = torch.Generator().manual_seed(0)
    codes = torch.rand(SAMPLES, TOKENS, BITS, generator=draws) < 0.5
    return list(zip(codes.chunk(len(unknown)), map(torch.tensor, unknown), strict=True))


@cache
def sampled(case: str) -> Result:
    """By the project, all groups in one batch."""
    target, known, sampling = how(case)
    codes, unknown = zip(*((c, u.expand(len(c), TOKENS)) for c, u in given(known)), strict=True)
    fixed_at, before = torch.full((SAMPLES, TOKENS), -1), torch.cat(unknown)

    def watch(done: Iteration) -> None:
        nonlocal before
        fixed_at[before & ~done.masked] = done.number
        before = done.masked

    labels, seeds = torch.full((SAMPLES,), LABEL), [derive_seed(0, "exactness", i) for i in range(SAMPLES)]
    result = sample_codes(
        model(target), labels, sampling, seeds, codes=torch.cat(codes), unknown=torch.cat(unknown), on_iteration=watch
    )
    return result, fixed_at


def transcribed(case: str, sampler: type[Literal] = Literal) -> Result:
    """By the literal transcription, one group after the other."""
    target, known, sampling = how(case)
    literal = sampler(model(target), sampling, seed=1)
    groups = [literal.sample(LABEL, len(codes), codes, unknown) for codes, unknown in given(known)]
    codes, fixed_at = zip(*groups, strict=True)
    return torch.cat(codes), torch.cat(fixed_at)


def statistics(result: Result, groups: int) -> dict[str, Tensor]:
    """What is compared, by name: an int64 [M] of categories each, for each group of images by itself."""
    found = {}
    for group, (codes, fixed_at) in enumerate(zip(*(part.long().chunk(groups) for part in result), strict=True)):
        bits = {f"{token}.{bit}": codes[:, token, bit] for token in range(TOKENS) for bit in range(BITS)}
        found |= {f"group {group}: bit {name}": values for name, values in bits.items()}
        for (one, a), (other, b) in combinations(bits.items(), 2):
            found[f"group {group}: bits {one} and {other}"] = a * b
        for token in range(TOKENS):
            found[f"group {group}: token {token}"] = (codes[:, token] * 2 ** torch.arange(BITS)).sum(1)
            found[f"group {group}: iteration of token {token}"] = fixed_at[:, token] + 1
    return found


def p_value(a: Tensor, b: Tensor) -> float:
    """Of the χ² test that categories a and b, int64 [M], have one distribution; rare categories count as one."""
    size = int(max(a.max(), b.max())) + 1
    counts = torch.stack([torch.bincount(values, minlength=size).double() for values in (a, b)])  # [2, categories]
    rare = counts.sum(0) < RARE
    counts = torch.cat([counts[:, ~rare], counts[:, rare].sum(1, keepdim=True)], dim=1)
    counts = counts[:, counts.sum(0) > 0]
    if counts.shape[1] < 2:
        return 1.0
    expected = counts.sum(1, keepdim=True) * counts.sum(0) / counts.sum()
    chi2 = ((counts - expected).square() / expected).sum()
    freedom = torch.tensor((counts.shape[1] - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, chi2 / 2))


def differences(case: str, ours: Result, theirs: Result) -> dict[str, float]:
    """The statistics that differ at the family-wise level, and their p-values."""
    groups = len(given(how(case)[1]))
    a, b = statistics(ours, groups), statistics(theirs, groups)
    found = {name: p_value(a[name], b[name]) for name in a}
    return {name: p for name, p in sorted(found.items(), key=lambda item: item[1]) if p < SIGNIFICANCE / len(found)}


@pytest.mark.parametrize("case", CASES)
def test_samples_are_distributed_as_the_method_says(case: str) -> None:
    assert differences(case, sampled(case), transcribed(case)) == {}


class KnownTokensCounted(Literal):
    def stay_masked(self, unknown: int, i: int) -> int:
        return min(unknown, super().stay_masked(TOKENS, i))


class ScheduleOneBehind(Literal):
    def stay_masked(self, unknown: int, i: int) -> int:
        return super().stay_masked(unknown, i - 1) if i + 1 < self.how.iterations else 0


class LinearSchedule(Literal):
    def stay_masked(self, unknown: int, i: int) -> int:
        return math.floor(unknown * (1 - self.ratio(i)))


class GuidanceOnTwoPaths(Literal):
    """The unconditional logits come from an xₜ of their own."""

    def bit_probabilities(self, h: Tensor, h_unconditional: Tensor, scale: float) -> Tensor:
        xt = other = self.start(torch.Size((len(h), BITS)))
        for t, s in pairwise([*self.steps(), 0]):
            conditional, unconditional = self.logits(xt, t, h), self.logits(other, t, h_unconditional)
            x0 = self.clean(self.guided(conditional, unconditional, scale), xt)
            if s:
                own = self.clean(unconditional, other)
                xt, other = (self.bernoulli(self.posterior(x, y, t, s)) for x, y in ((x0, xt), (own, other)))
        return x0


class GuidanceOneBehind(Literal):
    def scale(self, i: int) -> float:
        return super().scale(i - 1)


class GuidanceFromTheCondition(Literal):
    """ℓ_c + s(ℓ_c − ℓᵤ), the other convention."""

    def guided(self, conditional: Tensor, unconditional: Tensor, s: float) -> Tensor:
        return super().guided(conditional, unconditional, s + 1)


class BitsDrawnAtTheLastStep(Literal):
    def answer(self, x0: Tensor) -> Tensor:
        return self.bernoulli(x0)


class KappaOfAllSteps(Literal):
    """κ = kₜ, as if s were 0."""

    def posterior(self, x0: Tensor, xt: Tensor, t: int, s: int) -> Tensor:
        one = (self.k(s) * x0 + self.b(s)) * (self.k(t) * xt + self.b(t))
        zero = (self.k(s) * (1 - x0) + self.b(s)) * (self.k(t) * (1 - xt) + self.b(t))
        return one / (one + zero)


class KappaOfOneStep(Literal):
    """κ = βₜ, as if every one of the T steps were taken."""

    def posterior(self, x0: Tensor, xt: Tensor, t: int, s: int) -> Tensor:
        kappa = 1 - 1 / (self.T - t + 1)
        one = (self.k(s) * x0 + self.b(s)) * (kappa * xt + (1 - kappa) / 2)
        zero = (self.k(s) * (1 - x0) + self.b(s)) * (kappa * (1 - xt) + (1 - kappa) / 2)
        return one / (one + zero)


class StepsFromTheFirst(Literal):
    """The S lowest noise levels, instead of S that are spread over all."""

    def steps(self) -> list[int]:
        return list(range(self.how.diffusion_steps, 0, -1))


class NothingAtTheStart(Literal):
    def start(self, shape: torch.Size) -> Tensor:
        return torch.zeros(shape)


class FlipReadAsClean(Literal):
    def clean(self, logit: Tensor, xt: Tensor) -> Tensor:
        return torch.sigmoid(logit)


class TemperatureOnTheConditionAlone(Literal):
    def guided(self, conditional: Tensor, unconditional: Tensor, s: float) -> Tensor:
        return super().guided(conditional, unconditional * self.how.temperature, s)


class EntropyInNats(Literal):
    """The same as Gumbel noise that is 1/ln 2 times too strong."""

    def certainty(self, probability: Tensor, token: int) -> Tensor:
        return super().certainty(probability, token) * math.log(2)


class GumbelOneBehind(Literal):
    def gumbel_factor(self, i: int) -> float:
        return super().gumbel_factor(i - 1)


class UniformForGumbel(Literal):
    def gumbel(self, count: int) -> Tensor:
        return self.uniform(torch.Size((count,))).float()


class LeastCertainFirst(Literal):
    def certainty(self, probability: Tensor, token: int) -> Tensor:
        return -super().certainty(probability, token)


class OneDrawForAllBits(Literal):
    def bits(self, probability: Tensor) -> Tensor:
        return (self.uniform(torch.Size((len(probability), 1))) < probability).float()


MISTAKES: list[tuple[type[Literal], str]] = [
    (KnownTokensCounted, "known tokens"),
    (ScheduleOneBehind, "unguided"),
    (LinearSchedule, "unguided"),
    (GuidanceOnTwoPaths, "guided"),
    (GuidanceOneBehind, "guidance that rises"),
    (GuidanceFromTheCondition, "guided"),
    (BitsDrawnAtTheLastStep, "unguided"),
    (KappaOfAllSteps, "every diffusion step"),
    (KappaOfOneStep, "unguided"),
    (StepsFromTheFirst, "unguided"),
    (NothingAtTheStart, "unguided"),
    (FlipReadAsClean, "unguided"),
    (TemperatureOnTheConditionAlone, "temperature"),
    (EntropyInNats, "Gumbel noise that rises"),
    (GumbelOneBehind, "Gumbel noise that rises"),
    (GumbelOneBehind, "Gumbel noise that falls"),
    (UniformForGumbel, "Gumbel noise"),
    (LeastCertainFirst, "margin order"),
    (OneDrawForAllBits, "raster order"),
]


@pytest.mark.parametrize(("mistake", "case"), MISTAKES, ids=lambda value: getattr(value, "__name__", value))
def test_a_sampler_with_one_mistake_is_rejected(mistake: type[Literal], case: str) -> None:
    assert differences(case, sampled(case), transcribed(case, mistake))
