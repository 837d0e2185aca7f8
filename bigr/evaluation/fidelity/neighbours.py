"""Whether samples are copies: how far each is from its nearest training image, beside held-out images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bigr.data.picture_grid import pairs, save_grid
from bigr.evaluation.imagesets.image_stream import ImageStream
from bigr.runtime.distributed import my_range, of_each, together
from bigr.runtime.transfer import to_device

MEASURED = 500
"""Samples, and held-out images, at most."""
_SHOWN = 20
_SIDE = 32
"""Images are compared at this size at most: the mean of each block of pixels."""
_BLOCK = 2000


@dataclass(frozen=True)
class Neighbours:
    """The nearest training image of each image. distance: root mean square of the pixels' differences, in [0, 1],
    float [n]; place: its number in the training split, int64 [n].
    """

    distance: Tensor
    place: Tensor


def measured_places(samples: int, held_out: int) -> list[int]:
    """Which of so many samples are measured: as many as held-out images, `MEASURED` at most, evenly spread."""
    return torch.linspace(0, samples - 1, min(MEASURED, samples, held_out)).long().tolist()


def nearest(sets: Sequence[Tensor], training: ImageStream, device: torch.device) -> list[Neighbours]:
    """The nearest training images of sets of images uint8 [n, 3, H, W], by pixels.

    Each process searches its share of the training images, and reads them once.
    """
    small = [_small(images, device) for images in sets]
    share = my_range(len(training), _BLOCK)
    found = [_Closest.none(len(mine)) for mine in small]

    def search() -> None:
        start = share.start
        for batch in training.batches(_BLOCK, share):
            theirs = _small(batch, device)
            for number, mine in enumerate(small):
                squared = (mine**2).sum(1)[:, None] + (theirs**2).sum(1) - 2 * mine @ theirs.T
                least, where = squared.min(1)
                found[number] = found[number].or_closer(_Closest(least.cpu(), where.cpu() + start))
            start += len(batch)

    together(search)
    every = [reduce(_Closest.or_closer, of_all) for of_all in zip(*of_each(found), strict=True)]
    return [
        Neighbours((one.squared.clamp(min=0) / mine.shape[1]).sqrt(), one.place)
        for one, mine in zip(every, small, strict=True)
    ]


class _Closest(NamedTuple):
    """The nearest images so far: the squared distance and the place, [n] each, on the CPU."""

    squared: Tensor
    place: Tensor

    @classmethod
    def none(cls, count: int) -> "_Closest":
        return cls(torch.full((count,), torch.inf), torch.zeros(count, dtype=torch.int64))

    def or_closer(self, later: "_Closest") -> "_Closest":
        """The nearer of each; of equal ones these."""
        closer = later.squared < self.squared
        return _Closest(*(torch.where(closer, b, a) for a, b in zip(self, later, strict=True)))


def _small(images: Tensor, device: torch.device) -> Tensor:
    pixels = to_device(images, device).float() / 255
    if max(pixels.shape[2:]) > _SIDE:
        pixels = F.adaptive_avg_pool2d(pixels, _SIDE)
    return pixels.flatten(1)


def nearest_ratio(samples: Neighbours, held_out: Neighbours) -> float:
    """The median distance of samples to their nearest training images ÷ that of held-out images.

    Near 1: samples are as new as held-out images are. Near 0: they are copies.
    """
    return float(samples.distance.median() / held_out.distance.median().clamp(min=1e-9))


def draw_neighbours(
    path: Path, samples: ImageStream, places: Sequence[int], found: Neighbours, training: ImageStream
) -> None:
    """Write some samples, spread over all, each above its nearest training image.

    places: of the samples that were measured; found: their neighbours.
    """
    chosen = torch.linspace(0, len(places) - 1, min(_SHOWN, len(places))).long().tolist()
    above = samples.some([places[number] for number in chosen])
    below = training.some(found.place[chosen].tolist())
    save_grid(path, pairs(above, below), min(10, len(chosen)))
