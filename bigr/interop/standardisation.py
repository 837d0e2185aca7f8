"""Statistics that make features comparable, kept in `models/features` beside the model.

Raw features of all images are alike, so that they are compared minus the training split's mean, divided by its standard
deviation. The folder holds both for every layer (statistics.safetensors), and in config.json the linear probe's best
layer and the hash of the model.

Shapes: L layers, D width. Layers are counted from 1.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bigr.interop.folders import model_hash
from bigr.runtime.errors import BigrError
from bigr.runtime.files import atomic_folder, write_json, write_tensors

log = logging.getLogger(__name__)

_CONFIG, _TENSORS = "config.json", "statistics.safetensors"
_SMALLEST = 1e-6
"""Of a layer's root mean square deviation: below that a number is the same in all images but for rounding."""


@dataclass(frozen=True)
class FeatureStatistics:
    """mean, deviation: of every layer's features over some images, float32 [L, D]; best_layer: where it is known."""

    mean: Tensor
    deviation: Tensor
    best_layer: int | None = None

    @classmethod
    def of(cls, features: Tensor) -> "FeatureStatistics":
        """The statistics of features [n, L, D]; the deviation of one image is 0."""
        exact = features.double()
        return cls(exact.mean(0).float(), exact.std(0, correction=0).float())

    def standardised(self, features: Tensor) -> Tensor:
        """Features [..., L, D], on any device, of zero mean and unit deviation over those images."""
        scale = self._scale.to(features.device)
        return (features - self.mean.to(features.device)) / scale

    def layer(self, number: int) -> "FeatureStatistics":
        """The statistics of one layer (L = 1)."""
        return FeatureStatistics(self.mean[number - 1 : number], self.deviation[number - 1 : number])

    @property
    def _scale(self) -> Tensor:
        least = self.deviation.square().mean(-1, keepdim=True).sqrt() * _SMALLEST
        floored = torch.maximum(self.deviation, least)
        return torch.where(floored > 0, floored, 1.0)


def save_statistics(folder: Path, statistics: FeatureStatistics, model: Path) -> None:
    """Write them to `folder`, which appears whole or not at all. model: the folder of the model they are of."""
    with atomic_folder(folder) as new:
        write_json(new / _CONFIG, {"best_layer": statistics.best_layer, "model": model_hash(model)})
        write_tensors(new / _TENSORS, {"mean": statistics.mean, "deviation": statistics.deviation})


def load_statistics(folder: Path, model: Path) -> FeatureStatistics | None:
    """What `save_statistics` wrote; None where there is none, or it is of another model than that in `model`.

    Raises `BigrError` where it is damaged.
    """
    if not (folder / _CONFIG).is_file():
        return None
    try:
        about = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / _TENSORS)
        found = FeatureStatistics(tensors["mean"], tensors["deviation"], int(about["best_layer"]))
        of, layers = about["model"], len(found.mean)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise BigrError(f"{folder}: cannot be read ({error}); remove it, or run the stage evaluation again") from None
    if not 1 <= int(found.best_layer or 0) <= layers or found.mean.shape != found.deviation.shape:
        raise BigrError(f"{folder}: damaged; remove it, or run the stage evaluation again")
    if of != model_hash(model):
        log.warning(
            "%s is of another model than %s, and left out; the stage evaluation measures it anew", folder, model
        )
        return None
    return found
