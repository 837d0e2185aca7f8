"""An extractor's statistics of a set of images: mean and covariance of all features, and the features themselves.

Of a set of more than `KEPT` images, the features of `KEPT`, evenly spread, are kept: memory is bounded.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bigr.evaluation.fidelity.extractors import Extractor
from bigr.evaluation.imagesets.image_stream import ImageStream
from bigr.runtime.errors import BigrError
from bigr.runtime.progress import Progress

# isort: split
from torch_fidelity.metric_fid import fid_features_to_statistics

KEPT = 50_000
"""Images of a set whose features are kept, 400 MB of Inception's: as many samples as published metrics use."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of `count` images by the extractor with this name and hash.

    mu [F], sigma [F, F]: float64; features [n, F], logits [n, C]: of all images, or of `KEPT` of them; None if they are
    not kept, or the extractor has none. extractor_hash is "" and count None if they are unknown.
    """

    extractor: str
    extractor_hash: str
    count: int | None
    mu: np.ndarray
    sigma: np.ndarray
    features: Tensor | None = None
    logits: Tensor | None = None


def measure(extractor: Extractor, images: ImageStream, batch_size: int, *, name: str = "features") -> Statistics:
    """The extractor's statistics of `images`, each read once, in order. name: of the set, for progress and messages.

    Raises `BigrError` for fewer than two images, and if the extractor's output is not finite features [B, F].
    """
    count = len(images)
    if count < 2:
        raise BigrError(f"{name}: a set must have at least two images for a covariance, got {count}")
    features: list[Tensor] = []
    logits: list[Tensor] = []
    moments = Moments() if count > KEPT else None
    done = 0
    flags = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with flags, Progress(name, count, unit="image") as progress:
        for batch in images.batches(batch_size):
            output, scores = extractor(batch)
            if output.ndim != 2 or len(output) != len(batch) or not output.isfinite().all():
                raise BigrError(
                    f"extractor {extractor.name}: the output for {len(batch)} images of {name} must be finite features "
                    f"[{len(batch)}, width], got {list(output.shape)}"
                )
            kept = spread(done, done + len(batch), count)
            features.append(output[kept].cpu())
            if scores is not None:
                logits.append(scores[kept].cpu())
            if moments is not None:
                moments.add(output)
            done += len(batch)
            progress.advance(len(batch))
    every = torch.cat(features)
    mu, sigma = mean_and_covariance(every) if moments is None else moments.result()
    return Statistics(extractor.name, extractor.hash, count, mu, sigma, every, torch.cat(logits) if logits else None)


def spread(start: int, end: int, count: int) -> list[int]:
    """Which images from `start` to `end`, of `count`, are kept, counted from `start`: all, or `KEPT`, evenly spread."""
    kept = min(KEPT, count)
    return [i - start for i in range(start, end) if (i + 1) * kept // count > i * kept // count]


def mean_and_covariance(features: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean [F] and covariance [F, F] of features [n, F], in float64, by torch-fidelity."""
    found = fid_features_to_statistics(features.double())
    return found["mu"], np.atleast_2d(found["sigma"])


class Moments:
    """Mean and covariance of rows that are not kept, from float64 sums of differences from the first batch's mean."""

    def __init__(self) -> None:
        self._count = 0
        self._origin = self._sum = self._products = torch.empty(0)

    def add(self, rows: Tensor) -> None:
        """Add rows [B, F]."""
        rows = rows.double() if rows.device.type != "mps" else rows.cpu().double()  # Metal has no float64
        if self._count == 0:
            self._origin = rows.mean(0)
            self._sum, self._products = rows.new_zeros(rows.shape[1]), rows.new_zeros(rows.shape[1], rows.shape[1])
        rows = rows - self._origin
        self._count += len(rows)
        self._sum += rows.sum(0)
        self._products += rows.T @ rows

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean [F] and unbiased covariance [F, F] of all rows, at least two."""
        mean = self._sum / self._count
        sigma = (self._products - self._count * mean.outer(mean)) / (self._count - 1)
        return (self._origin + mean).cpu().numpy(), sigma.cpu().numpy()
