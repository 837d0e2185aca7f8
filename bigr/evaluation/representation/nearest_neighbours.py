"""Classification of each layer's features by k nearest neighbours, without training (as in DINO).

Cosine similarity of features that are standardised by the training split's statistics; each of the k nearest training
images votes for its class with weight exp(similarity / temperature). Computed in blocks: memory is bounded.

Shapes: n training images, m queries, L layers, D width, C classes.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from bigr.evaluation.representation.features import Features
from bigr.evaluation.representation.linear_probe import TOP, LayerAccuracies
from bigr.interop.standardisation import FeatureStatistics
from bigr.runtime.distributed import is_main, my_range, of_each, together
from bigr.runtime.progress import Progress

_BLOCK_BYTES = 256 << 20
"""The most that a block of features of all layers takes, and a block of similarities."""


def nearest_neighbours(
    train: Features,
    val: Features,
    *,
    held_out: Tensor,
    statistics: FeatureStatistics,
    classes: int,
    neighbours: int,
    temperature: float,
    device: torch.device,
    block_bytes: int = _BLOCK_BYTES,
) -> LayerAccuracies:
    """The accuracies on `val` of the votes of the `neighbours` nearest images of `train` (all, if it has fewer).

    held_out: the training images, int64, whose accuracy chooses the layer; none is a neighbour of itself; statistics:
    of `train`; classes: C; temperature: > 0. Memory: a few blocks of `block_bytes`, and 12·k·L bytes for each query.
    Each process searches for its share of the queries, and reads all training images.
    """
    k = min(neighbours, len(train))
    rows = max(1, min(block_bytes // (4 * train.layers * train.width), math.isqrt(block_bytes // 4)))
    every = (torch.arange(len(val)), held_out)
    shares = [queries[slice(mine.start, mine.stop)] for queries in every for mine in [my_range(len(queries))]]

    def right() -> list[Tensor]:
        validation = _Queries(val, shares[0], statistics, k, device)
        selecting = _Queries(train, shares[1], statistics, k, device, own=True)
        with Progress("k-NN", len(train), unit="image", enabled=is_main()) as progress:
            for images in _ranges(len(train), rows):
                block = F.normalize(statistics.standardised(train.rows(images, device)), dim=2)
                labels = train.labels[images].to(device)
                for queries in (validation, selecting):
                    queries.update(block, labels, images.start, rows)
                progress.advance(len(block))
        return [queries.right(temperature, classes, rows) for queries in (validation, selecting)]

    counts = [torch.stack(of_all).sum(0) for of_all in zip(*of_each(together(right)), strict=True)]
    (top1, top5), (chosen_by, _) = ((c / len(queries)).tolist() for c, queries in zip(counts, every, strict=True))
    return LayerAccuracies(top1, top5, chosen_by)


class _Queries:
    """Images of a split, with their k nearest neighbours among the training images so far.

    chosen: int64 [m]; own: they are training images themselves.
    """

    def __init__(
        self,
        features: Features,
        chosen: Tensor,
        statistics: FeatureStatistics,
        k: int,
        device: torch.device,
        *,
        own: bool = False,
    ) -> None:
        self._features, self._chosen, self._statistics, self._own = features, chosen, statistics, own
        # The neighbours' similarity and class; less similar than any image at first.
        self._similarity = torch.full((features.layers, len(chosen), k), -torch.inf, device=device)
        self._label = torch.zeros(self._similarity.shape, dtype=torch.int64, device=device)

    def update(self, block: Tensor, labels: Tensor, first: int, rows: int) -> None:
        """Search the training images from `first` on, features [B, L, D] of unit length and classes [B].

        rows: queries at a time.
        """
        k = self._similarity.shape[2]
        for part in _ranges(len(self._chosen), rows):
            images = self._chosen[part]
            queries = self._features.rows(images, block.device)
            queries = F.normalize(self._statistics.standardised(queries), dim=2)
            itself = ((images - first >= 0) & (images - first < len(block))).nonzero().flatten() if self._own else None
            for layer in range(block.shape[1]):
                cosines = queries[:, layer] @ block[:, layer].T
                if itself is not None:
                    cosines[itself, images[itself] - first] = -torch.inf
                best, where = cosines.topk(min(k, len(block)), dim=1)
                both = torch.cat([self._similarity[layer, part], best], dim=1)
                theirs = torch.cat([self._label[layer, part], labels[where]], dim=1)
                self._similarity[layer, part], nearest = both.topk(k, dim=1)
                self._label[layer, part] = theirs.gather(1, nearest)

    def right(self, temperature: float, classes: int, rows: int) -> Tensor:
        """How many queries are right in every layer, top-1 and top-5: float64 [2, L]."""
        layers, images, _ = self._similarity.shape
        right = torch.zeros(2, layers, dtype=torch.float64)
        for part in _ranges(images, rows):
            truth = self._features.labels[self._chosen[part]].to(self._label.device)[:, None]
            for layer in range(layers):
                votes = _votes(self._similarity[layer, part], self._label[layer, part], temperature, classes)
                hits = votes.topk(min(TOP, classes), dim=1).indices == truth
                right[0, layer] += hits[:, 0].sum().item()
                right[1, layer] += hits.any(1).sum().item()
        return right


def _votes(similarity: Tensor, labels: Tensor, temperature: float, classes: int) -> Tensor:
    """Similarities and classes of neighbours [B, k] → votes [B, C]; the weight of the nearest is 1."""
    weights = ((similarity - similarity.amax(1, keepdim=True)) / temperature).exp()
    return weights.new_zeros(len(labels), classes).scatter_add_(1, labels, weights)


def _ranges(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
