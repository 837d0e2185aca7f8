"""k nearest neighbours: what each layer's features tell of the class without any training (as in DINO).

Cosine similarity; each of the k nearest training images votes for its class with weight exp(similarity / temperature).
Computed block against block, so that neither split, nor the matrix of similarities, is ever whole in memory.

Shapes: n training images, m validation images, L layers, D width, C classes.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from bigr.evaluation.features import Features
from bigr.evaluation.probe import TOP, LayerAccuracies
from bigr.progress import Progress

_BLOCK_BYTES = 256 << 20
"""Of a block of either split, in all layers; and at most so much of similarities."""


def nearest_neighbours(
    train: Features,
    val: Features,
    *,
    classes: int,
    neighbours: int,
    temperature: float,
    device: torch.device,
    block_bytes: int = _BLOCK_BYTES,
) -> LayerAccuracies:
    """The accuracy on `val` of the vote of its `neighbours` nearest images of `train`, for every layer.

    All of `train` votes where it has fewer images. Memory: a few blocks, and 12·k·L bytes a validation image.
    """
    k = min(neighbours, len(train))
    rows = max(1, min(block_bytes // (4 * train.layers * train.width), math.isqrt(block_bytes // 4)))
    # The most similar so far: their similarity and class. Below every cosine, so that the first block replaces all.
    similarity = torch.full((train.layers, len(val), k), -torch.inf, device=device)
    label = torch.zeros(similarity.shape, dtype=torch.int64, device=device)
    with Progress("k-NN", len(train), unit="image") as progress:
        for known in _ranges(len(train), rows):
            block = F.normalize(train.rows(known, device), dim=2)
            labels = train.labels[known].to(device)
            for asked in _ranges(len(val), rows):
                queries = F.normalize(val.rows(asked, device), dim=2)
                for layer in range(train.layers):
                    best, where = (queries[:, layer] @ block[:, layer].T).topk(min(k, len(block)), dim=1)
                    both = torch.cat([similarity[layer, asked], best], dim=1)
                    theirs = torch.cat([label[layer, asked], labels[where]], dim=1)
                    similarity[layer, asked], chosen = both.topk(k, dim=1)
                    label[layer, asked] = theirs.gather(1, chosen)
            progress.advance(len(block))
    right = torch.zeros(2, train.layers, dtype=torch.float64)
    for asked in _ranges(len(val), rows):
        truth = val.labels[asked].to(device)[:, None]
        for layer in range(train.layers):
            votes = _votes(similarity[layer, asked], label[layer, asked], temperature, classes)
            hits = votes.topk(min(TOP, classes), dim=1).indices == truth
            right[0, layer] += hits[:, 0].sum().item()
            right[1, layer] += hits.any(1).sum().item()
    top1, top5 = (right / len(val)).tolist()
    return LayerAccuracies(top1, top5)


def _votes(similarity: Tensor, labels: Tensor, temperature: float, classes: int) -> Tensor:
    """Similarities and classes of neighbours [B, k] → votes for each class [B, C]; the nearest one's weight is 1."""
    weights = ((similarity - similarity.amax(1, keepdim=True)) / temperature).exp()
    return weights.new_zeros(len(labels), classes).scatter_add_(1, labels, weights)


def _ranges(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
