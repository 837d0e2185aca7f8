"""How well the codes use their bits."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from bigr.data.codes import CodesDataset, bit_frequency
from bigr.models import bits


@dataclass(frozen=True)
class CodeUsage:
    """Use of the bits over the tokens of a split's first view.

    frequency: the share of tokens with each bit on, float64 [K]; unique_share: distinct codes of a token ÷ tokens.
    """

    frequency: Tensor
    unique_share: float

    @property
    def entropy(self) -> Tensor:
        """The entropy of each bit's frequency, in bits, float64 [K]; 1 is best."""
        return bits.entropy(self.frequency)

    @property
    def dead(self) -> int:
        """The number of dead bits; see `bigr.models.bits.dead`."""
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
    tokens = np.concatenate([np.packbits(batch.flatten(0, 1).numpy(), axis=-1) for batch, _ in codes.chunks(count)])
    # Rows as opaque bytes, which sort many times faster than np.unique over an axis.
    unique = np.unique(tokens.view(np.dtype((np.void, tokens.shape[1]))))
    return CodeUsage(bit_frequency(codes, count), len(unique) / len(tokens))
