"""What the caller of an application sees after each iteration: the images so far, and the entropies of their tokens.

Shapes: B images, g×g grid of N tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.sampling.decode import decoded
from bigr.sampling.unmask import Iteration

GREY = 160
"""The brightness of undecided tokens, in a `Frame`."""


@dataclass(frozen=True)
class Frame:
    """The state after one unmasking iteration.

    number, of: this iteration and how many there are in the whole call, from 1; pictures: one for each image that is
    being drawn, of the model's size, with grey where tokens are undecided; entropies: [g, g] each, the mean binary
    entropy in bits (0 to 1) of the tokens that were undecided before this iteration, NaN elsewhere.
    """

    number: int
    of: int
    pictures: Sequence[Image.Image]
    entropies: Sequence[NDArray[np.float32]]


def progress_reporter(tokenizer: Tokenizer, on_step: Callable[[Frame], None], of: int) -> Callable[[Iteration], None]:
    """What the sampler calls after each of a call's `of` iterations: it calls `on_step` with a `Frame`.

    A picture is decoded when it is first read: a caller that only counts iterations costs nothing, and one that reads
    a single picture of each frame costs little.
    """
    numbers = count(1)

    def report(done: Iteration) -> None:
        drawn = len(done.codes)
        pictures = _Lazy(drawn, lambda some: pictures_of(tokenizer, done, some))
        maps = _Lazy(drawn, lambda some: entropies_of(done)[some])
        on_step(Frame(next(numbers), of, pictures, maps))

    return report


def pictures_of(tokenizer: Tokenizer, done: Iteration, some: slice = slice(None)) -> list[Image.Image]:
    """The images of an iteration, or some of them, grey where tokens are masked."""
    pixels = decoded(tokenizer, done.codes[some]).numpy()  # [B, H, W, 3]
    grid = tokenizer.grid
    patch = pixels.shape[1] // grid
    pixels[done.masked[some].cpu().numpy().reshape(-1, grid, grid).repeat(patch, 1).repeat(patch, 2)] = GREY
    return [Image.fromarray(picture) for picture in pixels]


def entropies_of(done: Iteration) -> list[NDArray[np.float32]]:
    """The entropies of an iteration, [g, g] for each image."""
    entropy = done.entropy.float().cpu().numpy()
    side = round(entropy.shape[1] ** 0.5)
    return list(entropy.reshape(-1, side, side))


class _Lazy(Sequence[Any]):
    """`count` items, made when they are read: one alone where it is asked for, else all of them together."""

    def __init__(self, count: int, make: Callable[[slice], list[Any]]) -> None:
        self._count, self._make = count, make
        self._made: dict[int, Any] = {}

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return list(self)[place]
        place = range(self._count)[place]
        if place not in self._made:
            self._made[place] = self._make(slice(place, place + 1))[0]
        return self._made[place]

    def __iter__(self) -> Iterator[Any]:
        if len(self._made) < self._count:
            self._made = dict(enumerate(self._make(slice(None))))
        return iter([self._made[place] for place in range(self._count)])

    def __len__(self) -> int:
        return self._count
