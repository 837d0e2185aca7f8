"""The options that every application takes, and classes by name or number."""

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypedDict

from bigr.imaging.frames import Frame
from bigr.models.described import described
from bigr.models.masked.generator import BiGR
from bigr.runtime.errors import BigrError
from bigr.runtime.seeds import derive_seed
from bigr.sampling.unmask import Sampling

Label: TypeAlias = int | str | None
"""A class number, a class name, or None: no class."""

OnStep: TypeAlias = Callable[[Frame], None]


class Options(TypedDict, total=False):
    """The keyword arguments that every application takes.

    seed: 0 or more, the same seed gives the same images; variants: images of each kind, by other draws; preset: one of
    the model's `presets`, in place of its own settings of the sampler; iterations, guidance_scale, diffusion_steps (one
    number, or those of the first iteration and of the last): in place of the preset's or the model's own; on_step:
    called with a `Frame` after every iteration; an exception that it raises ends the call.
    """

    seed: int
    variants: int
    preset: str | None
    iterations: int | None
    guidance_scale: float | None
    diffusion_steps: int | Sequence[int] | None
    on_step: OnStep | None


@dataclass(frozen=True)
class Editing:
    """How to edit; the fields are those of params.yaml's section `editing`.

    guidance_scale, gumbel_temperature: of the sampler where a class is painted; feather: the seam's width, in tokens;
    enrich_guidance_scale, enrich_rounds: of enrichment.
    """

    guidance_scale: float
    gumbel_temperature: float
    feather: float
    enrich_guidance_scale: float
    enrich_rounds: int

    @classmethod
    def of(cls, section: object) -> "Editing":
        """What the section `editing` of params.yaml describes."""
        return described(cls, section)

    def painting(self, sampling: Sampling) -> Sampling:
        """`sampling` to paint a class beside known tokens: with constant guidance, which must outweigh them."""
        return replace(self._constant(sampling, self.guidance_scale), gumbel_temperature=self.gumbel_temperature)

    def enriching(self, sampling: Sampling) -> Sampling:
        """`sampling` for enrichment, with constant guidance."""
        return self._constant(sampling, self.enrich_guidance_scale)

    def _constant(self, sampling: Sampling, scale: float) -> Sampling:
        return replace(sampling, guidance_scale=scale, guidance_schedule="constant", guidance_start=0.0)


@dataclass(frozen=True)
class SamplingOptions:
    """`Options`, with its defaults."""

    seed: int = 0
    variants: int = 1
    preset: str | None = None
    iterations: int | None = None
    guidance_scale: float | None = None
    diffusion_steps: int | Sequence[int] | None = None
    on_step: OnStep | None = None

    def seeds(self, count: int, *place: str | int) -> list[int]:
        """A seed for each of `count` images drawn at `place`."""
        return [derive_seed(self.seed, *place, index) for index in range(count)]

    def applied(self, sampling: Sampling, limits: dict[str, tuple[int, int]]) -> Sampling:
        """`sampling` with what these options set. Raises `BigrError` for a value out of range."""
        steps = tuple(self.diffusion_steps) if isinstance(self.diffusion_steps, list) else self.diffusion_steps
        if isinstance(steps, tuple) and len(steps) != 2:
            raise BigrError(f"diffusion_steps must be one number, or the first and the last iteration's, got {steps}")
        check_whole("seed", self.seed, 0, 2**63 - 1)
        check_whole("variants", self.variants, 1, 1024)
        scale = self.guidance_scale
        if scale is not None and not (isinstance(scale, int | float) and 0 <= scale < math.inf):
            raise BigrError(f"guidance_scale must be a number, 0 or more, got {scale}")
        given: dict[str, Any] = {"iterations": self.iterations, "guidance_scale": scale, "diffusion_steps": steps}
        found = replace(sampling, **{name: value for name, value in given.items() if value is not None})
        check_limits(found, limits)
        return found


def check_limits(sampling: Sampling, limits: dict[str, tuple[int, int]]) -> None:
    """Raise `BigrError` where iterations or diffusion steps are not within `limits`."""
    for name, (least, most) in limits.items():
        value = getattr(sampling, name)
        for number in value if isinstance(value, tuple) else (value,):
            check_whole(name, number, least, most)


def check_whole(name: str, value: object, least: int, most: int) -> None:
    """Raise `BigrError` unless the argument `name` is a whole number from `least` to `most`."""
    if not (isinstance(value, int) and least <= value <= most):
        raise BigrError(f"{name} must be a whole number from {least} to {most}, got {value}")


def limits(model: BiGR) -> dict[str, tuple[int, int]]:
    """The range of each option of the sampler: iterations, and diffusion_steps where the transcoder takes any."""
    config = model.config
    found = {"iterations": (1, config.grid**2)}
    if config.target != "direct":
        found["diffusion_steps"] = (1, config.code_bits) if config.target == "mask" else (2, config.diffusion_steps)
    return found


def within(sampling: Sampling, limits: dict[str, tuple[int, int]]) -> Sampling:
    """`sampling`, its iterations and diffusion steps reduced to the most that `limits` allow."""
    most: dict[str, Any] = {}
    for name, (_, limit) in limits.items():
        value = getattr(sampling, name)
        most[name] = tuple(min(v, limit) for v in value) if isinstance(value, tuple) else min(value, limit)
    return replace(sampling, **most)


def prompt(label: Label) -> str:
    """A text as the model takes it; "" for None. Raises `BigrError` for a number, which is no text."""
    if label is None or isinstance(label, str):
        return label or ""
    raise BigrError(f"label: this model takes texts, not classes by their number, got {label}; write what to show")


def class_number(label: Label, classes: Sequence[str]) -> int:
    """The label as the model takes it: 0 to C − 1, or C for None. Raises `BigrError` where it is no class."""
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
    raise BigrError(f"label must be a class of the model, got {text!r}; {known}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:11])}, …, {names[-1]}; or a number"
