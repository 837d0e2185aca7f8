"""The linear probe: what a linear classifier can read from each layer of the frozen backbone (METHOD section 5).

As in MAE: BatchNorm without affine parameters, then one linear map, on the token average of the residual stream. The
probes of all layers are trained at once, on the same batches; none sees another.

Shapes: n images, L layers, D width, C classes. Layer l is what the backbone's block l, counted from 1, hands on.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigr.errors import BigrError
from bigr.evaluation.classifier import INSTRUMENT_SEED
from bigr.evaluation.features import Features
from bigr.progress import Progress
from bigr.seeds import generator

TOP = 5
"""The k of top-k accuracy beside top-1; all classes where there are fewer."""

_INIT_STD = 0.01  # MAE's


@dataclass(frozen=True)
class LayerAccuracies:
    """Accuracies on the validation split, in [0, 1], for layers 1 to L; `best` is the layer of the highest top-1."""

    top1: list[float]
    top5: list[float]

    @property
    def best(self) -> int:
        """The number of the best layer, counted from 1."""
        return max(range(len(self.top1)), key=self.top1.__getitem__) + 1


def linear_probe(
    train: Features,
    val: Features,
    *,
    classes: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    device: torch.device,
) -> LayerAccuracies:
    """Train on the features of one split, and measure on another's. In memory is a batch of features.

    AdamW, learning rate on a cosine to 0, float32. Draws from a seed of its own: the same features give the same
    accuracies. Raises `BigrError` for fewer than two training images, which have no variance.
    """
    if len(train) < 2:
        raise BigrError("the linear probe needs two training images or more; add some")
    batch_size = min(batch_size, len(train))
    probes = _Probes(train.layers, train.width, classes).to(device)
    decays = [
        {"params": [probes.weight], "weight_decay": weight_decay},
        {"params": [probes.bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(decays, lr=learning_rate, fused=True)
    steps = len(train) // batch_size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    with Progress("probe", epochs * steps) as progress:
        for features, labels in _batches(train, _orders(len(train), batch_size, epochs), device):
            logits = probes(features)
            targets = labels[:, None].expand(-1, logits.shape[1])
            # The sum over layers, so that each probe has the gradient that it would have alone.
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / batch_size
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.advance()
    return _accuracies(probes.eval(), val, batch_size, device)


def _orders(images: int, batch_size: int, epochs: int) -> Iterator[Tensor]:
    """The images of each batch, int64 [B]; what does not fill one is left out of its epoch."""
    for epoch in range(epochs):
        order = torch.randperm(images, generator=generator(INSTRUMENT_SEED, "probe", "order", epoch))
        # Sorted within a batch, where the order changes nothing, so that a disk is read in one direction.
        yield from (chosen.sort().values for chosen in order[: images // batch_size * batch_size].split(batch_size))


def _batches(features: Features, chosen: Iterable[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Features [B, L, D] and labels [B] of each batch of images."""
    for images in chosen:
        yield features.rows(images, device), features.labels[images].to(device)


class _Probes(nn.Module):
    """[B, L, D] → class logits [B, L, C]: for each layer its own normalisation and linear classifier."""

    def __init__(self, layers: int, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(layers * width, eps=1e-6, affine=False)
        draws = generator(INSTRUMENT_SEED, "probe", "init")
        self.weight = nn.Parameter(torch.randn(layers, width, classes, generator=draws) * _INIT_STD)
        self.bias = nn.Parameter(torch.zeros(layers, classes))

    def forward(self, features: Tensor) -> Tensor:
        normal = self.norm(features.flatten(1)).view_as(features)
        return torch.einsum("bld,ldc->blc", normal, self.weight) + self.bias


@torch.no_grad()
def _accuracies(probes: nn.Module, val: Features, batch_size: int, device: torch.device) -> LayerAccuracies:
    right = torch.zeros(2, val.layers, dtype=torch.int64, device=device)
    for features, labels in _batches(val, torch.arange(len(val)).split(batch_size), device):
        logits = probes(features)
        hits = logits.topk(min(TOP, logits.shape[-1]), dim=-1).indices == labels[:, None, None]
        right += torch.stack([hits[..., 0].sum(0), hits.any(-1).sum(0)])
    top1, top5 = (right.cpu().double() / len(val)).tolist()
    return LayerAccuracies(top1, top5)
