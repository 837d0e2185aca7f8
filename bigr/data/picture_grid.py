"""Grids of images as PNG files."""

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from bigr.models.autoencoder.tokenizer import to_uint8
from bigr.runtime.files import atomic_path

GAP = 1  # pixels between two images, before enlarging
SMALLEST_SIDE = 48  # an image smaller than this is enlarged by a whole factor, so that a person can see it


def pairs(above: Tensor, below: Tensor) -> Tensor:
    """Images [n, 3, H, W] and their counterparts → [n, 3, 2H + 1, W], each above its counterpart."""
    gap = torch.ones_like(above[:, :, :GAP])
    return torch.cat([above, gap, below], dim=2)


def save_grid(path: Path, images: Tensor, columns: int) -> None:
    """Write images [n, 3, H, W] (floats in [0, 1], or uint8) as one PNG, row by row, on white."""
    images = images.detach().cpu()
    if images.dtype != torch.uint8:
        images = to_uint8(images)
    count, _, height, width = images.shape
    rows = math.ceil(count / columns)
    grid = torch.full((3, rows * (height + GAP) + GAP, columns * (width + GAP) + GAP), 255, dtype=torch.uint8)
    for i, image in enumerate(images):
        top, left = GAP + i // columns * (height + GAP), GAP + i % columns * (width + GAP)
        grid[:, top : top + height, left : left + width] = image
    picture = Image.fromarray(grid.permute(1, 2, 0).numpy())
    if (factor := math.ceil(SMALLEST_SIDE / width)) > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    with atomic_path(path) as temporary:
        picture.save(temporary)
