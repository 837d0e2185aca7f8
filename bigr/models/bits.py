"""Binary entropy, and dead bits: the one definition of each.

Source: docs/method.md, sections 1 and 4: use of the bits, and certainty of a token.
"""

import math

import torch
from torch import Tensor

DEAD = 0.01
"""A bit that is on, or off, in less than this share of all tokens is dead."""


def entropy(probability: Tensor) -> Tensor:
    """The entropy of each of these bits, in bits (0 to 1), of the shape of `probability`, which is in [0, 1].

    Exactly 0 for a bit that is certain, where the gradient is finite too. Float32, also under autocast and of narrower
    inputs; float64 stays float64. No operation that autocast refuses, as CUDA's does `F.binary_cross_entropy`.
    """
    p = probability.to(torch.promote_types(probability.dtype, torch.float32))
    on, off = (torch.xlogy(q, q.clamp(min=torch.finfo(q.dtype).tiny)) for q in (p, 1 - p))
    return -(on + off) / math.log(2)


def dead(frequency: Tensor) -> int:
    """How many of the frequencies [K] are below 1 % or above 99 %."""
    return int(((frequency < DEAD) | (frequency > 1 - DEAD)).sum())
