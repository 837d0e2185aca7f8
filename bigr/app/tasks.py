"""What the page's buttons do: from the values that the page sends to the HTML that it shows. Knows nothing of gradio.

Every task yields the panel after each iteration, and last the one with the results. Values are checked: a number
outside the range of its slider raises `BigrError`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from PIL import Image

from bigr.app import panel
from bigr.app.bounds import MAX_CLASSES, MAX_DRAWN_PIXELS, MAX_SEED, MAX_SIDE, MAX_STEPS, MAX_TEXT, MAX_VARIANTS
from bigr.app.gallery import Dataset
from bigr.app.running import Done, watched
from bigr.app.uploads import read_mask
from bigr.imaging.frames import Frame
from bigr.imaging.model import ImageModel
from bigr.imaging.options import OnStep
from bigr.runtime.errors import BigrError

NO_CLASS = -1
"""The page's value for no class."""

OWN = "Settings"
"""The page's value for no preset: the model's own settings."""

NEIGHBOURS = 10
INSIDE, OUTSIDE = "Replace the edges", "Grow the picture"
"""The ways to outpaint."""

_SHOW_EVERY = 0.05
"""Seconds between two panels at least: a small model is faster than a page can be rendered."""
_PAUSE = 3
"""How many times the time that a panel took passes at least until the next: large images take long to decode, and the
model works beside that."""

Panels = Iterator[str]
Asked = int | str | None
"""A class by its number, a text, or neither: what the page sends for them."""


