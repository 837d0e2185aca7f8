"""Masked bits: corruption by absence (docs/method.md, section 3). The target "mask", after BAR (arXiv 2602.09024).

A bit is known or absent, instead of kept or flipped, and the noise level is the share of absent bits. Pure formulas on
tensors; the reverse process is in bigr/sampling/bit_unmasking.py. Shapes: M tokens, K bits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

ABSENT = 0.5
"""An absent bit, between 0 and 1: the network reads 2x − 1, which is ±1 for a known bit and 0 for an absent one."""

KNOWN_WEIGHT = 0.1
"""The weight of a known bit in the loss; that of an absent one is 1."""


def absent_counts(z: Tensor, code_bits: int) -> Tensor:
    """How many bits are absent, int64 in 1..K, for normal draws z: round(K·r), r = clamp(1 − σ(z), 1/K, 1)."""
    share = (1 - z.sigmoid()).clamp(1 / code_bits, 1)
    return (code_bits * share).round().long()


def without_absent(x0: Tensor, counts: Tensor, order: Tensor) -> Tensor:
    """Bits x0 [M, K], of which the first counts [M] in a random `order` [M, K] are absent. order: distinct numbers."""
    return x0.masked_fill(order.argsort(dim=-1).argsort(dim=-1) < counts.unsqueeze(-1), ABSENT)


def share_index(counts: Tensor, code_bits: int, steps: int) -> Tensor:
    """The index that the step embedding reads for a count of absent bits in 1..K: T·count/K − 1, float, continuous.

    So all bits absent is the last of the T indices, as the last noise level of the diffusion is.
    """
    return steps * counts.float() / code_bits - 1


def masked_bce(logits: Tensor, x0: Tensor, xt: Tensor) -> Tensor:
    """The loss of each bit, [M, K]: cross-entropy of x₀, times 1 where xₜ is absent and 0.1 where it is known.

    logits, bits x0 and corrupted bits xt are [M, K]. Computed in float32.
    """
    weight = torch.where(xt == ABSENT, 1.0, KNOWN_WEIGHT)
    return F.binary_cross_entropy_with_logits(logits.float(), x0.float(), weight=weight, reduction="none")
