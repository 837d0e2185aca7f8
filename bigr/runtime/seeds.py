"""Repeatable randomness: each draw comes from a generator that is seeded by the setting `seed` and the draw's place.

So a resumed run draws the same as the uninterrupted one, and a sample does not depend on the others of its batch.
"""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WHOLE_BATCH = 0
"""The last part of the place of what is drawn for a whole global batch, of which each process takes its rows."""


def derive_seed(seed: int, *place: str | int) -> int:
    """A seed in [0, 2^63) for a place such as ("generator", "batch", step, WHOLE_BATCH); no two places are related."""
    text = "\x1f".join([str(seed), *map(str, place)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *place: str | int, device: "torch.device | str" = "cpu") -> "torch.Generator":
    """A `torch.Generator` on `device`, seeded for this place."""
    import torch  # here, so that what lists images (`bigr check`, the flow) starts without it

    if torch.device(device).type == "meta":  # nothing is computed there: a plan (bigr/pipeline/planning)
        device = "cpu"
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *place))
