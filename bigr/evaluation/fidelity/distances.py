"""Fidelity metrics of a set of images against another, computed by torch-fidelity from an extractor's features.

Fréchet and kernel distance, precision and recall, and the Inception score if the extractor has logits, in float64. They
are called FID, KID and IS for Inception alone; those of another extractor have its name.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from bigr.evaluation.fidelity.extractors import INCEPTION
from bigr.evaluation.fidelity.statistics import Statistics
from bigr.evaluation.protocol import EVALUATION_SEED, numpy_seed
from bigr.runtime.errors import BigrError
from bigr.runtime.seeds import derive_seed

# isort: split
import torch_fidelity
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

if TYPE_CHECKING:
    from bigr.config import EvaluationSettings

_PRECISION_RECALL_ROWS = 1000  # rows of a block of the distance matrix: bounds memory, changes no result
_SCORE_SPLITS = 10


class MetricNames(NamedTuple):
    """Names of an extractor's Fréchet distance, kernel distance and score in metrics.json."""

    distance: str
    kernel: str
    score: str


def metric_names(extractor: str) -> MetricNames:
    """`fid`, `kid`, `isc` for Inception; `fd_<extractor>`, … for another; of `module:Class`, the class."""
    if extractor == INCEPTION:
        return MetricNames("fid", "kid", "isc")
    word = re.sub(r"\W", "_", extractor.rpartition(":")[2])
    return MetricNames(f"fd_{word}", f"kd_{word}", f"is_{word}")


@dataclass(frozen=True)
class Fidelity:
    """Compares two sets of images by one extractor's statistics.

    kid_subsets, kid_subset_size: random subsets of the kernel distance; neighbours: k of precision and recall; seed: of
    the subsets and of the score's shuffle; device: of the search for neighbours.
    """

    kid_subsets: int
    kid_subset_size: int
    neighbours: int
    seed: int
    device: torch.device | str = "cpu"

    @classmethod
    def of(cls, section: "EvaluationSettings", device: torch.device) -> "Fidelity":
        """The comparison of the settings `evaluation`."""
        return cls(
            kid_subsets=section.kid_subsets,
            kid_subset_size=section.kid_subset_size,
            neighbours=section.precision_recall_neighbours,
            seed=derive_seed(EVALUATION_SEED, "fidelity"),
            device=device,
        )

    def compare(self, images: Statistics, reference: Statistics) -> dict[str, float]:
        """All metrics of `images` against `reference` that their statistics allow: `distances`, `precision_recall`."""
        return self.distances(images, reference) | self.precision_recall(images, reference)

    def distances(self, images: Statistics, reference: Statistics) -> dict[str, float]:
        """Distances and the score, by name (`metric_names`).

        The subsets of the kernel distance are no larger than the smaller set. Raises `BigrError` if the statistics are
        of different extractors.
        """
        ours, theirs = ((s.extractor, s.extractor_hash) for s in (images, reference))
        if not same_extractor(ours, theirs) or images.mu.shape != reference.mu.shape:
            raise BigrError(
                f"the samples' statistics are of {describe_extractor(*ours)} ({len(images.mu)} features), those of the "
                f"reference of {describe_extractor(*theirs)} ({len(reference.mu)}); distances need one extractor for "
                "both"
            )
        seed = numpy_seed(self.seed)
        names = metric_names(images.extractor)
        metrics = {names.distance: frechet_distance(images, reference)}
        if images.features is not None and reference.features is not None:
            a, b = images.features.double(), reference.features.double()
            size = min(self.kid_subset_size, len(a), len(b))
            drawn = kid_features_to_metric(
                a, b, kid_subsets=self.kid_subsets, kid_subset_size=size, rng_seed=seed, verbose=False
            )
            metrics[names.kernel] = drawn[torch_fidelity.KEY_METRIC_KID_MEAN]
        if images.logits is not None and len(images.logits) >= _SCORE_SPLITS:
            score = isc_features_to_metric(images.logits, _SCORE_SPLITS, shuffle=True, rng_seed=seed)
            metrics[names.score] = score[torch_fidelity.KEY_METRIC_ISC_MEAN]
        return metrics

    def precision_recall(self, images: Statistics, reference: Statistics) -> dict[str, float]:
        """precision: the share of `images` inside the reference's manifold; recall: the reverse.

        Empty where the features are not kept, or a set has no more images than neighbours.
        """
        if images.features is None or reference.features is None:
            return {}
        if min(len(images.features), len(reference.features)) <= self.neighbours:
            return {}
        device = "cpu" if torch.device(self.device).type == "mps" else self.device  # Metal has no float64
        inside = prc_features_to_metric(
            images.features.double().to(device),
            reference.features.double().to(device),
            prc_neighborhood=self.neighbours,
            prc_batch_size=_PRECISION_RECALL_ROWS,
            save_cpu_ram=True,
            verbose=False,
        )
        return {
            "precision": inside[torch_fidelity.KEY_METRIC_PRECISION],
            "recall": inside[torch_fidelity.KEY_METRIC_RECALL],
        }

    @property
    def too_few(self) -> str:
        """The reason for missing precision and recall."""
        return f"a set has no more than evaluation.precision_recall_neighbours = {self.neighbours} images"


def same_extractor(first: tuple[str, str], second: tuple[str, str]) -> bool:
    """Whether two extractors, each a name and a hash, are the same; an unknown hash, "", equals any."""
    return first[0] == second[0] and len({first[1], second[1]} - {""}) < 2


def describe_extractor(extractor: str, hash_: str) -> str:
    """An extractor's name and short hash, for a message."""
    return f"{extractor} {hash_[:12] or '(of unknown weights)'}"


def frechet_distance(images: Statistics, reference: Statistics) -> float:
    """Fréchet distance of two Gaussians by torch-fidelity: ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½)."""
    first, second = ({"mu": s.mu, "sigma": s.sigma} for s in (images, reference))
    return fid_statistics_to_metric(first, second, verbose=False)[torch_fidelity.KEY_METRIC_FID]
