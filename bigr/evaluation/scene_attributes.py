"""How often images of scenes show what their captions say: shapes, colours, sizes, how many, and where.

A small network reads what is in each cell of a scene (`bigr.data.embedded.scenes`). It learns on scenes of its own, of
all pairs of colour and shape, and is tested on others before it judges. Every attribute is exact: what is counted is
the share of images in which all of it is right, as GenEval counts (arXiv 2310.11513).
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise, product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigr.data.embedded.scenes import (
    CELLS,
    COLOURS,
    SHAPES,
    SIZES,
    Description,
    Placed,
    Thing,
    described,
    placed_scenes,
    stands,
)
from bigr.data.images import to_tensor
from bigr.evaluation.protocol import EVALUATION_SEED
from bigr.runtime.progress import Progress
from bigr.runtime.seeds import derive_seed
from bigr.runtime.transfer import to_device

THINGS = [Thing(*attributes) for attributes in product(SHAPES, COLOURS, SIZES)]
"""What a cell may hold; the network's class 0 is nothing, class i is THINGS[i − 1]."""
_NUMBERS = {thing: number for number, thing in enumerate(THINGS, start=1)}
_TESTED_ON, _BATCH = 1_000, 64
_RATE = 1e-2


class SceneReader(nn.Module):
    """Images [B, 3, H, W] in [0, 1] → logits of what each cell holds, [B, 1 + things, CELLS, CELLS]."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 48, 64)
        layers: list[nn.Module] = []
        for place, (before, after) in enumerate(pairwise(widths)):
            stride = 2 if place == 1 else 1
            layers += [nn.Conv2d(before, after, 3, stride, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Conv2d(2 * widths[-1], 128, 1), nn.ReLU(), nn.Conv2d(128, 1 + len(THINGS), 1))

    def forward(self, images: Tensor) -> Tensor:
        features = self.convolutions(1 - images)  # the ground is pale: nothing is near 0
        pooled = [F.adaptive_avg_pool2d(features, CELLS), F.adaptive_max_pool2d(features, CELLS)]
        return self.head(torch.cat(pooled, dim=1))

    @torch.no_grad()
    def read(self, images: Tensor, batch_size: int) -> list[Placed]:
        """What is in each image, uint8 [n, 3, H, W] on any device."""
        device = next(self.parameters()).device
        found: list[Placed] = []
        for batch in images.split(batch_size):
            for numbers in self(to_device(batch, device).float() / 255).argmax(1).tolist():
                cells = ((row, column) for row in range(CELLS) for column in range(CELLS))
                found.append({(r, c): THINGS[number - 1] for r, c in cells if (number := numbers[r][c])})
        return found


def train_reader(image_size: int, device: torch.device, *, steps: int, scenes: int) -> tuple[SceneReader, float]:
    """A reader of scenes of this size, and the share of other scenes that it reads without any error.

    steps: of training; scenes: how many it learns from.
    """
    images, cells = _scenes(scenes, image_size, "train")
    torch.manual_seed(derive_seed(EVALUATION_SEED, "scene reader"))
    reader = SceneReader().to(device)
    optimiser = torch.optim.AdamW(reader.parameters(), lr=_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _RATE, steps)
    draws = torch.Generator().manual_seed(derive_seed(EVALUATION_SEED, "scene reader", "batches"))
    with Progress("scene reader", steps) as progress:
        for _ in range(steps):
            mine = torch.randint(len(images), (_BATCH,), generator=draws)
            batch = to_device(images[mine], device).float() / 255
            batch = (batch + 0.02 * torch.randn_like(batch)).clamp(0, 1)  # drawn images are not as clean
            loss = F.cross_entropy(reader(batch), to_device(cells[mine], device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            progress.advance()
    reader.eval()
    images, cells = _scenes(_TESTED_ON, image_size, "test")
    right = [_cells(found) == truth for found, truth in zip(reader.read(images, _BATCH), cells.tolist(), strict=True)]
    return reader, sum(right) / len(right)


def _scenes(count: int, image_size: int, split: str) -> tuple[Tensor, Tensor]:
    """Images uint8 [n, 3, H, W], and what each cell holds, int64 [n, CELLS, CELLS]."""
    pairs = list(placed_scenes(count, image_size, derive_seed(EVALUATION_SEED, "scene reader", split)))
    return torch.stack([to_tensor(image) for image, _ in pairs]), torch.tensor([_cells(where) for _, where in pairs])


def _cells(where: Placed) -> list[list[int]]:
    return [[_NUMBERS[where[r, c]] if (r, c) in where else 0 for c in range(CELLS)] for r in range(CELLS)]


def judged(asked: Description, shown: Placed) -> dict[str, bool]:
    """Whether an image shows what its caption says: object, colour, size, count, position (if the caption has a
    relation), and all of it."""
    things = list(shown.values())
    found = {
        name: Counter(getattr(thing, attribute) for thing in things)
        == Counter(getattr(thing, attribute) for thing in asked.things)
        for name, attribute in (("object", "shape"), ("colour", "colour"), ("size", "size"))
    }
    found["count"] = len(things) == len(asked.things)
    if asked.relation is not None:
        firsts, seconds = ([cell for cell, thing in shown.items() if thing == one] for one in asked.things)
        found["position"] = any(stands(asked.relation, a, b) for a, b in product(firsts, seconds))
    found["all"] = Counter(things) == Counter(asked.things) and found.get("position", True)
    return found


def attribute_metrics(texts: Sequence[str], shown: Sequence[Placed]) -> dict[str, float]:
    """The share of images that are right in each attribute; `all` also apart for captions with a held-out pair of
    colour and shape (`held_out_all`) and without (`seen_all`). Texts that are no captions of scenes are left out.
    """
    verdicts: dict[str, list[bool]] = {}
    for text, found in zip(texts, shown, strict=True):
        if (asked := described(text)) is None:
            continue
        verdict = judged(asked, found)
        verdict["held_out_all" if asked.held_out else "seen_all"] = verdict["all"]
        for name, right in verdict.items():
            verdicts.setdefault(name, []).append(right)
    return {name: sum(rights) / len(rights) for name, rights in verdicts.items()}
