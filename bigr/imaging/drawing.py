"""How pictures are drawn: the options that every application shares, what an onlooker is told, batches, seeds.

Shapes: B images, g×g grid of N tokens, K bits.
"""

import difflib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.models.masked.generator import BiGR
from bigr.runtime.errors import BigrError
from bigr.runtime.seeds import derive_seed
from bigr.sampling.decode import batched, decoded
from bigr.sampling.editing import OnIteration
from bigr.sampling.unmask import Iteration, Sampling, check_finite

GREY = 160
"""The brightness of what is not decided yet, in a `Frame`."""

Label: TypeAlias = int | str | None
"""A class number, a class name, or None: no class."""


@dataclass(frozen=True)
class Frame:
    """What one unmasking iteration has come to.

    number, of: this iteration and how many there are in the whole call, from 1; pictures: one for each image that is
    being drawn, of the model's size, with grey where tokens are undecided; entropies: [g, g] each, the mean binary
    entropy in bits (0 to 1) of the tokens that were undecided before this iteration, NaN elsewhere.
    """

    number: int
    of: int
    pictures: list[Image.Image]
    entropies: list[NDArray[np.float32]]


OnStep: TypeAlias = Callable[[Frame], None]


class Options(TypedDict, total=False):
    """The keyword arguments that every application takes.

    seed: 0 or more, the same gives the same pictures; variants: pictures of each kind, by other draws; iterations,
    guidance_scale, diffusion_steps: of the sampler, in place of the model's own settings; on_step: called with a
    `Frame` after every iteration; an exception that it raises ends the call.
    """

    seed: int
    variants: int
    iterations: int | None
    guidance_scale: float | None
    diffusion_steps: int | None
    on_step: OnStep | None


@dataclass(frozen=True)
class SamplingOptions:
    """`Options`, with its defaults."""

    seed: int = 0
    variants: int = 1
    iterations: int | None = None
    guidance_scale: float | None = None
    diffusion_steps: int | None = None
    on_step: OnStep | None = None

    def seeds(self, count: int, *place: str | int) -> list[int]:
        """A seed for each of `count` pictures drawn at `place`."""
        return [derive_seed(self.seed, *place, index) for index in range(count)]

    def applied(self, sampling: Sampling, limits: dict[str, tuple[int, int]]) -> Sampling:
        """`sampling` with what these options set. Raises `BigrError` for what cannot be."""
        for name, (least, most) in {"seed": (0, 2**63 - 1), "variants": (1, 1024), **limits}.items():
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and least <= value <= most):
                raise BigrError(f"{name}: {value} cannot be; allowed: {least} to {most}")
        scale = self.guidance_scale
        if scale is not None and not (isinstance(scale, int | float) and 0 <= scale < math.inf):
            raise BigrError(f"guidance_scale: {scale} cannot be; allowed: 0 or more")
        given = {name: getattr(self, name) for name in ("iterations", "guidance_scale", "diffusion_steps")}
        return replace(sampling, **{name: value for name, value in given.items() if value is not None})


def limits(model: BiGR) -> dict[str, tuple[int, int]]:
    """The least and the most of what the sampler can be told: iterations, and diffusion_steps where there are any."""
    found = {"iterations": (1, model.config.grid**2)}
    if model.config.target != "direct":  # that one takes no steps
        found["diffusion_steps"] = (2, model.config.diffusion_steps)
    return found


def label_number(label: Label, classes: Sequence[str]) -> int:
    """The label as the model knows it: 0 to C − 1, or C for None. Raises `BigrError` for a class that there is not."""
    if label is None:
        return len(classes)
    if isinstance(label, str) and label in classes:
        return list(classes).index(label)
    text = str(label).strip()
    if text.isdecimal() and int(text) < len(classes):
        return int(text)
    within = [name for name in classes if len(text) > 1 and text.casefold() in name.casefold()]
    close = (within or difflib.get_close_matches(text, classes))[:3]
    known = f"did you mean {', '.join(close)}?" if close else f"the {len(classes)} classes: {_some(classes)}"
    raise BigrError(f"label: there is no class {text!r}; {known}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:11])}, …, {names[-1]}; or a number"


Draw: TypeAlias = Callable[[range, OnIteration | None], Tensor]
"""From places among the pictures of a call, and an onlooker, to their codes bool [B, N, K]."""


class Sampler:
    """The two networks, and how batches of pictures are drawn with them and shown meanwhile."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        network: BiGR,
        batch_size: int,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        check_finite(network)
        self.tokenizer, self.network, self.batch_size, self._autocast = tokenizer, network, batch_size, autocast

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.network.backbone.mask_tok.device

    def draw(self, count: int, draw: Draw, watch: "ProgressReporter") -> list[Image.Image]:
        """`count` pictures, batch by batch."""
        return [Image.fromarray(picture.numpy()) for picture in decoded(self.tokenizer, self.codes(count, draw, watch))]

    def codes(self, count: int, draw: Draw, watch: "ProgressReporter") -> Tensor:
        """Their codes, bool [count, N, K]."""
        parts = []
        for places in batched(count, self.batch_size):
            with self._autocast():
                parts.append(draw(places, watch.on_iteration(self)))
        return torch.cat(parts)

    def batches(self, count: int) -> int:
        """How many batches `count` pictures are."""
        return math.ceil(count / self.batch_size)

    def pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pictures of the model's size as float [n, 3, H, W] in [0, 1] on the device."""
        array = np.stack([np.asarray(picture) for picture in pictures])
        return torch.from_numpy(array).to(self.device).permute(0, 3, 1, 2).float() / 255

    @torch.no_grad()
    def encode(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pictures of the model's size as codes, bool [n, N, K], in float32."""
        return torch.cat([self.tokenizer.codes(self.pixels([picture])) for picture in pictures])


class ProgressReporter:
    """Counts the iterations of a call and shows each to the onlooker. of: how many there will be."""

    def __init__(self, on_step: OnStep | None, of: int) -> None:
        self._on_step, self._of, self._number = on_step, of, 0

    def on_iteration(self, sampler: Sampler) -> OnIteration | None:
        """What the sampler calls; None where nobody looks on."""
        return None if self._on_step is None else lambda done: self._show(sampler, done)

    def _show(self, sampler: Sampler, done: Iteration) -> None:
        self._number += 1
        grid = sampler.network.config.grid
        pictures = decoded(sampler.tokenizer, done.codes).numpy()  # [B, H, W, 3]
        patch = pictures.shape[1] // grid
        undecided = done.masked.cpu().numpy().reshape(-1, grid, grid).repeat(patch, 1).repeat(patch, 2)
        pictures[undecided] = GREY
        entropies = done.entropy.float().cpu().numpy().reshape(-1, grid, grid)
        assert self._on_step is not None  # as on_iteration has it
        frame = Frame(self._number, self._of, [Image.fromarray(picture) for picture in pictures], list(entropies))
        self._on_step(frame)
