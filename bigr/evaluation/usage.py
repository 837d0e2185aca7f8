"""How well the codes use their bits."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bigr.data.codes import CodesDataset
from bigr.models import bits

_CHUNK = 4096  # images at a time


@dataclass(frozen=True)
class CodeUsage:
    """Of the tokens of a split's first view: how often each bit is on, float64 [K]; how many of the codes differ."""

    frequency: Tensor
    unique_share: float

    @property
    def entropy(self) -> Tensor:
        """Of each bit's frequency, in bits: 1 is best, float64 [K]."""
        return bits.entropy(self.frequency)

    @property
    def dead(self) -> int:
        """How many bits are on in less than 1 % or more than 99 % of all tokens."""
        return bits.dead(self.frequency)

    def metrics(self) -> dict[str, float]:
        """The part `codes` of metrics.json."""
        return {
            "bit_entropy": float(self.entropy.mean()),
            "dead_bits": self.dead,
            "unique_share": self.unique_share,
        }


def code_usage(codes: CodesDataset, count: int) -> CodeUsage:
    """Over the first `count` images. Holds their packed codes, N·⌈K/8⌉ bytes an image, in memory."""
    ones = torch.zeros(codes.code_bits, dtype=torch.int64)
    packed = []
    for indices in torch.arange(count).split(_CHUNK):
        batch, _ = codes.batch(indices)
        ones += batch.sum(dim=(0, 1))
        packed.append(np.packbits(batch.flatten(0, 1).numpy(), axis=-1))
    tokens = np.ascontiguousarray(np.concatenate(packed))
    # Rows as opaque bytes: sorting those is many times faster than np.unique over an axis.
    unique = np.unique(tokens.view(np.dtype((np.void, tokens.shape[1]))))
    return CodeUsage(ones.double() / len(tokens), len(unique) / len(tokens))
