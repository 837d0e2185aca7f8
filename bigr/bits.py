"""How well bits are used, from how often each is on. The one definition of entropy and of a dead bit.

Source: METHOD section 1; a code with every bit on in half of all tokens says most.
"""

import math

import torch
from torch import Tensor

DEAD = 0.01
"""A bit that is on, or off, in less than this share of all tokens is dead."""


def entropy(frequency: Tensor) -> Tensor:
    """The entropy of bits that are on with these frequencies in [0, 1], [K] → [K], in bits: 1 is best."""
    rest = 1 - frequency
    return -(torch.xlogy(frequency, frequency) + torch.xlogy(rest, rest)) / math.log(2)


def dead(frequency: Tensor) -> int:
    """How many of the frequencies [K] are below 1 % or above 99 %."""
    return int(((frequency < DEAD) | (frequency > 1 - DEAD)).sum())
