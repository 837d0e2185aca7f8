"""Measures image sets with an extractor, and compares them: `bigr evaluate`, once its sets and extractor are known."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bigr.evaluation.fidelity.distances import Fidelity, describe_extractor, metric_names, same_extractor
from bigr.evaluation.fidelity.extractors import INCEPTION, Extractor
from bigr.evaluation.fidelity.statistics import KEPT, Statistics, measure
from bigr.evaluation.fidelity.statistics_files import cache_file, read_statistics, write_statistics
from bigr.evaluation.imagesets.image_sets import ImageSet
from bigr.runtime.errors import BigrError

log = logging.getLogger(__name__)

FEW, USUAL = 10_000, 50_000
"""Images below which a Fréchet distance is far too high; images of published metrics."""


@dataclass(frozen=True)
class MeasuredSet:
    """An image set and its statistics. cached: they were read from the cache."""

    set: ImageSet
    statistics: Statistics
    cached: bool = False

    def as_json(self) -> dict[str, Any]:
        """The set's path, content and size, as JSON values."""
        split = {"split": self.set.split} if self.set.split else {}
        return {"path": str(self.set.path), **split, "images": self.set.count, "cached": self.cached, **about(self.set)}


@dataclass(frozen=True)
class Comparison:
    """metrics: by name; missing: metric → why it was not measured; warnings: one line each."""

    samples: MeasuredSet
    reference: MeasuredSet
    metrics: dict[str, float]
    missing: dict[str, str]
    warnings: list[str]


def about(images: ImageSet) -> dict[str, Any]:
    """The description of a set that a file of statistics holds."""
    size = list(images.size) if images.size else None
    return {"hash": images.hash, "kind": images.kind, "formats": images.formats, "size": size}


def measure_set(
    images: ImageSet, extractor: Callable[[], Extractor], batch_size: int, *, name: str, cache: Path | None = None
) -> MeasuredSet:
    """The set's statistics: its own, those in the folder `cache`, or new ones, which are then written to `cache`.

    extractor: returns the extractor, called only if the set holds images; name: of the set, for messages. Raises
    `BigrError` for images of another size than the extractor takes.
    """
    if images.images is None:
        if images.statistics is None:
            raise BigrError(f"{images.path} holds neither images nor statistics")
        return MeasuredSet(images, images.statistics)
    network = extractor()
    if network.side and images.size != (network.side, network.side):
        width, height = images.size or (0, 0)
        raise BigrError(
            f"{images.path} has images of {width}×{height} pixels, the extractor {network.name} takes {network.side}×"
            f"{network.side}; give --size {network.side}"
        )
    file = None if cache is None else cache_file(cache, images.hash, network)
    statistics = _read_cached(file)
    cached = statistics is not None
    if statistics is None:
        statistics = measure(network, images.images, batch_size, name=name)
        _write_cached(file, statistics, images)
    if images.statistics is not None and network.name == images.statistics.extractor:
        own = images.statistics  # of ADM's reference, over far more images than it holds
        statistics = replace(statistics, mu=own.mu, sigma=own.sigma, count=own.count)
    return MeasuredSet(images, statistics, cached)


def _write_cached(file: Path | None, statistics: Statistics, images: ImageSet) -> None:
    if file is None:
        return
    try:
        write_statistics(file, statistics, about(images))
    except OSError as error:  # such as a full disk
        log.warning("%s is not cached: %s", images.path, error)


def _read_cached(file: Path | None) -> Statistics | None:
    if file is None or not file.is_file():
        return None
    try:
        return read_statistics(file)[0]
    except BigrError as error:
        log.warning("%s; it is measured again", error)
        return None


def check_extractor(images: ImageSet, extractor: Extractor) -> None:
    """Raise `BigrError` if the set is statistics of another extractor."""
    own = images.statistics
    if images.images is not None or own is None:
        return
    if not same_extractor((extractor.name, extractor.hash), (own.extractor, own.extractor_hash)):
        raise BigrError(
            f"{images.path} holds statistics of {describe_extractor(own.extractor, own.extractor_hash)}, the images "
            f"would be measured with {describe_extractor(extractor.name, extractor.hash)}; choose the same with "
            "--extractor and --weights"
        )


def compare(fidelity: Fidelity, samples: MeasuredSet, reference: MeasuredSet) -> Comparison:
    """All metrics of `samples` against `reference` that can be measured."""
    metrics = fidelity.compare(samples.statistics, reference.statistics)
    names = metric_names(samples.statistics.extractor)
    missing: dict[str, str] = {}
    for measured in (reference, samples):
        if measured.statistics.features is None:
            reason = f"{measured.set.path} holds no features, mean and covariance alone"
            missing |= dict.fromkeys((names.kernel, "precision", "recall"), reason)
    if "precision" not in metrics and "precision" not in missing:
        missing |= dict.fromkeys(("precision", "recall"), fidelity.too_few)
    if names.score not in metrics:
        without = samples.statistics.logits is None
        missing[names.score] = "there are no class logits of the samples" if without else "it takes 10 samples at least"
    return Comparison(samples, reference, metrics, missing, warnings(samples, reference))


def warnings(samples: MeasuredSet, reference: MeasuredSet) -> list[str]:
    """What limits the comparability of the metrics, one line each."""
    sets = {"samples": samples, "reference": reference}
    lines = []
    if any(one.set.lossy for one in sets.values()) and any(one.set.lossless for one in sets.values()):
        shares = " and ".join(
            f"{one.set.lossy:,} of {one.set.lossy + one.set.lossless:,} {name}" for name, one in sets.items()
        )
        lines.append(
            f"JPEG moves the distance: {shares} images are compressed with losses; compare sets that are stored alike"
        )
    if samples.set.size and reference.set.size and samples.set.size != reference.set.size:
        (a, b), (c, d) = samples.set.size, reference.set.size
        lines.append(f"the samples are {a}×{b} pixels, the reference {c}×{d}; published results compare equal sizes")
    if samples.set.hash == reference.set.hash:
        lines.append("the samples and the reference are the same images")
    names = metric_names(samples.statistics.extractor)
    count = samples.statistics.count
    if count is not None and count < USUAL:
        how = "far" if count < FEW else "a little"
        lines.append(
            f"{names.distance} is biased upwards where there are few images, here by {how}: compare it only with that "
            f"of {count:,} samples (published results use {USUAL:,})"
        )
    reference_count = reference.statistics.count
    if reference_count is not None and reference_count < FEW:
        lines.append(f"a reference of {reference_count:,} images is small, which raises {names.distance} too")
    for name, measured in sets.items():
        if (measured.statistics.count or 0) > KEPT:
            lines.append(
                f"{names.distance} is over all {measured.statistics.count:,} images of the {name}; all else over "
                f"{KEPT:,} of them, evenly spread"
            )
        foreign = measured.set.statistics
        if foreign is not None and not foreign.extractor_hash and measured.statistics.extractor == INCEPTION:
            lines.append(
                f"{names.distance} takes the mean and covariance in {measured.set.path}, as ADM's evaluator does: that "
                "they are Inception's is taken on trust"
            )
    return lines
