"""Whether samples are copies: how far each is from its nearest training image, beside held-out images."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from bigr.data.picture_grid import pairs, save_grid
from bigr.evaluation.imagesets.image_stream import ImageStream
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


def nearest(images: Tensor, training: ImageStream, device: torch.device) -> Neighbours:
    """The nearest training image of images uint8 [n, 3, H, W], by pixels. Reads the training images once."""
    mine = _small(images, device)
    best = torch.full((len(mine),), torch.inf, device=device)
    place = torch.zeros(len(mine), dtype=torch.int64, device=device)
    start = 0
    for batch in training.batches(_BLOCK):
        theirs = _small(batch, device)
        squared = (mine**2).sum(1)[:, None] + (theirs**2).sum(1) - 2 * mine @ theirs.T
        least, where = squared.min(1)
        closer = least < best
        best, place = torch.where(closer, least, best), torch.where(closer, where + start, place)
        start += len(batch)
    return Neighbours((best.clamp(min=0) / mine.shape[1]).sqrt().cpu(), place.cpu())


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


def draw_neighbours(path: Path, samples: Tensor, found: Neighbours, training: ImageStream) -> None:
    """Write some samples, spread over all, each above its nearest training image."""
    chosen = torch.linspace(0, len(samples) - 1, min(_SHOWN, len(samples))).long()
    wanted = {int(found.place[number]): number for number in chosen.tolist()}
    theirs: dict[int, Tensor] = {}
    start = 0
    for batch in training.batches(_BLOCK):
        for place in wanted:
            if start <= place < start + len(batch):
                theirs[place] = batch[place - start].clone()
        start += len(batch)
    above = samples[chosen]
    below = torch.stack([theirs[int(found.place[number])] for number in chosen.tolist()])
    save_grid(path, pairs(above, below), min(10, len(chosen)))
