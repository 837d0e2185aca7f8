"""The offline classifier: a small CNN for metrics without Inception's weights (docs/method.md, section 5).

It is part of the evaluation protocol: trained on the training split alone, with `EVALUATION_SEED`, so that it is the
same for every model. Its distances, `fd_classifier` and `kd_classifier`, do not compare with FID and KID of Inception.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigr.data.image_batches import ImageBatches
from bigr.evaluation.protocol import EVALUATION_SEED
from bigr.runtime.progress import Progress
from bigr.runtime.seeds import derive_seed, generator
from bigr.runtime.transfer import to_device

if TYPE_CHECKING:
    from bigr.config import EvaluationSettings

_SMALLEST = 4  # pixels of one side of the last feature map
_WARMUP = 0.1  # share of the steps during which the learning rate rises
_WEIGHT_DECAY = 1e-2


@dataclass(frozen=True)
class ClassifierConfig:
    """A classifier's shape.

    image_size: pixels of one side, at least 8; classes: C; channels: width after the first halving, doubled from the
    second on; features: F, the width of the layer that distances use.
    """

    image_size: int
    classes: int
    channels: int
    features: int


class Classifier(nn.Module):
    """Strided convolutions down to about 4×4, a fully connected layer of F features, a linear layer of C logits."""

    kind: ClassVar[str] = "classifier"
    config_class: ClassVar[type[ClassifierConfig]] = ClassifierConfig

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        halvings = max(1, round(math.log2(config.image_size / _SMALLEST)))
        widths = [3, config.channels, *[2 * config.channels] * (halvings - 1)]
        layers = [_convolution(a, b, stride=2) for a, b in pairwise(widths)]
        self.trunk = nn.Sequential(*layers, _convolution(widths[-1], widths[-1], stride=1))
        side = math.ceil(config.image_size / 2**halvings)
        self.neck = nn.Sequential(nn.Linear(widths[-1] * side**2, config.features), nn.ReLU())
        self.head = nn.Linear(config.features, config.classes)

    def features(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] → the features before the last layer, [B, F], not negative."""
        return self.neck(self.trunk(images * 2 - 1).flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] → class logits [B, C]."""
        return self.head(self.features(images))

    logits = forward

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Images uint8 [B, 3, H, W] → the most probable class of each, int64 [B] on the CPU."""
        return self.logits(images.to(self.head.weight.device).float() / 255).argmax(1).cpu()


def train_on_shards(
    section: "EvaluationSettings", shards: Path, workers: int, device: torch.device, *, seed: int = EVALUATION_SEED
) -> Classifier:
    """The classifier of the settings `evaluation`, trained on the training split of the folder `shards`.

    seed: another than the protocol's gives an independent classifier, whose metrics do not compare with the protocol's.
    """
    order = derive_seed(seed, "classifier", "order")
    stream = ImageBatches(
        shards, "train", section.classifier_batch_size, seed=order, horizontal_flip=False, workers=workers
    )
    index, width, features = stream.index, section.classifier_channels, section.classifier_features
    return train_classifier(
        stream.from_step(0),
        ClassifierConfig(index.image_size, len(index.classes), width, features),
        steps=section.classifier_steps,
        learning_rate=section.classifier_learning_rate,
        device=device,
        seed=seed,
    )


def train_classifier(
    batches: Iterable[tuple[Tensor, Tensor]],
    config: ClassifierConfig,
    *,
    steps: int,
    learning_rate: float,
    device: torch.device,
    seed: int = EVALUATION_SEED,
) -> Classifier:
    """Train a `Classifier` on `steps` batches; returned in evaluation mode, without gradients.

    batches: float images [B, 3, H, W] in [0, 1] and labels int64 [B]; learning_rate: the highest of a one-cycle
    schedule; seed: of the weights and the shifts. AdamW, float32; images are shifted by up to an eighth of their size.
    One thread: the same batches give the same classifier on the same machine, bit for bit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "classifier", "init"))
        model = Classifier(config)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=_WEIGHT_DECAY, fused=True)
    warmup = 2 * _WARMUP if _WARMUP * steps == 1 else _WARMUP  # torch divides by the warm-up's steps less one
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=warmup)
    with one_thread(), Progress("classifier", steps) as progress:
        for step, (images, labels) in zip(range(steps), batches, strict=False):
            moved = shifted(to_device(images, device), generator(seed, "classifier", "shift", step))
            loss = F.cross_entropy(model(moved), to_device(labels, device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.advance()
    return model.eval().requires_grad_(False)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread within: the order of sums, and so every bit of them, is then the same every time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def shifted(images: Tensor, draws: torch.Generator) -> Tensor:
    """Each image [B, 3, H, W] shifted by an offset of its own of up to an eighth of its size, edges repeated."""
    batch, _, height, width = images.shape
    reach = max(1, height // 8)
    offset = torch.randint(-reach, reach + 1, (2, batch, 1), generator=draws)
    rows = to_device((torch.arange(height) + offset[0]).clamp(0, height - 1), images.device)
    columns = to_device((torch.arange(width) + offset[1]).clamp(0, width - 1), images.device)
    index = torch.arange(batch, device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return images[index, channel, rows[:, None, :, None], columns[:, None, None, :]]
