"""Representation: all that is measured of features, its metrics, tables and plots (docs/method.md, section 5)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bigr.evaluation import plots
from bigr.evaluation.representation.embedding import tsne
from bigr.evaluation.representation.features import Features
from bigr.evaluation.representation.neighbours import nearest_neighbours
from bigr.evaluation.representation.probe import LayerAccuracies, linear_probe, selection
from bigr.interop.standardisation import FeatureStatistics

if TYPE_CHECKING:
    from bigr.config import EvaluationSettings as Section


@dataclass(frozen=True)
class Representation:
    """Of every layer the linear probe's accuracies and the k-NN ones; of the probe's best the t-SNE.

    points: float32 [m, 2], of the first m validation images; labels: theirs, int64 [m]; statistics: of the training
    split's features, with the probe's best layer.
    """

    probe: LayerAccuracies
    knn: LayerAccuracies
    points: np.ndarray
    labels: Tensor
    statistics: FeatureStatistics

    def figures(self) -> dict[str, dict[str, float]]:
        """As in metrics.json: `probe` and `knn`, each the layer that held-out training images chose (from 1), and every
        layer's figures."""
        return {name: _figures(part) for name, part in (("probe", self.probe), ("knn", self.knn))}

    def table(self) -> list[tuple[int, *tuple[float, ...]]]:
        """Rows of `COLUMNS`."""
        probe, knn = self.probe, self.knn
        layers = range(1, len(probe.top1) + 1)
        columns = (probe.top1, probe.top5, knn.top1, knn.top5, probe.selection, knn.selection)
        return [(layer, *values) for layer, values in zip(layers, zip(*columns, strict=True), strict=True)]

    def draw(self, folder: Path, classes: Sequence[str]) -> None:
        """Write probe.png, probe.csv and tsne.png."""
        plots.probe_plot(folder / "probe.png", self.probe, self.knn, len(classes))
        plots.tsne_plot(folder / "tsne.png", self.points, self.labels.numpy(), classes, self.probe.best)
        plots.write_table(folder / "probe.csv", COLUMNS, self.table())


COLUMNS = ("layer", "top1", "top5", "knn_top1", "knn_top5", "selection_top1", "knn_selection_top1")
"""Of probe.csv. The last two are of the held-out training images that choose a layer, the others of the validation
split."""


def represent(section: "Section", train: Features, val: Features, classes: int, device: torch.device) -> Representation:
    """Measure what the features of one split tell about another's, by the settings of `evaluation`."""
    held_out = selection(len(train), section.selection_fraction)
    probe = linear_probe(
        train,
        val,
        held_out=held_out,
        classes=classes,
        epochs=section.probe_epochs,
        batch_size=section.probe_batch_size,
        learning_rate=section.probe_learning_rate,
        weight_decay=section.probe_weight_decay,
        device=device,
    )
    statistics = replace(train.statistics(device), best_layer=probe.best)
    knn = nearest_neighbours(
        train,
        val,
        held_out=held_out,
        statistics=statistics,
        classes=classes,
        neighbours=section.knn_neighbours,
        temperature=section.knn_temperature,
        device=device,
    )
    points = tsne(val, probe.best, images=section.tsne_images, perplexity=section.tsne_perplexity)
    return Representation(probe, knn, points, val.labels[: len(points)], statistics)


def _figures(found: LayerAccuracies) -> dict[str, float]:
    best = found.best
    figures: dict[str, float] = {
        "best_layer": best,
        "best_top1": found.top1[best - 1],
        "best_top5": found.top5[best - 1],
    }
    layers = ((1, found.top1), (5, found.top5))
    return figures | {f"top{k}_layer_{layer:02}": v for k, top in layers for layer, v in enumerate(top, start=1)}
