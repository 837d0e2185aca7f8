"""Measures one set of images against another: what `bigr evaluate` does once it knows its sets and its extractor.

The reference's statistics are remembered in a folder, by the content of the set and the identity of the extractor. What
makes figures less than they seem is said in `warnings`, what cannot be measured in `missing`.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bigr.evaluation.fidelity import kept
from bigr.evaluation.fidelity.distances import Fidelity, alike, known_as, names
from bigr.evaluation.fidelity.extractors import INCEPTION, Extractor
from bigr.evaluation.fidelity.statistics import KEPT, Statistics, measure
from bigr.evaluation.imagesets.sets import ImageSet
from bigr.runtime.errors import BigrError

log = logging.getLogger(__name__)

FEW, USUAL = 10_000, 50_000
"""Images below which a Fréchet distance is far too high, and those that published figures are measured on."""


@dataclass(frozen=True)
class Measured:
    """A set and what the extractor made of it. cached: it was not shown to the extractor again."""

    set: ImageSet
    statistics: Statistics
    cached: bool = False

    def as_json(self) -> dict[str, Any]:
        """What it is, for machines."""
        split = {"split": self.set.split} if self.set.split else {}
        return {"path": str(self.set.path), **split, "images": self.set.count, "cached": self.cached, **about(self.set)}


@dataclass(frozen=True)
class Comparison:
    """Figures by name, warnings, and for each figure that is missing the reason."""

    samples: Measured
    reference: Measured
    figures: dict[str, float]
    missing: dict[str, str]
    warnings: list[str]


def about(images: ImageSet) -> dict[str, Any]:
    """What statistics in a file say of their set."""
    size = list(images.size) if images.size else None
    return {"hash": images.hash, "kind": images.kind, "formats": images.formats, "size": size}


def look(
    images: ImageSet, extractor: Callable[[], Extractor], batch_size: int, *, name: str, cache: Path | None = None
) -> Measured:
    """The set's statistics: those it comes with, those in the folder `cache`, or measured now (and put there).

    extractor: makes the extractor, only called where there are images. name: of the set in messages.
    """
    if images.images is None:
        if images.statistics is None:
            raise BigrError(f"{images.path} holds neither images nor statistics")
        return Measured(images, images.statistics)
    through = extractor()
    if through.side and images.size != (through.side, through.side):
        width, height = images.size or (0, 0)
        raise BigrError(
            f"{images.path} has images of {width}×{height} pixels, the extractor {through.name} takes {through.side}×"
            f"{through.side}; give --size {through.side}"
        )
    place = None if cache is None else kept.place(cache, images.hash, through)
    statistics = None if place is None else _remembered(place)
    cached = statistics is not None
    if statistics is None:
        statistics = measure(through, images.images, batch_size, name=name)
        if place is not None:
            _remember(place, statistics, images)
    if images.statistics is not None and through.name == images.statistics.extractor:
        own = images.statistics  # of ADM's reference: over far more images than it holds
        statistics = replace(statistics, mu=own.mu, sigma=own.sigma, count=own.count)
    return Measured(images, statistics, cached)


def _remember(place: Path, statistics: Statistics, images: ImageSet) -> None:
    try:
        kept.write(place, statistics, about(images))
    except OSError as error:  # a full disk costs the next run its time, not this one its figures
        log.warning("%s is not remembered: %s", images.path, error)


def _remembered(place: Path) -> Statistics | None:
    if not place.is_file():
        return None
    try:
        return kept.read(place).statistics
    except BigrError as error:
        log.warning("%s; it is measured again", error)
        return None


def check_before(images: ImageSet, extractor: Extractor) -> None:
    """Raise `BigrError` before anything takes time where a set's statistics are of another extractor than this."""
    theirs = images.statistics
    if images.images is not None or theirs is None:
        return
    if not alike((extractor.name, extractor.hash), (theirs.extractor, theirs.extractor_hash)):
        raise BigrError(
            f"{images.path} was seen through {known_as(theirs.extractor, theirs.extractor_hash)}, the images are to be "
            f"seen through {known_as(extractor.name, extractor.hash)}; choose the same with --extractor and --weights"
        )


def compare(fidelity: Fidelity, samples: Measured, reference: Measured) -> Comparison:
    """All figures that there are."""
    figures = fidelity.compare(samples.statistics, reference.statistics)
    called = names(samples.statistics.extractor)
    missing: dict[str, str] = {}
    for pair in (reference, samples):
        if pair.statistics.features is None:
            reason = f"{pair.set.path} holds no features, mean and covariance alone"
            missing |= dict.fromkeys((called.kernel, "precision", "recall"), reason)
    if "precision" not in figures and "precision" not in missing:
        missing |= dict.fromkeys(("precision", "recall"), fidelity.too_few)
    if called.score not in figures:
        bare = samples.statistics.logits is None
        missing[called.score] = "there are no class logits of the samples" if bare else "it takes 10 samples at least"
    return Comparison(samples, reference, figures, missing, warnings(samples, reference))


def warnings(samples: Measured, reference: Measured) -> list[str]:
    """What makes the figures less comparable than they look, a line each."""
    sets = {"samples": samples, "reference": reference}
    said = []
    if any(pair.set.lossy for pair in sets.values()) and any(pair.set.lossless for pair in sets.values()):
        shares = " and ".join(
            f"{pair.set.lossy:,} of {pair.set.lossy + pair.set.lossless:,} {name}" for name, pair in sets.items()
        )
        said.append(
            f"JPEG moves the distance: {shares} images are compressed with losses; compare sets that are stored alike"
        )
    if samples.set.size and reference.set.size and samples.set.size != reference.set.size:
        (a, b), (c, d) = samples.set.size, reference.set.size
        said.append(f"the samples are {a}×{b} pixels, the reference {c}×{d}; published figures compare equal sizes")
    if samples.set.hash == reference.set.hash:
        said.append("the samples and the reference are the same images")
    called = names(samples.statistics.extractor)
    count = samples.statistics.count
    if count is not None and count < USUAL:
        how = "far" if count < FEW else "a little"
        said.append(
            f"{called.distance} is biased upwards where there are few images, here by {how}: compare it only with that "
            f"of {count:,} samples (published figures take {USUAL:,})"
        )
    seen = reference.statistics.count
    if seen is not None and seen < FEW:
        said.append(f"a reference of {seen:,} images is small, which raises {called.distance} too")
    for name, pair in sets.items():
        if (pair.statistics.count or 0) > KEPT:
            said.append(
                f"{called.distance} is over all {pair.statistics.count:,} images of the {name}; all else over "
                f"{KEPT:,} of them, evenly spread"
            )
        foreign = pair.set.statistics
        if foreign is not None and not foreign.extractor_hash and pair.statistics.extractor == INCEPTION:
            said.append(
                f"{called.distance} takes the mean and covariance in {pair.set.path}, as ADM's evaluator does: that "
                "they are Inception's is taken on trust"
            )
    return said
