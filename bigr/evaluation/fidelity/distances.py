"""Fidelity: how far a set of images is from another, by torch-fidelity's own arithmetic over an extractor's features.

Fréchet and kernel distance, precision and recall, and the Inception score where the extractor has logits. All in
float64. Only Inception's are called FID, KID and IS: those of another extractor bear its name.
"""

import re
from typing import NamedTuple

import torch

from bigr.evaluation.fidelity.extractors import INCEPTION
from bigr.evaluation.fidelity.statistics import Statistics
from bigr.runtime.errors import BigrError

# isort: split
import torch_fidelity
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

_PRECISION_RECALL_ROWS = 1000  # rows of a block of the distance matrix: bounds memory, changes no figure
_SCORE_SPLITS = 10
_RNG_BITS = 32  # what numpy's RandomState takes


class Names(NamedTuple):
    """What the figures of an extractor are called."""

    distance: str
    kernel: str
    score: str


def names(extractor: str) -> Names:
    """`fid`, `kid`, `isc` for Inception; `fd_classifier`, … for another. Of `module:Class` the class counts."""
    if extractor == INCEPTION:
        return Names("fid", "kid", "isc")
    word = re.sub(r"\W", "_", extractor.rpartition(":")[2])
    return Names(f"fd_{word}", f"kd_{word}", f"is_{word}")


class Fidelity:
    """Compares what one extractor made of two sets.

    seed: of the kernel distance's subsets and the score's shuffle. The same seed and images give the same figures.
    device: where neighbours are looked for.
    """

    def __init__(
        self,
        *,
        kid_subsets: int,
        kid_subset_size: int,
        neighbours: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.kid_subsets, self.kid_subset_size, self.neighbours = kid_subsets, kid_subset_size, neighbours
        self._seed = seed % 2**_RNG_BITS
        self._device = "cpu" if torch.device(device).type == "mps" else device  # Metal has no float64

    def compare(self, images: Statistics, reference: Statistics) -> dict[str, float]:
        """Figures of `images` against `reference`, as many as what was kept of them allows.

        Precision: share of `images` inside the reference's manifold; recall: the other way round. The kernel
        distance draws subsets of `kid_subset_size`, or of the smaller set's size where that is less.
        Precision and recall are left out where a set has no more images than the neighbours looked for. Raises
        `BigrError` where the two are of different extractors.
        """
        ours, theirs = ((s.extractor, s.extractor_hash) for s in (images, reference))
        if not alike(ours, theirs) or images.mu.shape != reference.mu.shape:
            raise BigrError(
                f"the samples were seen through {known_as(*ours)} ({len(images.mu)} features), the reference through "
                f"{known_as(*theirs)} ({len(reference.mu)}); distances need one extractor for both"
            )
        called = names(images.extractor)
        figures = {called.distance: frechet_distance(images, reference)}
        if images.features is not None and reference.features is not None:
            a, b = images.features.double(), reference.features.double()
            smaller = min(len(a), len(b))
            size = min(self.kid_subset_size, smaller)
            drawn = kid_features_to_metric(
                a, b, kid_subsets=self.kid_subsets, kid_subset_size=size, rng_seed=self._seed, verbose=False
            )
            figures[called.kernel] = drawn[torch_fidelity.KEY_METRIC_KID_MEAN]
            if smaller > self.neighbours:
                inside = prc_features_to_metric(
                    a.to(self._device),
                    b.to(self._device),
                    prc_neighborhood=self.neighbours,
                    prc_batch_size=_PRECISION_RECALL_ROWS,
                    save_cpu_ram=True,
                    verbose=False,
                )
                figures["precision"] = inside[torch_fidelity.KEY_METRIC_PRECISION]
                figures["recall"] = inside[torch_fidelity.KEY_METRIC_RECALL]
        if images.logits is not None and len(images.logits) >= _SCORE_SPLITS:
            score = isc_features_to_metric(images.logits, _SCORE_SPLITS, shuffle=True, rng_seed=self._seed)
            figures[called.score] = score[torch_fidelity.KEY_METRIC_ISC_MEAN]
        return figures

    @property
    def too_few(self) -> str:
        """Why precision and recall are missing where they are."""
        return f"a set has no more than evaluation.precision_recall_neighbours = {self.neighbours} images"


def alike(first: tuple[str, str], second: tuple[str, str]) -> bool:
    """Whether two extractors, each by name and hash, are the same. One whose hash is not known is trusted."""
    return first[0] == second[0] and len({first[1], second[1]} - {""}) < 2


def known_as(extractor: str, hash_: str) -> str:
    """An extractor as people are told of it."""
    return f"{extractor} {hash_[:12] or '(of unknown weights)'}"


def frechet_distance(images: Statistics, reference: Statistics) -> float:
    """Fréchet distance of two Gaussians, ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½): torch-fidelity's."""
    first, second = ({"mu": s.mu, "sigma": s.sigma} for s in (images, reference))
    return fid_statistics_to_metric(first, second, verbose=False)[torch_fidelity.KEY_METRIC_FID]
