"""What sampling starts from: a model whose weights are finite, and labels."""

import torch
from torch import Tensor

from bigr.models.masked.generator import BiGR
from bigr.runtime.errors import BigrError

NO_LABEL = -1
"""In the place of a label: of samples of prompts, which have no class."""


def check_finite(model: BiGR) -> None:
    """Raise `BigrError` if a weight of `model` is not finite. Call it once, before anything is sampled.

    Sampling does not check: a NaN is above no threshold, and would be drawn as zeros.
    """
    if not torch.stack([parameter.isfinite().all() for parameter in model.parameters()]).all().item():
        raise BigrError(
            "the model has weights that are not finite: its training diverged, or its file is damaged; train it again, "
            "or use another model"
        )


def balanced_labels(count: int, classes: int) -> Tensor:
    """int64 [count]: 0, 1, …, classes − 1, repeated; numbers of images per class differ by one at most."""
    return torch.arange(count) % classes
