"""What the caller of an application sees after each iteration: the images so far, and the entropies of their tokens.

Shapes: B images, g×g grid of N tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
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

    A frame is decoded when its pictures are first read: a caller that only counts iterations costs nothing.
    """
    numbers = count(1)

    def report(done: Iteration) -> None:
        pictures, maps = _Lazy(lambda: pictures_of(tokenizer, done)), _Lazy(lambda: entropies_of(done))
        on_step(Frame(next(numbers), of, pictures, maps))

    return report


def pictures_of(tokenizer: Tokenizer, done: Iteration) -> list[Image.Image]:
    """The images of an iteration, grey where tokens are masked."""
    pixels = decoded(tokenizer, done.codes).numpy()  # [B, H, W, 3]
    grid = tokenizer.grid
    patch = pixels.shape[1] // grid
    pixels[done.masked.cpu().numpy().reshape(-1, grid, grid).repeat(patch, 1).repeat(patch, 2)] = GREY
    return [Image.fromarray(picture) for picture in pixels]


def entropies_of(done: Iteration) -> list[NDArray[np.float32]]:
    """The entropies of an iteration, [g, g] for each image."""
    entropy = done.entropy.float().cpu().numpy()
    side = round(entropy.shape[1] ** 0.5)
    return list(entropy.reshape(-1, side, side))


class _Lazy(Sequence[Any]):
    def __init__(self, make: Callable[[], list[Any]]) -> None:
        self._make = make

    @cached_property
    def _items(self) -> list[Any]:
        return self._make()

    def __getitem__(self, place: Any) -> Any:
        return self._items[place]

    def __len__(self) -> int:
        return len(self._items)
