"""All metrics of the representation, with their table and plots (docs/method.md, section 5)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bigr.evaluation import plots
from bigr.evaluation.representation.features import Features
from bigr.evaluation.representation.linear_probe import LayerAccuracies, linear_probe, selection
from bigr.evaluation.representation.nearest_neighbours import nearest_neighbours
from bigr.evaluation.representation.tsne import tsne
from bigr.interop.standardisation import FeatureStatistics
from bigr.runtime.distributed import together
from bigr.runtime.files import write_csv

if TYPE_CHECKING:
    from bigr.config import EvaluationSettings as Section


@dataclass(frozen=True)
class Representation:
    """The accuracies of the linear probe and of k-NN by layer, and the t-SNE of the probe's best layer.

    points: float32 [m, 2], of the first m validation images; labels: int64 [m], of the same images; statistics: of the
    training split's features, with the probe's best layer.
    """

    probe: LayerAccuracies
    knn: LayerAccuracies
    points: np.ndarray
    labels: Tensor
    statistics: FeatureStatistics

    def metrics(self) -> dict[str, dict[str, float]]:
        """The parts `probe` and `knn` of metrics.json: the best layer, from 1, and the accuracies of every layer."""
        return {"probe": _metrics(self.probe), "knn": _metrics(self.knn)}

    def table(self) -> list[tuple[int, *tuple[float, ...]]]:
        """The rows of probe.csv, one for each layer; see `COLUMNS`."""
        probe, knn = self.probe, self.knn
        layers = range(1, len(probe.top1) + 1)
        columns = (probe.top1, probe.top5, knn.top1, knn.top5, probe.selection, knn.selection)
        return [(layer, *values) for layer, values in zip(layers, zip(*columns, strict=True), strict=True)]

    def draw(self, folder: Path, classes: Sequence[str]) -> None:
        """Write probe.png, probe.csv and tsne.png."""
        plots.probe_plot(folder / "probe.png", self.probe, self.knn, len(classes))
        plots.tsne_plot(folder / "tsne.png", self.points, self.labels.numpy(), classes, self.probe.best)
        write_csv(folder / "probe.csv", COLUMNS, self.table())


COLUMNS = ("layer", "top1", "top5", "knn_top1", "knn_top5", "selection_top1", "knn_selection_top1")
"""The columns of probe.csv. The last two are of the training images that choose the layer, the others of the validation
split."""


class Accuracies(NamedTuple):
    """Statistics of the training split's features, and the accuracies of the linear probe, and of k-NN on features
    standardised by them.
    """

    statistics: FeatureStatistics
    probe: LayerAccuracies
    knn: LayerAccuracies


def layer_accuracies(
    section: "Section", train: Features, val: Features, classes: int, device: torch.device
) -> Accuracies:
    """Measure features of the validation split by those of the training split, with the settings `evaluation`.

    Each process takes a share of k-NN's images, and of the layers whose probes are trained. Raises `BigrError` for too
    few training images; see `selection`.
    """
    held_out = selection(len(train), section.selection_fraction)
    statistics = together(lambda: train.statistics(device))
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
    return Accuracies(statistics, probe, knn)


def represent(section: "Section", val: Features, found: Accuracies) -> Representation:
    """The accuracies, with the t-SNE of the probe's best layer on the validation split."""
    best = found.probe.best
    points = tsne(val, best, images=section.tsne_images, perplexity=section.tsne_perplexity)
    statistics = replace(found.statistics, best_layer=best)
    return Representation(found.probe, found.knn, points, val.labels[: len(points)], statistics)


def _metrics(accuracies: LayerAccuracies) -> dict[str, float]:
    best = accuracies.best
    metrics: dict[str, float] = {"best_layer": best}
    for name, values in (("top1", accuracies.top1), ("top5", accuracies.top5)):
        metrics[f"best_{name}"] = values[best - 1]
        metrics |= {f"{name}_layer_{layer:02}": value for layer, value in enumerate(values, start=1)}
    return metrics
