"""The model as one object: everything that docs/method.md, section 5 lists, on pictures of any size and form.

What is drawn whole (generation, interpolation, enrichment, reconstruction) comes in the model's own size. Inpainting,
outpainting and editing return the picture that they were given, at its size, changed where the mask says: the model
works on square windows of it (bigr/imaging/windows.py), and what it paints is blended in (bigr/imaging/blend.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from bigr.data.images import center_crop
from bigr.imaging import drawing
from bigr.imaging.blend import Blend, blended, check
from bigr.imaging.drawing import Label, Options, ProgressReporter, Sampler, SamplingOptions
from bigr.imaging.pictures import Mask, Picture, read_mask, read_picture, several
from bigr.imaging.windows import Window, scaled_mask, windows
from bigr.interop.standardisation import FeatureStatistics
from bigr.runtime.errors import BigrError
from bigr.sampling.decode import batched
from bigr.sampling.editing import (
    enrich_codes,
    enrich_iterations,
    in_proportion,
    inpaint_codes,
    interpolate_codes,
    painting,
    unknown_tokens,
)
from bigr.sampling.resolution import consistent_with
from bigr.sampling.unmask import Sampling, sample_codes, working_iterations

INTERPOLATION_STEPS = 9
"""Pictures on the way from one class to another, both ends included, where a call names no number."""

MAX_SIDE = 30_000
"""Pixels along one side of a picture with margins; longer ones are refused."""

_MAX_MADE = 500_000_000
"""Pixels of a picture with margins; larger ones are refused."""

_SEEN_TOGETHER = 16
"""Pictures whose features are taken in one batch; a large picture's activations fill much memory."""

_COMPARED_TOGETHER = 1 << 25
"""Similarities that are computed at a time."""

MAX_WINDOWS = 256
"""Squares that one picture is painted in; a longer mask on a narrower picture is refused."""


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