class Tasks:
    """The tasks of a page over one model and, if there is one, its data set."""

    def __init__(self, model: ImageModel, dataset: Dataset | None) -> None:
        self.model, self.dataset = model, dataset

    def generate(self, labels: Sequence[Asked] | None, *options: Any) -> Panels:
        """Images of the chosen classes or texts: a column for each, or one grid for a single one."""
        chosen = [self._label(label) for label in labels or [NO_CLASS]]
        if len(chosen) > MAX_CLASSES:
            raise BigrError(
                f"Choose at most {MAX_CLASSES} {'texts' if self.model.takes_texts else 'classes'}, got {len(chosen)}"
            )
        how = self._how(options)
        variants, count = how["variants"], len(chosen)
        self._check_amount(variants * count)
        order = [label * variants + variant for variant in range(variants) for label in range(count)]
        names = [self._name(label) for label in chosen] + [""] * (count * (variants - 1) if count > 1 else 0)
        captions = names if count > 1 else [f"{names[0]} · {number}" for number in range(1, variants + 1)]

        yield from self._drawn(
            lambda on_step: self.model.generate(chosen, on_step=on_step, **how),
            "generate",
            captions,
            how,
            order=order,
            columns=count if count > 1 else None,
            many=True,
        )

    def inpaint(self, picture: Image.Image | None, brush: Any, label: Asked, blend: str, *options: Any) -> Panels:
        """The image painted anew where it is marked, with a class or without."""
        yield from self._painted("inpaint", picture, brush, self._label(label), blend, options)

    def edit(self, picture: Image.Image | None, brush: Any, label: Asked, blend: str, *options: Any) -> Panels:
        """The marked part of the image painted as a class."""
        number = self._label(label)
        if number is None:
            raise BigrError(f"Choose the {model_kind(self.model)} that the marked part is to become")
        yield from self._painted("edit", picture, brush, number, blend, options)

    def outpaint(
        self,
        picture: Image.Image | None,
        way: str,
        left: float,
        top: float,
        right: float,
        bottom: float,
        label: Asked,
        blend: str,
        *options: Any,
    ) -> Panels:
        """The image extended, or its edges replaced. The four numbers are percent of its width or height."""
        given = _given(picture)
        edges = margins(given, (left, top, right, bottom))
        how, number = self._how(options), self._label(label)
        if way == INSIDE:
            where: dict[str, Any] = {"box": (edges[0], edges[1], given.width - edges[2], given.height - edges[3])}
            if edges[0] + edges[2] >= given.width or edges[1] + edges[3] >= given.height:
                raise BigrError("Nothing of the picture would be kept; make the edges narrower")
        else:
            where = {"margins": edges}
        if not any(edges):
            raise BigrError("All four sides are 0 %; there is nothing to paint")
        yield from self._drawn(
            lambda on_step: self.model.outpaint(
                given, label=number, blend=_blend(blend), on_step=on_step, **where, **how
            ),
            "outpaint",
            _numbered(how),
            how,
        )

    def interpolate(self, first: Asked, second: Asked, steps: float, *options: Any) -> Panels:
        """Images on the way from one class to another, a row for each variant."""
        if not 2 <= steps <= MAX_STEPS:
            raise BigrError(f"Pictures on the way must be 2 to {MAX_STEPS}, got {steps:.0f}")
        ends, count, how = (self._label(first), self._label(second)), int(steps), self._how(options)
        self._check_amount(count * how["variants"])
        names = [self._name(label) for label in ends]
        between = [f"{100 * place / (count - 1):.0f} %" for place in range(1, count - 1)]
        yield from self._drawn(
            lambda on_step: self.model.interpolate(*ends, count, on_step=on_step, **how),
            "interpolate",
            [names[0], *between, names[1]] + [""] * (count * (how["variants"] - 1)),
            how,
            columns=count,
            many=True,
        )

    def enrich(
        self, picture: Image.Image | None, rounds: float, consistent: bool, label: Asked, *options: Any
    ) -> Panels:
        """A small image enlarged, its detail drawn; beside it, the image enlarged by interpolation alone."""
        given, number, how = _given(picture), self._label(label), self._how(options)
        square, size = self.model.small(given), self.model.size
        plain = square.resize((size, size), Image.Resampling.BICUBIC)
        yield from self._drawn(
            lambda on_step: self.model.enrich(
                given, label=number, rounds=int(rounds), consistent=bool(consistent), on_step=on_step, **how
            ),
            "enrich",
            _numbered(how),
            how,
            beside=[(square, f"given, {square.width}×{square.width}"), (plain, "enlarged by bicubic filter")],
        )

    def features(self, picture: Image.Image | None, layer: float) -> Panels:
        """The tokenizer's reconstruction of an image, and the images of the data set with the most similar features."""
        given, start, number = _given(picture), time.perf_counter(), int(layer)
        self.model.features(given, number)  # an invalid layer is an error before the data set is searched
        kept = self.model.reconstruct(given)
        beside = [(given, "the picture"), (kept, "what its code keeps")]
        if self.dataset is None:
            yield panel.compared(
                beside, [], time.perf_counter() - start, "There is no data/shards to search for similar pictures"
            )
            return
        count = self.dataset.compared
        for done in chain([0], self.dataset.look(self.model)):
            text = f"computing the features of the data set, once: {min(done, count):,} of {count:,} pictures"
            yield panel.compared(beside, [], time.perf_counter() - start, text, min(done / count, 1))
        alike = self.dataset.nearest(self.model, given, number, NEIGHBOURS)
        found = [(one.picture, f"{one.name} · {one.similarity:.2f}") for one in alike]
        known = "" if self.model.statistics else "; standardised by these pictures, since the model has no statistics"
        text = f"nearest of {count:,}, by layer {number}{known}"
        yield panel.compared(beside, found, time.perf_counter() - start, text)

    def _painted(
        self,
        name: str,
        picture: Image.Image | None,
        brush: Any,
        label: Asked,
        blend: str,
        options: Sequence[Any],
    ) -> Panels:
        given, how = _given(picture), self._how(options)
        mask = read_mask(str(brush.get("mask") or "") if isinstance(brush, dict) else "")
        yield from self._drawn(
            lambda on_step: self.model.inpaint(given, mask, label=label, blend=_blend(blend), on_step=on_step, **how),
            name,
            _numbered(how),
            how,
        )

    def _drawn(
        self,
        call: Callable[[OnStep], list[Image.Image]],
        name: str,
        captions: Sequence[str],
        how: dict[str, Any],
        *,
        order: Sequence[int] | None = None,
        columns: int | None = None,
        beside: Sequence[tuple[Image.Image, str]] = (),
        many: bool = False,
    ) -> Panels:
        """Run the call and show it. order: of its images on the page; many: they are not variants of one image."""
        trace, next_time = panel.Trace(f"the first picture ({captions[0]})", alone=many), 0.0
        for item in watched(call):
            if isinstance(item, Done):
                pictures = item.value if order is None else [item.value[place] for place in order]
                yield panel.finished(
                    pictures,
                    captions,
                    item.seconds,
                    f"{name}-seed{how['seed']}",
                    note=f"seed {how['seed']}, {_iterations(how['iterations'], trace.of)}",
                    trace=trace,
                    columns=columns,
                    beside=beside,
                )
                return
            trace.add(item)
            if (start := time.monotonic()) >= next_time:
                whole = order is not None and len(item.pictures) == len(order)
                yield panel.running(_ordered(item, order) if whole and order else item, trace, columns)
                took = time.monotonic() - start
                next_time = time.monotonic() + max(_SHOW_EVERY, _PAUSE * took)

    def _how(self, options: Sequence[Any]) -> dict[str, Any]:
        """The keyword arguments of `ImageModel` for the values of the sliders, in the page's order."""
        seed, variants, preset, iterations, guidance, *steps = options
        how: dict[str, Any] = {
            "seed": int(seed or 0),
            "variants": int(variants or 1),
            "preset": None if preset == OWN else preset,
            "iterations": None if iterations is None else int(iterations),
            "guidance_scale": None if guidance is None else float(guidance),
            "diffusion_steps": None if None in steps else [int(count) for count in steps if count is not None],
        }
        if not 1 <= how["variants"] <= MAX_VARIANTS:
            raise BigrError(f"Variants must be 1 to {MAX_VARIANTS}, got {how['variants']}")
        if not 0 <= how["seed"] <= MAX_SEED:
            raise BigrError(f"Seed must be 0 to {MAX_SEED}, got {how['seed']}")
        return how

    def _check_amount(self, pictures: int) -> None:
        most = max(1, MAX_DRAWN_PIXELS // self.model.size**2)
        if pictures > most:
            size = f"{self.model.size}×{self.model.size}"
            raise BigrError(f"Choose fewer: at most {most} pictures of {size} pixels in one call, got {pictures}")

    def _label(self, label: Asked) -> Asked:
        if label is None or label == NO_CLASS:
            return None
        if self.model.takes_texts:
            if not (isinstance(label, str) and len(label) <= MAX_TEXT):
                raise BigrError(f"A text must have at most {MAX_TEXT} characters")
            return label
        if not (isinstance(label, int) and 0 <= label < len(self.model.classes)):
            raise BigrError(f"Class must be one of this model, got {label!r}")
        return label

    def _name(self, label: Asked) -> str:
        if label is None:
            return "no text" if self.model.takes_texts else "no class"
        return label if isinstance(label, str) else self.model.classes[label]


def model_kind(model: ImageModel) -> str:
    """The word for what the model is told: "class" or "text"."""
    return "text" if model.takes_texts else "class"


def margins(picture: Image.Image, percent: Sequence[float]) -> tuple[int, int, int, int]:
    """Percent of an image's width and height (left, top, right, bottom) as pixels, at least 1 where it is not 0.

    Raises `BigrError` outside of 0 to 100.
    """
    if not all(0 <= share <= 100 for share in percent):
        raise BigrError("Sides must be 0 to 100 percent")
    sides = (picture.width, picture.height) * 2
    left, top, right, bottom = (
        max(1, round(side * share / 100)) if share else 0 for side, share in zip(sides, percent, strict=True)
    )
    if max(picture.width + left + right, picture.height + top + bottom) > 3 * MAX_SIDE:
        raise BigrError("The picture would be too large; add less")
    return left, top, right, bottom


def _given(picture: Image.Image | None) -> Image.Image:
    if picture is None:
        raise BigrError("Choose a picture first: one of the examples, or your own")
    return picture


def _blend(blend: str) -> Any:
    return blend.lower()


def _numbered(how: dict[str, Any]) -> list[str]:
    return [f"variant {number}" for number in range(1, how["variants"] + 1)]


def _iterations(chosen: int | None, taken: int) -> str:
    """The iterations that a call took, with the chosen number where that differs."""
    if chosen is None or chosen == taken:
        return f"{taken} iterations"
    why = "there is no more to decide" if taken < chosen else "it is drawn in parts"
    return f"{chosen} iterations chosen, {taken} taken: {why}"


def _ordered(frame: Frame, order: Sequence[int]) -> Frame:
    pictures, entropies = list(frame.pictures), list(frame.entropies)
    return replace(frame, pictures=[pictures[i] for i in order], entropies=[entropies[i] for i in order])
