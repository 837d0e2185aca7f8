"""What draws the images of `ImageModel.inpaint` and `enrich`, of n images at once, each with its seed.

Inpainting paints square windows of images of any size, as the model sees them, and blends them in.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bigr.data.images import center_crop
from bigr.imaging.blend import Blend, blended
from bigr.imaging.pictures import Mask
from bigr.imaging.sampler import Sampler
from bigr.imaging.windows import Window, scaled_mask, windows
from bigr.runtime.errors import BigrError
from bigr.runtime.transfer import to_device
from bigr.sampling.editing import OnIteration, enrich_codes, in_proportion, inpaint_codes, unknown_tokens
from bigr.sampling.unmask import Sampling, working_iterations

MAX_SIDE = 30_000
"""Pixels along one side of an image with margins; longer ones are refused."""

_MAX_PIXELS = 500_000_000
"""Pixels of an image with margins; larger ones are refused."""

MAX_WINDOWS = 256
"""Windows that one image is painted in; a longer mask on a narrower image is refused."""


@dataclass(frozen=True)
class Part:
    """A window of an image; mask: what is painted in it, bool [S, S]; unknown: the tokens of that, bool [N]."""

    window: Window
    mask: Mask
    unknown: Tensor

    def iterations(self, sampling: Sampling) -> int:
        """How many iterations painting it takes."""
        count = int(self.unknown.sum())
        return working_iterations(in_proportion(sampling, count, len(self.unknown)), count)


def parts_of(mask: Mask, size: int, grid: int) -> list[Part]:
    """The windows in which a mask is painted, in order; each pixel of the mask is in one part.

    size: the side of the model's images; grid: g. Raises `BigrError` where there are too many windows.
    """
    places = windows(mask)
    if len(places) > MAX_WINDOWS:
        raise BigrError(
            f"mask: painting it takes {len(places):,} squares as wide as the image's short side; at most "
            f"{MAX_WINDOWS} are painted: mark less, or give a wider image"
        )
    left, parts = mask.copy(), []
    for window in places:
        part = left[window.slices].copy()
        left[window.slices] = False
        if part.any():
            pixels = torch.from_numpy(scaled_mask(part, size)).unsqueeze(0)
            parts.append(Part(window, part, unknown_tokens(pixels, grid)[0]))
    return parts


def paint(
    sampler: Sampler,
    images: Sequence[NDArray[np.uint8]],
    parts: Sequence[Part],
    labels: Tensor,
    sampling: Sampling,
    seeds: Sequence[int],
    *,
    blend: Blend,
    feather: float,
    on_iteration: OnIteration | None = None,
) -> None:
    """Paint a part of each of n images, in place.

    parts, seeds, labels (int64 [n]): one for each image; feather: the seam's width in tokens
    (`bigr.imaging.blend.blended`).
    """
    size = sampler.tokenizer.config.image_size
    views = [image[part.window.slices] for image, part in zip(images, parts, strict=True)]
    codes = sampler.encode([center_crop(Image.fromarray(view), size) for view in views])
    unknown = to_device(torch.stack([part.unknown for part in parts]), sampler.device)
    given = codes, unknown, labels
    drawn = sampler.draw(inpaint_codes, *given, sampling=sampling, seeds=seeds, on_iteration=on_iteration)
    for view, part, new in zip(views, parts, drawn, strict=True):
        side = part.window.side
        large = np.asarray(new.resize((side, side), Image.Resampling.BICUBIC))
        view[...] = blended(view, large, part.mask, blend, feather * side / sampler.network.config.grid)


def enlarge(
    sampler: Sampler,
    small: Sequence[Image.Image],
    labels: Tensor,
    sampling: Sampling,
    seeds: Sequence[int],
    *,
    rounds: int,
    on_iteration: OnIteration | None = None,
) -> list[Image.Image]:
    """n small square images at the model's size, their detail drawn; labels: int64 [n]; seeds: one for each image."""
    size = sampler.tokenizer.config.image_size
    codes = sampler.encode([image.resize((size, size), Image.Resampling.BICUBIC) for image in small])
    return sampler.draw(
        enrich_codes, codes, labels, sampling=sampling, seeds=seeds, rounds=rounds, on_iteration=on_iteration
    )


def with_margins(image: Image.Image, margins: Sequence[int]) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """The image amid margins (left, top, right, bottom; pixels) that continue its edge, and the box in which it stands.

    Raises `BigrError` where a margin is negative, or the result would be too large.
    """
    if any(margin < 0 for margin in margins):
        raise BigrError(f"margins must be 0 or more pixels (left, top, right, bottom), got {tuple(margins)}")
    left, top, right, bottom = margins
    width, height = image.width + left + right, image.height + top + bottom
    if max(width, height) > MAX_SIDE or width * height > _MAX_PIXELS:
        raise BigrError(
            f"margins must give an image of at most {MAX_SIDE:,} pixels along a side and {_MAX_PIXELS:,} in all, got "
            f"{width}×{height}"
        )
    grown = np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge")
    return Image.fromarray(grown), (left, top, left + image.width, top + image.height)
