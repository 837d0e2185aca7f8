"""The offline classifier: a small CNN that measures images where Inception's weights are not at hand.

It is an instrument, so it is the same for every model that it measures: trained on the training split alone, under a
seed of its own that the project's `seed` does not touch. Two runs that differ in `seed` only have comparable
distances. Its distances are reported as `fd_classifier` and `kd_classifier`, and are not to be compared with FID and
KID over Inception. Knows no files.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigr.runtime.progress import Progress
from bigr.runtime.seeds import derive_seed, generator
from bigr.runtime.transfer import to_device

INSTRUMENT_SEED = 20240914
"""Seeds everything random in the evaluation: the same for every run, so that figures of different runs compare."""

_SMALLEST = 4  # pixels along one side of the last feature map
_WARMUP = 0.1  # share of the steps in which the learning rate rises
_WEIGHT_DECAY = 1e-2


@dataclass(frozen=True)
class ClassifierConfig:
    """A classifier's shape.

    image_size: pixels of one side, at least 8; classes: C; channels: width after the first halving, doubled from the
    second on; features: F, the width of the layer that distances are measured in.
    """

    image_size: int
    classes: int
    channels: int
    features: int


class Classifier(nn.Module):
    """Strided convolutions down to about 4×4, one layer of F features over all of that, one linear layer."""

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
        """Images [B, 3, H, W] in [0, 1] → the layer before the last, [B, F], not negative."""
        return self.neck(self.trunk(images * 2 - 1).flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] → class logits [B, C]."""
        return self.head(self.features(images))

    logits = forward

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Images uint8 [B, 3, H, W] → the likeliest class of each, int64 [B] on the CPU."""
        return self.logits(images.to(self.head.weight.device).float() / 255).argmax(1).cpu()


def train_classifier(
    batches: Iterable[tuple[Tensor, Tensor]],
    config: ClassifierConfig,
    *,
    steps: int,
    learning_rate: float,
    device: torch.device,
) -> Classifier:
    """Train a `Classifier` for `steps` batches (float images [B, 3, H, W] in [0, 1], labels [B]); in evaluation mode.

    Images are shifted by up to an eighth of their size, so that the features do not hang on the place of a stroke.
    AdamW, one-cycle learning rate, float32. The same batches give the same classifier on the same machine, on a CPU
    however many threads it may use: sums in another order would end in another instrument, whose distances differ.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(INSTRUMENT_SEED, "classifier", "init"))
        model = Classifier(config)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=_WEIGHT_DECAY, fused=True)
    warmup = 2 * _WARMUP if _WARMUP * steps == 1 else _WARMUP  # torch divides by one step less than the warm-up has
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=warmup)
    with _one_thread(), Progress("classifier", steps) as progress:
        for step, (images, labels) in zip(range(steps), batches, strict=False):
            shifted = _shift(to_device(images, device), generator(INSTRUMENT_SEED, "classifier", "shift", step))
            loss = F.cross_entropy(model(shifted), to_device(labels, device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.advance()
    return model.eval().requires_grad_(False)


@contextmanager
def _one_thread() -> Iterator[None]:
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


def _shift(images: Tensor, draws: torch.Generator) -> Tensor:
    """Each image [B, 3, H, W] moved by its own offset of up to an eighth of its size, edges repeated."""
    batch, _, height, width = images.shape
    reach = max(1, height // 8)
    offset = torch.randint(-reach, reach + 1, (2, batch, 1), generator=draws)
    rows = to_device((torch.arange(height) + offset[0]).clamp(0, height - 1), images.device)
    columns = to_device((torch.arange(width) + offset[1]).clamp(0, width - 1), images.device)
    index = torch.arange(batch, device=images.device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
    return images[index, channel, rows[:, None, :, None], columns[:, None, None, :]]
