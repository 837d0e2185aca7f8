"""The Bernoulli diffusion: how bits are corrupted, and the reverse step (docs/method.md, section 3).

Pure formulas on tensors; the network that predicts is in bigr/models/masked/transcoder.py. T steps; tables have T + 1
entries, entry 0 for t = 0 (nothing corrupted); at t = T a bit is a fair coin.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BernoulliDiffusion(nn.Module):
    """The schedule βₜ = 1 − 1/(T−t+1), kₜ = Πβ = (T−t)/T, bₜ = (1−kₜ)/2, and the probabilities that follow."""

    k: Tensor
    b: Tensor
    beta: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        t = torch.arange(steps + 1, dtype=torch.float64)
        k = (steps - t) / steps
        beta = 1 - 1 / (steps - t + 1)
        beta[0] = 1.0
        for name, table in {"k": k, "b": (1 - k) / 2, "beta": beta}.items():
            self.register_buffer(name, table.float(), persistent=False)

    def noisy_probability(self, x0: Tensor, t: Tensor) -> Tensor:
        """q(xₜ = 1 | x₀) = kₜx₀ + bₜ for bits x0 [M, K] and steps t int64 [M] in 0..T."""
        return self.k[t].unsqueeze(-1) * x0 + self.b[t].unsqueeze(-1)

    def posterior(self, x0_probability: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """P(xₛ = 1 | xₜ, x̂₀) for bits xt, probabilities x̂₀ [M, K] and steps t > s, int64 [M] or []; at t = 1, x̂₀."""
        # take: an index of no dimension would be read back from the device, which waits for it
        k_s, b_s = self.k.take(s), self.b.take(s)
        kappa = self.k.take(t) / k_s
        first = t <= 1
        if t.ndim:
            k_s, b_s, kappa, first = (v.unsqueeze(-1) for v in (k_s, b_s, kappa, first))
        one = (k_s * x0_probability + b_s) * (kappa * xt + (1 - kappa) / 2)
        zero = (k_s * (1 - x0_probability) + b_s) * (kappa * (1 - xt) + (1 - kappa) / 2)
        return torch.where(first, x0_probability, one / (one + zero))

    def reverse_steps(self, count: int) -> list[int]:
        """S steps of the T for sampling, downwards: ⌊linspace(0, 1, S)·(T−1)⌋ into 1..T, so all of them for S = T.

        Computed in integers: floating-point rounding would repeat some steps.
        """
        return [self._reverse_step(i, count) for i in reversed(range(count))]

    def reverse_steps_on_device(self, count: int) -> Tensor:
        """`reverse_steps` as int64 [S], made on the device of the tables: nothing is copied there."""
        return self._reverse_step(torch.arange(count - 1, -1, -1, device=self.k.device), count)

    def _reverse_step(self, i: Any, count: int) -> Any:
        return i * (self.steps - 1) // max(count - 1, 1) + 1


def weighted_bce(logits: Tensor, target: Tensor) -> Tensor:
    """The loss of each bit (wBCE), [M, K]: cross-entropy times (1−ρ)y + ρ(1−y) + 1/K, ρ the share of ones in a token.

    logits and targets y (0/1 floats) are [M, K]. Computed in float32. Source: docs/method.md, section 3.
    """
    logits, target = logits.float(), target.float()
    rho = target.mean(-1, keepdim=True)
    weight = (1 - rho) * target + rho * (1 - target) + 1 / target.shape[-1]
    return F.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="none")
