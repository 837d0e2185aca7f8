"""The linear probe: what a linear classifier can read from each layer of the frozen backbone (METHOD section 5).

As in MAE: BatchNorm without affine parameters, then one linear map, on the token average of the residual stream. The
probes of all layers are trained at once, on the same batches; none sees another.

Shapes: n images, L layers, D width, C classes. Layer l is what the backbone's block l, counted from 1, hands on.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigr.data.codes import CodesDataset
from bigr.evaluation.classifier import INSTRUMENT_SEED
from bigr.models.bigr import BiGR
from bigr.progress import Progress
from bigr.seeds import generator

_TOP = 5
_INIT_STD = 0.01  # MAE's


@dataclass(frozen=True)
class ProbeResult:
    """Accuracies on the validation split, in [0, 1], for layers 1 to L; `best` is the layer of the highest top-1."""

    top1: list[float]
    top5: list[float]

    @property
    def best(self) -> int:
        """The number of the best layer, counted from 1."""
        return max(range(len(self.top1)), key=self.top1.__getitem__) + 1


@torch.no_grad()
def layer_features(model: BiGR, codes: CodesDataset, count: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Token averages after every layer for the first `count` images: float32 [n, L, D], and labels [n].

    Unconditional, nothing masked, first view, in float32. Held in memory: 4·L·D bytes an image.
    """
    device = next(model.parameters()).device
    features, labels = [], []
    with Progress("features", count, unit="image") as progress:
        for indices in torch.arange(count).split(batch_size):
            bits, here = codes.batch(indices)
            averages = [block.float().mean(dim=1) for block in model.features(bits.to(device))]
            features.append(torch.stack(averages, dim=1).cpu())
            labels.append(here)
            progress.advance(len(indices))
    return torch.cat(features), torch.cat(labels)


def linear_probe(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    *,
    classes: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    device: torch.device,
) -> ProbeResult:
    """Train on features [n, L, D] and labels [n] of one split, and measure on another's.

    AdamW, learning rate on a cosine to 0. Draws from a seed of its own: the same features give the same accuracies.
    Top-5 is top-C where there are fewer than 5 classes.
    """
    features, labels = train
    batch_size = min(batch_size, len(features))
    probes = _Probes(features.shape[1], features.shape[2], classes).to(device)
    decays = [
        {"params": [probes.weight], "weight_decay": weight_decay},
        {"params": [probes.bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(decays, lr=learning_rate, fused=True)
    steps = len(features) // batch_size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    with Progress("probe", epochs, unit="epoch") as progress:
        for epoch in range(epochs):
            order = torch.randperm(len(features), generator=generator(INSTRUMENT_SEED, "probe", "order", epoch))
            for chosen in order[: steps * batch_size].split(batch_size):
                logits = probes(features[chosen].to(device))
                targets = labels[chosen].to(device)[:, None].expand(-1, logits.shape[1])
                # The sum over layers, so that each probe has the gradient that it would have alone.
                loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum") / batch_size
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
            progress.advance()
    return _accuracies(probes.eval(), *val, batch_size=batch_size, device=device)


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
    probes: nn.Module, features: Tensor, labels: Tensor, *, batch_size: int, device: torch.device
) -> ProbeResult:
    right1: Tensor | int = 0
    right5: Tensor | int = 0
    for batch, here in zip(features.split(batch_size), labels.split(batch_size), strict=True):
        logits = probes(batch.to(device))
        hits = logits.topk(min(_TOP, logits.shape[-1]), dim=-1).indices == here.to(device)[:, None, None]
        right1 = right1 + hits[..., 0].sum(0)
        right5 = right5 + hits.any(-1).sum(0)
    return ProbeResult(*((torch.as_tensor(right).double() / len(labels)).tolist() for right in (right1, right5)))
