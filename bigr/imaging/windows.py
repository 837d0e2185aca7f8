"""Square windows on an image of any shape: the model's images are square.

A window is as wide as the image's short side and covers the mask. A mask longer than that is painted window by window;
each window contains what the ones before it have painted.
"""

import math
from dataclasses import dataclass

import numpy as np

from bigr.imaging.pictures import Mask

OVERLAP = 0.25
"""The part of a window's side that two neighbouring windows share at least."""


@dataclass(frozen=True)
class Window:
    """A square of an image, in its pixels."""

    left: int
    top: int
    side: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns."""
        return slice(self.top, self.top + self.side), slice(self.left, self.left + self.side)


def windows(mask: Mask) -> list[Window]:
    """The windows that cover a mask bool [H, W], in the order of painting.

    First the one with most known pixels; from there outwards, so that each has painted or known pixels beside it.
    """
    height, width = mask.shape
    side, wide = min(height, width), width >= height
    marked = np.flatnonzero(mask.any(axis=0 if wide else 1))
    found = [
        Window(start, 0, side) if wide else Window(0, start, side)
        for start in _starts(int(marked[0]), int(marked[-1]) + 1, side, max(height, width))
    ]
    known = [int((~mask[window.slices]).sum()) for window in found]
    first = known.index(max(known))
    return [found[place] for place in sorted(range(len(found)), key=lambda place: abs(place - first))]


def _starts(begin: int, end: int, side: int, length: int) -> list[int]:
    """Where windows of `side` start along an image of `length` whose mask reaches from `begin` to `end`.

    A window reaches `OVERLAP` of its side beyond the mask, as far as the image does: these pixels decide what fits.
    """
    beside = math.ceil(side * OVERLAP)
    if end - begin > side - beside:
        begin, end = max(begin - beside, 0), min(end + beside, length)
    if end - begin <= side:
        return [min(max((begin + end - side) // 2, 0), length - side)]
    step = side * (1 - OVERLAP)
    count = math.ceil((end - begin - side) / step) + 1
    return [round(begin + place * (end - begin - side) / (count - 1)) for place in range(count)]


def scaled_mask(mask: Mask, size: int) -> Mask:
    """A square mask [S, S] at `size`×`size`: a pixel is marked where any pixel that falls on it is.

    Where it is enlarged, a pixel is marked where the one that it falls on is.
    """
    side = len(mask)
    if size >= side:
        places = np.arange(size) * side // size
        return mask[np.ix_(places, places)]
    rows, columns = np.nonzero(mask)
    found = np.zeros((size, size), dtype=bool)
    found[rows * size // side, columns * size // side] = True
    return found
