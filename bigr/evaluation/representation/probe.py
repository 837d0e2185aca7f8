"""The linear probe: what a linear classifier reads from each layer of the frozen backbone (docs/method.md, section 5).

As in MAE: BatchNorm without affine parameters, then one linear map, on the token average of the residual stream. The
probes of all layers are trained at once, on the same batches; none sees another. A layer is chosen by training images
that the probes have not seen, so that its accuracy on the validation split is not the best of L draws.

Shapes: n images, L layers, D width, C classes. Layer l is what the backbone's block l, counted from 1, hands on.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigr.evaluation.fidelity.classifier import INSTRUMENT_SEED
from bigr.evaluation.representation.features import Features
from bigr.runtime.errors import BigrError
from bigr.runtime.progress import Progress
from bigr.runtime.seeds import generator
from bigr.runtime.transfer import to_device

TOP = 5
"""The k of top-k accuracy beside top-1; all classes where there are fewer."""

_INIT_STD = 0.01  # MAE's


@dataclass(frozen=True)
class LayerAccuracies:
    """Accuracies in [0, 1] for layers 1 to L: on the validation split, and top-1 on the held-out training images."""

    top1: list[float]
    top5: list[float]
    selection: list[float]

    @property
    def best(self) -> int:
        """The number of the layer that is best on the held-out training images, counted from 1; of equals the first."""
        return max(range(len(self.selection)), key=self.selection.__getitem__) + 1


def selection(images: int, fraction: float) -> Tensor:
    """The training images of `images` that are held out to choose a layer by: int64, ascending, one at least.

    The same for every model and every `seed`. Raises `BigrError` where fewer than two images would be left.
    """
    count = max(1, round(images * fraction))
    if images - count < 2:
        raise BigrError(
            f"a training split of {images} images leaves fewer than two to train a linear probe on, beside those that "
            "choose its layer; add some"
        )
    order = torch.randperm(images, generator=generator(INSTRUMENT_SEED, "probe", "selection"))
    return order[:count].sort().values


def linear_probe(
    train: Features,
    val: Features,
    *,
    held_out: Tensor,
    classes: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    device: torch.device,
) -> LayerAccuracies:
    """Train on the features of one split, and measure on another's. In memory is a batch of features.

    held_out: the training images, int64, that are not trained on and choose the layer (`selection`). AdamW, learning
    rate on a cosine to 0, float32. Draws from a seed of its own: the same features give the same accuracies.
    """
    trained = torch.ones(len(train), dtype=torch.bool)
    trained[held_out] = False
    rest = trained.nonzero().flatten()
    batch_size = min(batch_size, len(rest))
    probes = _Probes(train.layers, train.width, classes).to(device)
    decays = [
        {"params": [probes.weight], "weight_decay": weight_decay},
        {"params": [probes.bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(decays, lr=learning_rate, fused=True)
    steps = len(rest) // batch_size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    with Progress("probe", epochs * steps) as progress:
        for features, labels in _batches(train, _orders(rest, batch_size, epochs), device):
            logits = probes(features)
            targets = labels[:, None].expand(-1, logits.shape[1])
            # The sum over layers, so that each probe has the gradient that it would have alone.
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / batch_size
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.advance()
    probes.eval()
    top1, top5 = _accuracies(probes, val, torch.arange(len(val)), batch_size, device)
    chosen_by, _ = _accuracies(probes, train, held_out, batch_size, device)
    return LayerAccuracies(top1, top5, chosen_by)


def _orders(images: Tensor, batch_size: int, epochs: int) -> Iterator[Tensor]:
    """Of the images int64 [n] those of each batch, int64 [B]; what does not fill one is left out of its epoch."""
    for epoch in range(epochs):
        order = images[torch.randperm(len(images), generator=generator(INSTRUMENT_SEED, "probe", "order", epoch))]
        # Sorted within a batch, where the order changes nothing, so that a disk is read in one direction.
        yield from (
            chosen.sort().values for chosen in order[: len(images) // batch_size * batch_size].split(batch_size)
        )


def _batches(features: Features, chosen: Iterable[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Features [B, L, D] and labels [B] of each batch of images."""
    for images in chosen:
        yield features.rows(images, device), to_device(features.labels[images], device)


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
def _accuracies(
    probes: nn.Module, features: Features, images: Tensor, batch_size: int, device: torch.device
) -> tuple[list[float], list[float]]:
    """Top-1 and top-5 accuracy of every layer's probe on the images int64 [n]."""
    right = torch.zeros(2, features.layers, dtype=torch.int64, device=device)
    for rows, labels in _batches(features, images.split(batch_size), device):
        logits = probes(rows)
        hits = logits.topk(min(TOP, logits.shape[-1]), dim=-1).indices == labels[:, None, None]
        right += torch.stack([hits[..., 0].sum(0), hits.any(-1).sum(0)])
    top1, top5 = (right.cpu().double() / len(images)).tolist()
    return top1, top5