class ImageModel:
    """Tokenizer, generator, the settings of the sampler, and the names of the classes. `bigr.load` makes one.

    `statistics`: of the training split's features, where the stage `evaluation` has measured this model, else None.

    Pictures may be PIL images of any mode, paths, tensors or arrays (`bigr.imaging.pictures.Picture`); masks as well,
    with what is to be painted bright or opaque. A class is a number, a name, or None for none. The other keyword
    arguments are those of `bigr.imaging.drawing.Options`. Whatever a caller can put right raises `BigrError`, one line.
    """

    def __init__(
        self,
        sampler: Sampler,
        sampling: Sampling,
        editing: Editing,
        classes: Sequence[str],
        *,
        knows_labels: bool = True,
        statistics: FeatureStatistics | None = None,
    ) -> None:
        self._sampler, self.sampling, self.editing = sampler, sampling, editing
        self.classes, self.knows_labels = tuple(classes), knows_labels
        self.statistics = statistics

    @property
    def size(self) -> int:
        """The side in pixels of the squares that the model sees and draws."""
        return int(self._sampler.tokenizer.config.image_size)

    @property
    def num_layers(self) -> int:
        """How many layers `features` can be taken of."""
        return int(self._sampler.network.config.layers)

    @property
    def feature_layer(self) -> int:
        """The layer of features by default: the linear probe's best, where it is not known the middle one."""
        best = None if self.statistics is None else self.statistics.best_layer
        return (self.num_layers + 1) // 2 if best is None else best

    def limits(self) -> dict[str, tuple[int, int]]:
        """The least and the most of `iterations`, and of `diffusion_steps` where the model takes any."""
        return drawing.limits(self._sampler.network)

    def generate(self, labels: Label | Sequence[Label], **options: Unpack[Options]) -> list[Image.Image]:
        """Pictures of each class asked for: all variants of the first, then of the second, and so on.

        Image i is image i of the stage `samples` for the same labels, seed and settings.
        """
        how = SamplingOptions(**options)
        listed = labels if isinstance(labels, Sequence) and not isinstance(labels, str) else [labels]
        if not listed:
            raise BigrError("labels: none are given")
        numbers = self._labels([label for label in listed for _ in range(how.variants)])
        sampling = self._sampling(self.sampling, how)
        seeds = how.seeds(len(numbers), "samples")

        def draw(places: range, on_iteration: drawing.OnIteration | None) -> Tensor:
            some = slice(places.start, places.stop)
            return sample_codes(self._sampler.network, numbers[some], sampling, seeds[some], on_iteration=on_iteration)

        steps = working_iterations(sampling, self._tokens) * self._sampler.batches(len(numbers))
        return self._sampler.draw(len(numbers), draw, ProgressReporter(how.on_step, steps))

    def inpaint(
        self,
        image: Picture,
        mask: Picture,
        *,
        label: Label = None,
        blend: Blend = "feather",
        **options: Unpack[Options],
    ) -> list[Image.Image]:
        """`variants` pictures of the image's own size, painted anew where the mask marks it.

        label: what to paint; None lets the rest of the picture decide, as it must where the model knows no classes.
        blend: see `bigr.imaging.blend.blended`; pixels outside the mask and its seam are those of the image.
        """
        picture = read_picture(image)
        return self._paint(picture, read_mask(mask, picture.size), label, blend, SamplingOptions(**options))

    def edit(
        self, image: Picture, mask: Picture, label: Label, *, blend: Blend = "feather", **options: Unpack[Options]
    ) -> list[Image.Image]:
        """`inpaint` with a class for the marked region."""
        if label is None:
            raise BigrError("label: name the class to paint; to let the rest of the picture decide, inpaint")
        return self.inpaint(image, mask, label=label, blend=blend, **options)

    def outpaint(
        self,
        image: Picture,
        *,
        box: tuple[int, int, int, int] | None = None,
        margins: tuple[int, int, int, int] | int | None = None,
        label: Label = None,
        blend: Blend = "feather",
        **options: Unpack[Options],
    ) -> list[Image.Image]:
        """The inverse: what surrounds a part of the image is painted.

        Either box (left, top, right, bottom; pixels): this part is kept, all else of the image painted anew at the same
        size; or margins (left, top, right, bottom, or one number for all; pixels): so much is added on each side.
        """
        picture = read_picture(image)
        if (box is None) == (margins is None):
            raise BigrError("outpaint: give either box (the part to keep) or margins (pixels to add on each side)")
        if box is not None:
            left, top, right, bottom = _four(box, "box")
            if not (0 <= left < right <= picture.width and 0 <= top < bottom <= picture.height):
                raise BigrError(f"box: {box} is no part of a picture of {picture.width}×{picture.height} pixels")
        else:
            assert margins is not None
            before = (margins,) * 4 if isinstance(margins, Integral) else margins
            picture, (left, top, right, bottom) = _with_margins(picture, _four(before, "margins"))
        mask = np.ones((picture.height, picture.width), dtype=bool)
        mask[top:bottom, left:right] = False
        if not mask.any():
            raise BigrError("outpaint: nothing is left to paint: the box is the whole picture, or all margins are 0")
        return self._paint(picture, mask, label, blend, SamplingOptions(**options))

    def interpolate(
        self, first: Label, second: Label, steps: int = INTERPOLATION_STEPS, **options: Unpack[Options]
    ) -> list[Image.Image]:
        """Pictures on the way from one class to the other, both ends included: `steps` of them for each variant.

        The condition is r·e(first) + (1 − r)·e(second), r from 1 to 0; all pictures of a variant share their draws.
        """
        how = SamplingOptions(**options)
        if not (isinstance(steps, int) and 2 <= steps <= 1024):
            raise BigrError(f"steps: {steps} cannot be; allowed: 2 to 1024, the ends included")
        if not self.knows_labels:
            raise BigrError("label: this model was trained without labels; there is nothing to interpolate")
        sampling = self._sampling(self._class_painting(), how)
        ends = self._labels([first, second])
        count = steps * how.variants
        ratios = torch.linspace(1, 0, steps, device=ends.device).repeat(how.variants)
        seeds = [seed for seed in how.seeds(how.variants, "samples") for _ in range(steps)]

        def draw(places: range, on_iteration: drawing.OnIteration | None) -> Tensor:
            some = slice(places.start, places.stop)
            a, b = (end.expand(len(places)) for end in ends)
            network = self._sampler.network
            return interpolate_codes(network, a, b, ratios[some], sampling, seeds[some], on_iteration=on_iteration)

        total = working_iterations(sampling, self._tokens) * self._sampler.batches(count)
        return self._sampler.draw(count, draw, ProgressReporter(how.on_step, total))

    def enrich(
        self,
        image: Picture,
        *,
        label: Label = None,
        rounds: int | None = None,
        consistent: bool = True,
        **options: Unpack[Options],
    ) -> list[Image.Image]:
        """A small picture enlarged to the model's size, its detail drawn by the model (docs/method.md, section 5).

        rounds: how often every token is drawn anew, 1 to 4; consistent: the result, made small again, is the picture
        given (bigr/sampling/resolution.py). A picture of the model's size or more is first made half that size.
        Guidance acts where a label is given.
        """
        how = SamplingOptions(**options)
        picture = read_picture(image)
        rounds = self.editing.enrich_rounds if rounds is None else rounds
        if not (isinstance(rounds, int) and 1 <= rounds <= 4):
            raise BigrError(f"rounds: {rounds} cannot be; allowed: 1 to 4")
        short = min(picture.size)
        side = short if short < self.size else max(1, self.size // 2)
        small = center_crop(picture, side)
        large = small.resize((self.size, self.size), Image.Resampling.BICUBIC)
        own = replace(self.sampling, guidance_scale=self.editing.enrich_guidance_scale, guidance_schedule="constant")
        sampling = self._sampling(own, how, guided=label is not None)
        codes = self._sampler.encode([large]).expand(how.variants, -1, -1)
        numbers = self._labels([label] * how.variants)
        seeds = how.seeds(how.variants, "enrich")

        def draw(places: range, on_iteration: drawing.OnIteration | None) -> Tensor:
            some = slice(places.start, places.stop)
            return enrich_codes(
                self._sampler.network,
                codes[some],
                numbers[some],
                sampling,
                seeds[some],
                rounds=rounds,
                on_iteration=on_iteration,
            )

        steps = enrich_iterations(sampling, self._sampler.network.config.grid, rounds=rounds)
        drawn = self._sampler.draw(
            how.variants, draw, ProgressReporter(how.on_step, steps * self._sampler.batches(how.variants))
        )
        return [consistent_with(small, one) for one in drawn] if consistent else drawn

    def reconstruct(self, image: Picture) -> Image.Image:
        """What the tokenizer keeps of a picture: its centre square encoded and decoded, at the model's size."""
        sampler = self._sampler
        codes = sampler.encode([center_crop(read_picture(image), self.size)])
        return Image.fromarray(drawing.decoded(sampler.tokenizer, codes)[0].numpy())

    def features(self, images: Picture | Sequence[Picture], layer: int | None = None) -> Tensor:
        """What the model sees in pictures: float32 [n, D] on the CPU, tokens averaged (docs/method.md, section 5).

        images: their centre squares; layer: 1 to `num_layers`, else `feature_layer`. Pictures are encoded in batches:
        those beside a picture move its features by rounding alone, less than 1e-5 of their deviation, unless a bit of
        its code is that close to being the other one.
        """
        number = self._layer(layer)
        return torch.cat([rows[:, number - 1].clone() for rows in self._averages(images)])

    def layer_features(self, images: Picture | Sequence[Picture]) -> Tensor:
        """`features` of every layer in one go: float32 [n, L, D] on the CPU."""
        return torch.cat(list(self._averages(images)))

    def nearest(self, asked: Tensor, known: Tensor, count: int, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """For each of the features [q, D] the `count` most alike of [n, D]: similarities float32, places int64, [q, k].

        Both are `features` of the same layer. All features share a large mean, so they are compared by the cosine of
        what is left without it, each number divided by its deviation: those of `statistics`, or of `known` where there
        are none.
        """
        number = self._layer(layer)
        own = FeatureStatistics.of(known.unsqueeze(1)) if self.statistics is None else self.statistics.layer(number)
        if not len(known) or known.shape[1:] != asked.shape[1:] or own.mean.shape[1:] != known.shape[1:]:
            raise BigrError(
                f"features: {list(asked.shape)} and {list(known.shape)} cannot be compared; both must be [n, D] with D "
                f"= {own.mean.shape[1]}"
            )
        units = F.normalize(own.standardised(known.unsqueeze(1))[:, 0], dim=1)
        parts = []
        for some in asked.split(max(1, _COMPARED_TOGETHER // len(known))):
            cosines = F.normalize(own.standardised(some.unsqueeze(1))[:, 0], dim=1) @ units.T
            parts.append(cosines.topk(min(count, len(known)), dim=1))
        return torch.cat([values for values, _ in parts]), torch.cat([places for _, places in parts])

    @torch.no_grad()
    def _averages(self, images: Picture | Sequence[Picture]) -> Iterator[Tensor]:
        """Every layer's token average of each batch of pictures, float32 [b, L, D] on the CPU."""
        given = several(images)
        if not given:
            raise BigrError("images: none are given")
        for places in batched(len(given), _SEEN_TOGETHER):
            pictures = [center_crop(read_picture(given[place]), self.size) for place in places]
            codes = self._sampler.tokenizer.codes(self._sampler.pixels(pictures))
            streams = self._sampler.network.features(codes)
            yield torch.stack([stream.float().mean(1) for stream in streams], dim=1).cpu()

    def _layer(self, layer: int | None) -> int:
        """The layer given, or the default. Raises `BigrError` for one that there is not."""
        number = self.feature_layer if layer is None else layer
        if not (isinstance(number, int) and 1 <= number <= self.num_layers):
            raise BigrError(f"layer: {number} cannot be; allowed: 1 to {self.num_layers}")
        return number

    @property
    def _tokens(self) -> int:
        return int(self._sampler.network.config.grid**2)

    def _labels(self, labels: Sequence[Label]) -> Tensor:
        """int64 [n] on the device; a model trained without labels knows the unconditional row alone."""
        numbers = [drawing.label_number(label, self.classes) for label in labels]
        if not self.knows_labels:
            numbers = [len(self.classes)] * len(numbers)
        return torch.tensor(numbers, device=self._sampler.device)

    def _sampling(self, sampling: Sampling, how: SamplingOptions, guided: bool = True) -> Sampling:
        """The sampler of one call; without a class to guide to, guidance is left out: it would change nothing."""
        found = how.applied(sampling, self.limits())
        return found if guided and self.knows_labels else replace(found, guidance_scale=1.0)

    def _class_painting(self) -> Sampling:
        return painting(self.sampling, self.editing.guidance_scale, self.editing.gumbel_temperature)

    def _paint(
        self, picture: Image.Image, mask: Mask, label: Label, blend: Blend, how: SamplingOptions
    ) -> list[Image.Image]:
        """`variants` copies of `picture`, each painted where `mask` bool [H, W] is True."""
        check(blend)
        if label is not None and not self.knows_labels:
            raise BigrError("label: this model was trained without labels, and can paint no class; inpaint without one")
        own = self.sampling if label is None else self._class_painting()
        sampling = self._sampling(own, how, guided=label is not None)
        labels = self._labels([label] * how.variants)
        drawn = [np.array(picture) for _ in range(how.variants)]
        plan = self._plan(mask)
        unknowns = [self._unknown(part) for _, part in plan]
        each = [
            working_iterations(in_proportion(sampling, n, self._tokens), n) for n in (int(u.sum()) for u in unknowns)
        ]
        watch = ProgressReporter(how.on_step, sum(each) * self._sampler.batches(how.variants))
        for place, ((window, part), unknown) in enumerate(zip(plan, unknowns, strict=True)):
            views = [array[window.slices] for array in drawn]
            painted = self._window(views, unknown, labels, sampling, how.seeds(how.variants, "inpaint", place), watch)
            seam = self.editing.feather * window.side / self._sampler.network.config.grid
            for view, new in zip(views, painted, strict=True):
                large = np.asarray(new.resize((window.side, window.side), Image.Resampling.BICUBIC))
                view[...] = blended(view, large, part, blend, seam)
        return [Image.fromarray(array) for array in drawn]

    def _plan(self, mask: Mask) -> list[tuple[Window, Mask]]:
        """The windows, each with what is left for it to paint: bool [S, S], its part of the picture's mask."""
        places = windows(mask)
        if len(places) > MAX_WINDOWS:
            raise BigrError(
                f"mask: painting it takes {len(places):,} squares as wide as the picture's short side; at most "
                f"{MAX_WINDOWS} are painted: mark less, or give a wider picture"
            )
        left, plan = mask.copy(), []
        for window in places:
            part = left[window.slices].copy()
            left[window.slices] = False
            if part.any():
                plan.append((window, part))
        return plan

    def _unknown(self, part: Mask) -> Tensor:
        """The unknown tokens of a window's part of the mask, bool [N] on the device."""
        pixels = torch.from_numpy(scaled_mask(part, self.size)).unsqueeze(0)
        return unknown_tokens(pixels, self._sampler.network.config.grid)[0].to(self._sampler.device)

    def _window(
        self,
        views: Sequence[np.ndarray],
        unknown: Tensor,
        labels: Tensor,
        sampling: Sampling,
        seeds: Sequence[int],
        watch: ProgressReporter,
    ) -> list[Image.Image]:
        """Square pictures uint8 [S, S, 3], painted; of the model's size."""
        codes = self._sampler.encode([center_crop(Image.fromarray(view), self.size) for view in views])

        def draw(places: range, on_iteration: drawing.OnIteration | None) -> Tensor:
            some = slice(places.start, places.stop)
            return inpaint_codes(
                self._sampler.network,
                codes[some],
                unknown.expand(len(places), -1),
                labels[some],
                sampling,
                seeds[some],
                on_iteration=on_iteration,
            )

        return self._sampler.draw(len(views), draw, watch)


def _four(numbers: object, name: str) -> tuple[int, int, int, int]:
    """Four whole numbers, as they were given under `name`. Raises `BigrError` where they are not that."""
    if (
        not isinstance(numbers, Sequence)
        or len(numbers) != 4
        or not all(isinstance(number, Integral) for number in numbers)
    ):
        raise BigrError(f"{name}: {numbers} cannot be; four whole numbers of pixels: left, top, right, bottom")
    left, top, right, bottom = (int(number) for number in numbers)
    return left, top, right, bottom


def _with_margins(picture: Image.Image, margins: Sequence[int]) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """The picture amid margins that continue its edge, and the box in which it stands."""
    if any(margin < 0 for margin in margins):
        raise BigrError(f"margins: {margins} cannot be; four numbers of pixels, 0 or more: left, top, right, bottom")
    left, top, right, bottom = margins
    width, height = picture.width + left + right, picture.height + top + bottom
    if max(width, height) > MAX_SIDE or width * height > _MAX_MADE:
        raise BigrError(
            f"margins: a picture of {width}×{height} pixels; at most {MAX_SIDE:,} along a side "
            f"and {_MAX_MADE:,} in all can be made"
        )
    grown = np.pad(np.asarray(picture), ((top, bottom), (left, right), (0, 0)), mode="edge")
    return Image.fromarray(grown), (left, top, left + picture.width, top + picture.height)
