"""The Bernoulli transcoder: a per-token MLP that denoises bits under a condition h (docs/method.md, section 3).

What the network's K outputs mean is the `target`: the flip y = x₀ XOR xₜ (the paper's choice); x₀ itself; as "direct",
x₀ without any diffusion (one pass, no noisy input); or, as "mask", x₀ where corrupted bits are absent instead of
flipped (bigr/models/masked/masked_bits.py). Knows nothing about images or positions.

Shapes: M tokens, K bits, D width of h, H width of the transcoder.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigr.models.linear import Linear
from bigr.models.masked.diffusion import BernoulliDiffusion, weighted_bce
from bigr.models.masked.masked_bits import absent_counts, masked_bce, share_index, without_absent

SINUSOIDS = 256


@dataclass(frozen=True)
class TranscoderConfig:
    """The shape of a transcoder. `condition_dim` is D, `dim` is H, `diffusion_steps` is T."""

    code_bits: int
    condition_dim: int
    dim: int
    blocks: int
    diffusion_steps: int = 256
    target: str = "flip"
    init_std: float = 0.02


class Transcoder(nn.Module):
    """The denoiser ε(xₜ, t, h) and its training loss.

    absent_std: in training for the target "mask", the standard deviation of the logit of the share of absent bits.
    """

    absent_std: float = 2.5

    def __init__(self, config: TranscoderConfig) -> None:
        super().__init__()
        self.config = config
        self.diffusion = BernoulliDiffusion(config.diffusion_steps)
        self.x_embedder = Linear(config.code_bits, config.dim)
        self.c_embedder = Linear(config.condition_dim, config.dim)
        self.t_embedder = TimestepEmbedder(config.dim)
        self.blocks = nn.ModuleList(TranscoderBlock(config.dim) for _ in range(config.blocks))
        self.final_layer = FinalLayer(config.dim, config.code_bits)
        self.init_weights()

    def init_weights(self) -> None:
        """Linears N(0, init_std²), biases 0; every modulation and the last linear 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=self.config.init_std)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, TranscoderBlock | FinalLayer):
                nn.init.zeros_(cast(nn.Linear, module.adaLN_modulation[1]).weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, xt: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Bits xt [M, K], steps t int64 [M] in 1..T, conditions h [M, D] → logits [M, K]."""
        return self.denoise(xt, self.c_embedder(condition) + self.t_embedder(t - 1))

    def denoise(self, xt: Tensor, c: Tensor) -> Tensor:
        """Bits xt [M, K] and the sum c of embedded condition and step [M, H] → logits [M, K]."""
        x = self.x_embedder((2 * xt - 1).to(self.x_embedder.weight.dtype))
        c = F.silu(c)
        for block in self.blocks:
            x = block(x, c)
        return self.final_layer(x, c)

    def x0_logits(self, logits: Tensor, xt: Tensor) -> Tensor:
        """The network's logits, read as logits of x₀: a flip is turned round where xₜ = 1. All [M, K]."""
        return logits * (1 - 2 * xt) if self.config.target == "flip" else logits

    def loss(
        self,
        x0: Tensor,
        condition: Tensor,
        generator: torch.Generator,
        noise_draws: int = 1,
        part: tuple[int, int] = (0, 1),
    ) -> Tensor:
        """The loss of each token, [noise_draws · M]: noise levels and corruptions are drawn for x0 [M, K] (0/1 floats).

        noise_draws: how many each token gets. What depends on h alone is computed once for all of them. Drawn from
        `generator`, which must be on x0's device. part: (i, n), where x0 is part i of a batch in n equal parts; it gets
        its part of the draws of the whole batch. Source: docs/method.md, section 3, "Loss".
        """
        x0 = x0.float()
        if self.config.target == "direct":  # nothing is drawn: one is as good as many
            return weighted_bce(self.direct_logits(condition), x0).mean(-1)
        embedded = self.c_embedder(condition).repeat(noise_draws, 1)
        level_embeddings = self.t_embedder(self.levels())
        x0 = x0.repeat(noise_draws, 1)
        xt, level = self.corrupted(x0, generator, noise_draws, part)
        logits = self.denoise(xt, embedded + F.embedding(level, level_embeddings))
        return self.bit_losses(logits, x0, xt).mean(-1)

    def levels(self) -> Tensor:
        """The step index of each noise level of training: 0..T−1, or that of 1..K absent bits."""
        bits, steps, device = self.config.code_bits, self.config.diffusion_steps, self.t_embedder.frequencies.device
        if self.config.target == "mask":
            return share_index(torch.arange(1, bits + 1, device=device), bits, steps)
        return torch.arange(steps, device=device)

    def corrupted(
        self, x0: Tensor, generator: torch.Generator, noise_draws: int = 1, part: tuple[int, int] = (0, 1)
    ) -> tuple[Tensor, Tensor]:
        """xₜ [M, K], a corruption of x₀ [M, K] that is drawn, and the place of its level in `levels`, int64 [M].

        noise_draws: how often x₀ holds the same tokens; part: as in `loss`.
        """
        whole, bits, device = (noise_draws, part[1], len(x0) // noise_draws), x0.shape[1], x0.device

        def mine(draws: Tensor) -> Tensor:
            return draws[:, part[0]].flatten(0, 1)

        if self.config.target == "mask":
            z = self.absent_std * mine(torch.randn(whole, generator=generator, device=device))
            counts = absent_counts(z, self.config.code_bits)
            order = mine(torch.rand((*whole, bits), generator=generator, device=device))
            return without_absent(x0, counts, order), counts - 1
        t = mine(torch.randint(1, self.config.diffusion_steps + 1, whole, generator=generator, device=device))
        noise = mine(torch.rand((*whole, bits), generator=generator, device=device))
        return (noise < self.diffusion.noisy_probability(x0, t)).float(), t - 1

    def bit_losses(self, logits: Tensor, x0: Tensor, xt: Tensor) -> Tensor:
        """The loss of each bit, from the network's logits for xₜ; all [M, K]."""
        if self.config.target == "mask":
            return masked_bce(logits, x0, xt)
        return weighted_bce(logits, (x0 - xt).abs() if self.config.target == "flip" else x0)

    def direct_logits(self, condition: Tensor) -> Tensor:
        """Logits of x₀ [M, K] in one pass, from h [M, D] alone (target "direct"): the input bits are all ones."""
        # Not all one half: the normed activations would be zero, and as every modulation and the last linear start at
        # zero, nothing but that linear's bias would ever have a gradient.
        ones = torch.ones(len(condition), self.config.code_bits, device=condition.device)
        return self(ones, torch.ones(len(condition), dtype=torch.long, device=condition.device), condition)


class TranscoderBlock(nn.Module):
    """[M, H] → same: x + gate · MLP(LN(x)·(1 + scale) + shift), the three from the condition."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Linear(dim, dim), nn.SiLU(), Linear(dim, dim))
        self.adaLN_modulation = nn.Sequential(nn.Identity(), Linear(dim, 3 * dim))  # index 0: SiLU, done once outside

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(c).chunk(3, dim=-1)
        return x + gate * self.mlp(modulated_norm(x, shift, scale))


class FinalLayer(nn.Module):
    """[M, H] → [M, K]: modulated LayerNorm, linear."""

    def __init__(self, dim: int, code_bits: int) -> None:
        super().__init__()
        self.linear = Linear(dim, code_bits)
        self.adaLN_modulation = nn.Sequential(nn.Identity(), Linear(dim, 2 * dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
        return self.linear(modulated_norm(x, shift, scale))


class TimestepEmbedder(nn.Module):
    """Step index int64 [M] (t − 1, from 0) → [M, H]: 256 sinusoids [cos, sin] of period 10000, then a small MLP."""

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Linear(SINUSOIDS, dim), nn.SiLU(), Linear(dim, dim))
        half = SINUSOIDS // 2
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(half).float() / half)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, index: Tensor) -> Tensor:
        angles = index.float().unsqueeze(-1) * self.frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm(x) without affine, eps 1e-6, then · (1 + scale) + shift."""
    y = F.layer_norm(x, (x.shape[-1],), eps=1e-6)
    return torch.addcmul(y + shift, y, scale)
