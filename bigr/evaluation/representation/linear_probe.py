"""Linear probes: a linear classifier on the features of each layer of the frozen backbone (docs/method.md, section 5).

As in MAE: BatchNorm without affine parameters, then one linear map. The probes of all layers are trained independently,
those of a process together: each process has a share of the layers. Held-out training images choose the layer.

Shapes: n images, L layers, D width, C classes. Layer l, from 1, is the output of the backbone's block l.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigr.evaluation.protocol import EVALUATION_SEED
from bigr.evaluation.representation.features import Features
from bigr.runtime.distributed import my_range, of_each, rank, together
from bigr.runtime.errors import BigrError
from bigr.runtime.progress import Progress
from bigr.runtime.seeds import generator
from bigr.runtime.transfer import to_device

TOP = 5
"""The k of top-k accuracy besides top-1; all classes if there are fewer."""

_INIT_STD = 0.01  # MAE's


@dataclass(frozen=True)
class LayerAccuracies:
    """Accuracies in [0, 1] of layers 1 to L: on the validation split, and top-1 on the held-out training images."""

    top1: list[float]
    top5: list[float]
    selection: list[float]

    @property
    def best(self) -> int:
        """The layer, from 1, with the best accuracy on the held-out training images; of equal ones the first."""
        return max(range(len(self.selection)), key=self.selection.__getitem__) + 1


def selection(images: int, fraction: float) -> Tensor:
    """The training images, of `images`, that are held out to choose a layer: int64, ascending, at least one.

    fraction: in [0, 1]. The same for every model and `seed`. Raises `BigrError` if fewer than two images would be left.
    """
    count = max(1, round(images * fraction))
    if images - count < 2:
        raise BigrError(
            f"a training split of {images} images leaves fewer than two to train a linear probe on, besides those that "
            "choose its layer; add images"
        )
    order = torch.randperm(images, generator=generator(EVALUATION_SEED, "probe", "selection"))
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
    """Train on the features of one split, measure on those of another. One batch of features is in memory.

    Each process trains the probes of its share of the layers, and reads these alone.

    held_out: the training images, int64, that are not trained on and choose the layer (`selection`). AdamW, cosine
    schedule from `learning_rate` to 0, float32, `EVALUATION_SEED`: the same features give the same accuracies.
    """
    trained = torch.ones(len(train), dtype=torch.bool)
    trained[held_out] = False
    rest = trained.nonzero().flatten()
    batch_size = min(batch_size, len(rest))
    share = my_range(train.layers)
    mine = slice(share.start, share.stop)

    def probed() -> tuple[list[float], list[float], list[float]]:
        if not share:
            return [], [], []
        probes = _trained(train, rest, mine, classes, epochs, batch_size, learning_rate, weight_decay, device)
        top1, top5 = _accuracies(probes, val, mine, torch.arange(len(val)), batch_size, device)
        chosen_by, _ = _accuracies(probes, train, mine, held_out, batch_size, device)
        return top1, top5, chosen_by

    of_layers = zip(*of_each(together(probed)), strict=True)
    return LayerAccuracies(*([value for part in parts for value in part] for parts in of_layers))


def _trained(
    train: Features,
    images: Tensor,
    layers: slice,
    classes: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    device: torch.device,
) -> "_Probes":
    """The probes of some layers, in evaluation mode, trained on these images, int64 [n]."""
    probes = _Probes(train.layers, train.width, classes, layers).to(device)
    decays = [
        {"params": [probes.weight], "weight_decay": weight_decay},
        {"params": [probes.bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(decays, lr=learning_rate, fused=True)
    steps = len(images) // batch_size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    with Progress("probe", epochs * steps, enabled=rank() == 0) as progress:
        for features, labels in _batches(train, layers, _orders(images, batch_size, epochs), device):
            logits = probes(features)
            targets = labels[:, None].expand(-1, logits.shape[1])
            # The sum over layers gives each probe the gradient that it would have alone.
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / batch_size
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.advance()
    return probes.eval()


def _orders(images: Tensor, batch_size: int, epochs: int) -> Iterator[Tensor]:
    """The images int64 [B] of each batch; those of an epoch that do not fill a batch are left out."""
    for epoch in range(epochs):
        order = images[torch.randperm(len(images), generator=generator(EVALUATION_SEED, "probe", "order", epoch))]
        # Sorted within a batch, where the order has no effect, so that the disk is read in one direction.
        yield from (batch.sort().values for batch in order[: len(images) // batch_size * batch_size].split(batch_size))


def _batches(
    features: Features, layers: slice, chosen: Iterable[Tensor], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features [B, L, D] of some layers and labels [B] of each batch of images."""
    for images in chosen:
        yield features.rows(images, device, layers), to_device(features.labels[images], device)


class _Probes(nn.Module):
    """[B, L, D] → class logits [B, L, C]: a normalisation and a linear classifier for each of some of `layers`."""

    def __init__(self, layers: int, width: int, classes: int, some: slice) -> None:
        super().__init__()
        draws = generator(EVALUATION_SEED, "probe", "init")
        weight = torch.randn(layers, width, classes, generator=draws)[some] * _INIT_STD
        self.norm = nn.BatchNorm1d(len(weight) * width, eps=1e-6, affine=False)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(len(weight), classes))

    def forward(self, features: Tensor) -> Tensor:
        normal = self.norm(features.flatten(1)).view_as(features)
        return torch.einsum("bld,ldc->blc", normal, self.weight) + self.bias


@torch.no_grad()
def _accuracies(
    probes: "_Probes", features: Features, layers: slice, images: Tensor, batch_size: int, device: torch.device
) -> tuple[list[float], list[float]]:
    """Top-1 and top-5 accuracy of the probes of some layers on the images int64 [n]."""
    right = torch.zeros(2, len(probes.weight), dtype=torch.int64, device=device)
    for rows, labels in _batches(features, layers, images.split(batch_size), device):
        logits = probes(rows)
        hits = logits.topk(min(TOP, logits.shape[-1]), dim=-1).indices == labels[:, None, None]
        right += torch.stack([hits[..., 0].sum(0), hits.any(-1).sum(0)])
    top1, top5 = (right.cpu().double() / len(images)).tolist()
    return top1, top5
