"""An extractor's statistics of a set of images: mean and covariance of all features, and the features themselves.

Of a set of more than `KEPT` images, the features of `KEPT`, evenly spread, are kept: memory is bounded.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from bigr.evaluation.fidelity.extractors import Extractor
from bigr.evaluation.imagesets.image_stream import ImageStream
from bigr.runtime.distributed import is_main, rank, world
from bigr.runtime.errors import BigrError
from bigr.runtime.files import write_tensors
from bigr.runtime.progress import Progress

# isort: split
from torch_fidelity.metric_fid import fid_features_to_statistics

KEPT = 50_000
"""Images of a set whose features are kept, 400 MB of Inception's: as many samples as published metrics use."""

PART, LARGE_PART = 512, 8192
"""Images of a part on disk; large ones where moments of the width squared are in each."""


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
    with _measuring(name, len(images), len(images)) as progress:
        parts = _parts(len(images), batch_size)  # those of `measure_share`, so that sums are rounded as there
        every = (_measure_part(extractor, images, part, batch_size, name, progress.advance) for part in parts)
        return _statistics(extractor, len(images), every)


def measure_share(extractor: Extractor, images: ImageStream, batch_size: int, folder: Path, *, name: str) -> None:
    """Measure this process's share of `images` and write it to `folder`, part by part; parts that are there stay.

    Every process calls this, then the first `read_measured`. The parts, and so the statistics, do not depend on the
    number of processes. Raises `BigrError` as `measure` does.
    """
    parts = _parts(len(images), batch_size)[rank() :: world()]
    with _measuring(name, len(images), sum(map(len, parts))) as progress:
        for part in parts:
            path = _path(folder, extractor, name, part)
            if path.is_file():
                progress.advance(len(part))
            else:
                write_tensors(path, _measure_part(extractor, images, part, batch_size, name, progress.advance))


def read_measured(extractor: Extractor, count: int, batch_size: int, folder: Path, *, name: str) -> Statistics:
    """The statistics of a set of `count` images that all processes have measured with `measure_share`."""
    paths = (_path(folder, extractor, name, part) for part in _parts(count, batch_size))
    return _statistics(extractor, count, map(load_file, paths))


def _parts(count: int, batch_size: int) -> list[range]:
    """A set in parts of whole batches."""
    size = max(1, (LARGE_PART if count > KEPT else PART) // batch_size) * batch_size
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _path(folder: Path, extractor: Extractor, name: str, part: range) -> Path:
    return folder / f"{name}-{extractor.hash[:16]}-{part.start:09d}.safetensors"


@contextmanager
def _measuring(name: str, count: int, mine: int) -> Iterator[Progress]:
    if count < 2:
        raise BigrError(f"{name}: a set must have at least two images for a covariance, got {count}")
    flags = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with flags, Progress(name, mine, unit="image", enabled=is_main()) as progress:
        yield progress


def _measure_part(
    extractor: Extractor,
    images: ImageStream,
    part: range,
    batch_size: int,
    name: str,
    advance: Callable[[int], None],
) -> dict[str, Tensor]:
    """Some images' features and logits, of those that are kept; and where not all are, the moments of all of them."""
    count, done = len(images), part.start
    features: list[Tensor] = []
    logits: list[Tensor] = []
    moments = Moments() if count > KEPT else None
    for batch in images.batches(batch_size, part):
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
        advance(len(batch))
    found = {"features": torch.cat(features)}
    if logits:
        found["logits"] = torch.cat(logits)
    return found if moments is None else found | moments.tensors()


def _statistics(extractor: Extractor, count: int, parts: Iterable[dict[str, Tensor]]) -> Statistics:
    features: list[Tensor] = []
    logits: list[Tensor] = []
    moments = Moments()
    for part in parts:
        features.append(part["features"])
        if "logits" in part:
            logits.append(part["logits"])
        if "mean" in part:
            moments.merge(part)
    every = torch.cat(features)
    mu, sigma = moments.result() if count > KEPT else mean_and_covariance(every)
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
    """Mean and covariance of rows that are not kept, from float64 sums of differences from the mean so far.

    Batches are merged one after the other, as in Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm
    for computing sample variances" (1979).
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean = self._products = torch.empty(0)

    def add(self, rows: Tensor) -> None:
        """Add rows [B, F]."""
        rows = rows.double() if rows.device.type != "mps" else rows.cpu().double()  # Metal has no float64
        mean = rows.mean(0)
        apart = rows - mean
        self._merge(len(rows), mean, apart.T @ apart)

    def merge(self, tensors: Mapping[str, Tensor]) -> None:
        """Add the rows of other moments, as their `tensors`."""
        self._merge(int(tensors["count"]), tensors["mean"], tensors["products"])

    def _merge(self, count: int, mean: Tensor, products: Tensor) -> None:
        if self._count == 0:
            self._count, self._mean, self._products = count, mean, products
            return
        total = self._count + count
        step = mean - self._mean
        self._products += products + step.outer(step) * (self._count * count / total)
        self._mean = self._mean + step * (count / total)
        self._count = total

    def tensors(self) -> dict[str, Tensor]:
        """count int64 [], mean [F] and products [F, F], the sum of the differences' outer products, float64."""
        return {"count": torch.tensor(self._count), "mean": self._mean.cpu(), "products": self._products.cpu()}

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean [F] and unbiased covariance [F, F] of all rows, at least two."""
        return self._mean.cpu().numpy(), (self._products / (self._count - 1)).cpu().numpy()
