"""docs/method.md, sections 3 and 4, transcribed line by line: slow, and with nothing of bigr/sampling in it.

Two things are the model's own, because the golden vectors hold them: h, and the logits of the denoiser. All that is
drawn, ordered or scheduled is written out here, in loops over iterations, tokens and diffusion steps. The images of a
call are independent of each other, and they alone are vectorised.

Each line of the method is a method of the class, so that a test can put one mistake in its place.
Shapes: M images, N tokens, K bits.
"""

import math
from fractions import Fraction

import torch
from torch import Tensor

from bigr.models.masked.generator import BiGR
from bigr.sampling.unmask import Sampling


class Literal:
    """The sampler of the method, for one model and one way to sample. `how` is read as a list of settings, no more."""

    def __init__(self, model: BiGR, how: Sampling, seed: int) -> None:
        self.model, self.how = model, how
        self.T, self.target = model.config.diffusion_steps, model.config.target
        self.draws = torch.Generator().manual_seed(seed)

    # Section 3: the reverse process of one token

    def k(self, t: int) -> float:
        """kₜ = (T−t)/T."""
        return (self.T - t) / self.T

    def b(self, t: int) -> float:
        """bₜ = (1−kₜ)/2."""
        return (1 - self.k(t)) / 2

    def count(self, i: int) -> int:
        """Sᵢ = S, or round(S₀ + (S₁ − S₀)·i/(n−1))."""
        if isinstance(self.how.diffusion_steps, int):
            return self.how.diffusion_steps
        s0, s1 = self.how.diffusion_steps
        return round(Fraction((self.how.iterations - 1 - i) * s0 + i * s1, self.how.iterations - 1))

    def steps(self) -> list[int]:
        """⌊linspace(0, 1, Sᵢ)·(T−1)⌋ into 1..T, run downwards."""
        count = self.count(self.iteration)
        indices = [math.floor(Fraction(j, count - 1) * (self.T - 1)) for j in range(count)]
        return [index + 1 for index in indices][::-1]

    def start(self, shape: torch.Size) -> Tensor:
        """x_T ~ Bernoulli(½)."""
        return self.bernoulli(torch.full(shape, 0.5))

    def logits(self, xt: Tensor, t: int, h: Tensor) -> Tensor:
        """The denoiser's K outputs for each row: ℓ of xₜ [M, K] under h [M, D]."""
        return self.model.transcoder(xt, torch.tensor([t]), h)

    def guided(self, conditional: Tensor, unconditional: Tensor, s: float) -> Tensor:
        """ℓ = ℓᵤ + s(ℓ_c − ℓᵤ), each divided by the temperature."""
        conditional, unconditional = conditional / self.how.temperature, unconditional / self.how.temperature
        return unconditional + s * (conditional - unconditional)

    def clean(self, logit: Tensor, xt: Tensor) -> Tensor:
        """p = σ(ℓ); x̂₀ = xₜ(1−p) + (1−xₜ)p where ℓ is that of the flip, p where it is that of x₀."""
        p = torch.sigmoid(logit)
        return xt * (1 - p) + (1 - xt) * p if self.target == "flip" else p

    def posterior(self, x0: Tensor, xt: Tensor, t: int, s: int) -> Tensor:
        """P(xₛ=1) ∝ (kₛx̂₀+bₛ)·(κxₜ + (1−κ)/2), P(xₛ=0) ∝ (kₛ(1−x̂₀)+bₛ)·(κ(1−xₜ) + (1−κ)/2), κ = kₜ/kₛ."""
        kappa = self.k(t) / self.k(s)
        one = (self.k(s) * x0 + self.b(s)) * (kappa * xt + (1 - kappa) / 2)
        zero = (self.k(s) * (1 - x0) + self.b(s)) * (kappa * (1 - xt) + (1 - kappa) / 2)
        return one / (one + zero)

    def bit_probabilities(self, h: Tensor, h_unconditional: Tensor, scale: float) -> Tensor:
        """One token of each image: h [M, D], with a label and without → P [M, K]."""
        if self.target == "direct":  # no diffusion: one pass
            direct = self.model.transcoder.direct_logits
            return torch.sigmoid(self.guided(direct(h), direct(h_unconditional), scale))
        steps = self.steps()
        xt = self.start(torch.Size((len(h), self.model.config.code_bits)))
        for position, t in enumerate(steps):
            logit = self.guided(self.logits(xt, t, h), self.logits(xt, t, h_unconditional), scale)
            x0 = self.clean(logit, xt)
            if t == 1:
                break
            xt = self.bernoulli(self.posterior(x0, xt, t, steps[position + 1]))
        return self.answer(x0)

    def answer(self, x0: Tensor) -> Tensor:
        """At t = 1 the answer is x̂₀, the token's bit probabilities."""
        return x0

    # Section 4: which tokens are fixed, and when

    def ratio(self, i: int) -> float:
        """(i+1)/n at iteration i of n."""
        return (i + 1) / self.how.iterations

    def stay_masked(self, unknown: int, i: int) -> int:
        """⌊N·cos(π/2·ratio)⌋ tokens stay masked, where N is the number of tokens that were unknown at first."""
        return math.floor(unknown * math.cos(math.pi / 2 * self.ratio(i)))

    def scale(self, i: int) -> float:
        """Guidance may be constant or rise: 1 + (s−1)·ratio, or 1 + (s−1)·½(1 − cos(π·ratioᵖ)); none up to a ratio."""
        s, r = self.how.guidance_scale, self.ratio(i)
        if r <= self.how.guidance_start:
            return 1.0
        rise = {"linear": r, "cosine": 0.5 * (1 - math.cos(math.pi * r**self.how.guidance_power))}
        return 1 + (s - 1) * rise[self.how.guidance_schedule] if self.how.guidance_schedule in rise else s

    def certainty(self, probability: Tensor, token: int) -> Tensor:
        """Of one token's P [M, K], [M]: minus the mean binary entropy (in bits), or the mean of |2P−1|."""
        if self.how.order == "entropy":
            p, q = probability, 1 - probability
            return (torch.xlogy(p, p) + torch.xlogy(q, q)).mean(1) / math.log(2)
        if self.how.order == "margin":
            return (2 * probability - 1).abs().mean(1)
        place = {"raster": float(token), "halton": float(self.halton_order().index(token))}.get(self.how.order, 0.0)
        return torch.full((len(probability),), -place)

    def halton_order(self) -> list[int]:
        """Tokens as the points (φ₂(k), φ₃(k)), k = 1, 2, …, of the unit square meet their cells of the grid."""
        order: list[int] = []
        g, k = self.model.config.grid, 1
        while len(order) < g * g:
            row, column = (math.floor(g * self.mirrored(k, base)) for base in (2, 3))
            order += [row * g + column] if row * g + column not in order else []
            k += 1
        return order

    def mirrored(self, k: int, base: int) -> float:
        """The digits of k, mirrored at the point: Σ dⱼ·base^(−j−1)."""
        return sum(k // base**j % base / base ** (j + 1) for j in range(40))

    def gumbel_factor(self, i: int) -> float:
        """`gumbel_temperature`, constant, up or down over the iterations: times 1, ratio, or 1 − ratio."""
        factor = {"constant": 1.0, "up": self.ratio(i), "down": 1 - self.ratio(i)}[self.how.gumbel_schedule]
        return {"raster": 0.0, "halton": 0.0, "random": 1.0}.get(self.how.order, self.how.gumbel_temperature * factor)

    def gumbel(self, count: int) -> Tensor:
        """Gumbel noise."""
        return -torch.log(-torch.log(self.uniform(torch.Size((count,))))).float()

    def bits(self, probability: Tensor) -> Tensor:
        """Bernoulli(P), or P > ½ when deterministic."""
        return (probability > 0.5).float() if self.how.deterministic_bits else self.bernoulli(probability)

    @torch.no_grad()
    def sample(
        self, label: int, count: int, codes: Tensor | None = None, unknown: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`count` samples of one label: codes [M, N, K], and the iteration in which each token was fixed [M, N].

        codes [M, N, K] and unknown bool [N], the same for all: what is known, whose tokens are fixed at −1.
        """
        tokens = self.model.config.grid**2
        unknown = torch.ones(tokens, dtype=torch.bool) if unknown is None else unknown
        codes = torch.zeros(count, tokens, self.model.config.code_bits) if codes is None else codes.float().clone()
        masked, fixed_at = unknown.expand(count, tokens).clone(), torch.full((count, tokens), -1)
        labels, unconditional = torch.full((count,), label), torch.full((count,), self.model.config.num_classes)
        left = int(unknown.sum())
        for i in range(self.how.iterations):
            self.iteration = i
            h, h_unconditional = (self.model.hidden(codes, given, masked) for given in (labels, unconditional))
            probability, certainty = torch.zeros_like(codes), torch.full((count, tokens), -math.inf)
            for token in range(tokens):
                mine = masked[:, token].nonzero().flatten()
                if len(mine):
                    p = self.bit_probabilities(h[mine, token], h_unconditional[mine, token], self.scale(i))
                    probability[mine, token] = p
                    certainty[mine, token] = self.certainty(p, token) + self.gumbel_factor(i) * self.gumbel(len(mine))
            stay = self.stay_masked(int(unknown.sum()), i)
            for _ in range(left - stay):
                most_certain = certainty.argmax(dim=1)
                for token in range(tokens):
                    mine = (most_certain == token).nonzero().flatten()
                    codes[mine, token] = self.bits(probability[mine, token])
                    masked[mine, token], certainty[mine, token], fixed_at[mine, token] = False, -math.inf, i
            left = stay
        return codes.bool(), fixed_at

    def uniform(self, shape: torch.Size) -> Tensor:
        """Numbers in (0, 1), float64."""
        return torch.rand(shape, generator=self.draws, dtype=torch.float64).clamp(min=1e-300)

    def bernoulli(self, probability: Tensor) -> Tensor:
        """Bits as floats, each 1 with its probability."""
        return (self.uniform(probability.shape) < probability).float()
