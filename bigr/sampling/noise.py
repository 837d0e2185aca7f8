"""The random draws of sampling. Each image draws from its own generator, always for all of its tokens.

Shapes: B images, N tokens, K bits, S diffusion steps.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Noise(NamedTuple):
    """The draws of one iteration.

    diffusion: uniform in [0, 1), [B, S, N, K], of the reverse process; gumbel: Gumbel noise [B, N], for the order;
    thresholds: uniform in [0, 1), [B, N, K]: a bit is 1 where its probability is above.
    """

    diffusion: Tensor
    gumbel: Tensor
    thresholds: Tensor


def draw_noise(generators: Sequence[torch.Generator], steps: int, tokens: int, bits: int) -> Noise:
    """The draws of one iteration of `steps` diffusion steps, on the generators' device."""
    shape = (steps + 1, tokens, bits)
    drawn = torch.empty(len(generators), math.prod(shape) + tokens, device=generators[0].device)
    for row, g in zip(drawn, generators, strict=True):  # the fewest calls: there is none for several generators
        torch.rand(drawn.shape[1], generator=g, device=g.device, out=row)
    uniform, order = drawn[:, :-tokens].unflatten(1, shape), drawn[:, -tokens:]
    return Noise(uniform[:, :-1], gumbel(order), uniform[:, -1])


def gumbel(uniform: Tensor) -> Tensor:
    """Gumbel noise from uniform draws, of their shape."""
    return -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))


def diffusion_noise_at(noise: Tensor, positions: Tensor) -> Tensor:
    """The noise [B, S, N, K] of the tokens at positions int64 [B, m], as `bit_probabilities` takes it: [S, B·m, K]."""
    return torch.take_along_dim(noise, positions[:, None, :, None], dim=2).transpose(0, 1).flatten(1, 2)
