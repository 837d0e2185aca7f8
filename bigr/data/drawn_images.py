"""Drawn images on disk, part by part: several processes write them, and the whole set is read in order, part by part.

A part is a safetensors file, `images` uint8 [n, H, W, 3], whose name says which images it holds. How the images are
divided into parts does not matter, so that a run with another number of processes continues with the parts that are
there.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from bigr.runtime.files import write_tensors

_READ_TOGETHER = 64
"""Images that are read at a time."""


class DrawnImages:
    """The images 0..count in `folder`."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count

    def missing(self) -> list[range]:
        """The images that no part holds, as ranges in order."""
        found, start = [], 0
        for part in self._parts():
            if part.start > start:
                found.append(range(start, part.start))
            start = part.stop
        return [*found, range(start, self.count)] if start < self.count else found

    def write(self, numbers: range, images: Tensor) -> None:
        """Write the images of these consecutive numbers, uint8 [n, H, W, 3], atomically."""
        write_tensors(self._path(numbers), {"images": images})

    def blocks(self, numbers: range) -> Iterator[np.ndarray]:
        """Images of consecutive numbers in order, uint8 [n, H, W, 3], a few at a time. None of them may be missing."""
        for part in self._parts():
            first, last = max(part.start, numbers.start) - part.start, min(part.stop, numbers.stop) - part.start
            if first >= last:
                continue
            with safe_open(self._path(part), "pt") as file:
                stored = file.get_slice("images")
                for start in range(first, last, _READ_TOGETHER):
                    yield stored[start : min(start + _READ_TOGETHER, last)].numpy()

    def images(self, numbers: Sequence[int]) -> Tensor:
        """Some images, uint8 [n, H, W, 3]."""
        parts, found = self._parts(), []
        for number in numbers:
            part = next(part for part in parts if number in part)
            with safe_open(self._path(part), "pt") as file:
                found.append(file.get_slice("images")[number - part.start : number - part.start + 1])
        return torch.cat(found)

    def _parts(self) -> list[range]:
        ends = (path.stem.split("-") for path in self.folder.glob("*.safetensors") if not path.name.startswith("."))
        return sorted((range(int(first), int(last) + 1) for first, last in ends), key=lambda part: part.start)

    def _path(self, numbers: range) -> Path:
        return self.folder / f"{numbers.start:08d}-{numbers.stop - 1:08d}.safetensors"


def divided(missing: Sequence[range], share: int, of: int, size: int) -> Iterator[range]:
    """Share number `share` of `of` of these numbers, in ranges of at most `size`: the shares differ by one at most."""
    total = sum(map(len, missing))
    first, last = total * share // of, total * (share + 1) // of
    passed = 0
    for one in missing:
        mine = one[max(0, first - passed) : max(0, last - passed)]
        passed += len(one)
        for start in range(0, len(mine), size):
            yield mine[start : start + size]
