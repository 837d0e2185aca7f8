"""What an extractor makes of a set of images: mean and covariance of its features, and features to compare one by one.

Mean and covariance are torch-fidelity's own over all images. Of a set of more than `KEPT` images no more features than
that are kept, evenly spread over the set: memory stays bounded at any size, mean and covariance are then summed up in
float64 as the images pass. Knows no files.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bigr.evaluation.fidelity.extractors import Extractor
from bigr.evaluation.imagesets.streams import InOrder
from bigr.runtime.errors import BigrError
from bigr.runtime.progress import Progress

# isort: split
from torch_fidelity.metric_fid import fid_features_to_statistics

KEPT = 50_000
"""Features of a set that are kept: 400 MB of Inception's. As many samples as published figures are measured on."""


@dataclass(frozen=True)
class Statistics:
    """What the extractor called `extractor` with the hash `extractor_hash` made of `count` images.

    mu [F] and sigma [F, F]: float64. features [n, F] and logits [n, C]: those of all images, or of `KEPT`; None where
    they were not kept, or the extractor has none. extractor_hash and count are empty or None where nobody said.
    """

    extractor: str
    extractor_hash: str
    count: int | None
    mu: np.ndarray
    sigma: np.ndarray
    features: Tensor | None = None
    logits: Tensor | None = None


def measure(extractor: Extractor, images: InOrder, batch_size: int, *, name: str = "features") -> Statistics:
    """Show every image to the extractor, once and in order. name: of the bar that shows how far it is.

    Raises `BigrError` for a set of fewer than two images, and for an extractor that gives anything but features.
    """
    count = len(images)
    if count < 2:
        raise BigrError(f"{name}: a set of {count} images has no covariance; two are the least")
    features: list[Tensor] = []
    logits: list[Tensor] = []
    moments = Moments() if count > KEPT else None
    done = 0
    flags = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with flags, Progress(name, count, unit="image") as progress:
        for batch in images.batches(batch_size):
            seen, scores = extractor(batch)
            if seen.ndim != 2 or len(seen) != len(batch) or not seen.isfinite().all():
                raise BigrError(
                    f"extractor {extractor.name} made {list(seen.shape)} of {len(batch)} images of {name}; finite "
                    "features [images, width] are needed"
                )
            kept = spread(done, done + len(batch), count)
            features.append(seen[kept].cpu())
            if scores is not None:
                logits.append(scores[kept].cpu())
            if moments is not None:
                moments.add(seen)
            done += len(batch)
            progress.advance(len(batch))
    every = torch.cat(features)
    mu, sigma = mean_and_covariance(every) if moments is None else moments.result()
    return Statistics(extractor.name, extractor.hash, count, mu, sigma, every, torch.cat(logits) if logits else None)


def spread(start: int, end: int, count: int) -> list[int]:
    """Which of the images `start` to `end` of `count` are kept, counted from `start`: all, or `KEPT` evenly spread."""
    kept = min(KEPT, count)
    return [i - start for i in range(start, end) if (i + 1) * kept // count > i * kept // count]


def mean_and_covariance(features: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """torch-fidelity's mean [F] and covariance [F, F] of features [n, F], in float64."""
    found = fid_features_to_statistics(features.double())
    return found["mu"], np.atleast_2d(found["sigma"])


class Moments:
    """Mean and covariance of rows that are not kept: float64 sums of their differences from the first batch's mean."""

    def __init__(self) -> None:
        self._count = 0
        self._origin = self._sum = self._products = torch.empty(0)

    def add(self, rows: Tensor) -> None:
        """Count rows [B, F] in."""
        rows = rows.double() if rows.device.type != "mps" else rows.cpu().double()  # Metal has no float64
        if self._count == 0:
            self._origin = rows.mean(0)
            self._sum, self._products = rows.new_zeros(rows.shape[1]), rows.new_zeros(rows.shape[1], rows.shape[1])
        rows = rows - self._origin
        self._count += len(rows)
        self._sum += rows.sum(0)
        self._products += rows.T @ rows

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean [F] and unbiased covariance [F, F] of all rows, of which there are at least two."""
        mean = self._sum / self._count
        sigma = (self._products - self._count * mean.outer(mean)) / (self._count - 1)
        return (self._origin + mean).cpu().numpy(), sigma.cpu().numpy()
