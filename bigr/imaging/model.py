"""The trained model as one object: the applications of docs/method.md, section 5, on images of any size.

Images that are drawn whole have the model's own size. Inpainting, outpainting and editing return the given image at its
size: the model paints square windows of it (bigr/imaging/windows.py), which are blended in (bigr/imaging/blend.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bigr.data.images import center_crop
from bigr.imaging import similarity
from bigr.imaging.assembly import PAPER_EDITING, SETTINGS_FILE, ImageSettings, load_networks
from bigr.imaging.blend import Blend, check
from bigr.imaging.frames import progress_reporter
from bigr.imaging.options import (
    Editing,
    Label,
    Options,
    SamplingOptions,
    check_limits,
    check_whole,
    class_number,
    limits,
    prompt,
    within,
)
from bigr.imaging.painting import enlarge, paint, parts_of, with_margins
from bigr.imaging.pictures import Mask, Picture, read_mask, read_picture, several
from bigr.imaging.sampler import Sampler
from bigr.interop import hub
from bigr.interop.folders import model_hash
from bigr.interop.standardisation import FeatureStatistics, load_statistics, save_statistics
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.models.masked.generator import BiGR
from bigr.runtime.errors import BigrError
from bigr.runtime.files import write_json
from bigr.runtime.precision import autocast
from bigr.runtime.transfer import to_device
from bigr.sampling.acceleration import accelerate
from bigr.sampling.editing import OnIteration, enrich_iterations, interpolate_codes
from bigr.sampling.inputs import check_finite
from bigr.sampling.resolution import consistent_with
from bigr.sampling.unmask import Sampling, sample_codes, working_iterations
from bigr.text.encoder import TextEncoder, as_given
from bigr.text.encoder_folder import encoder_of

INTERPOLATION_STEPS = 9
"""Images on the way from one class to another, both ends included, where a call names no number."""


class ImageModel:
    """Tokenizer, generator, the settings of the sampler, and the names of the classes. `bigr.load` makes one.

    `presets`: other settings of the sampler by name, which the argument `preset` of a call chooses.
    `statistics`: of the training split's features, where the stage `evaluation` has measured this model, else None.

    `text`: the encoder of texts, of a model that takes texts in place of classes.

    Images may be PIL images of any mode, paths, tensors or arrays (`bigr.imaging.pictures.Picture`); masks as well,
    with what is to be painted bright or opaque. A class is a number, a name, or None for none; a model that takes texts
    gets a text in its place, and "" or None is none. The other keyword arguments are those of
    `bigr.imaging.options.Options`. Invalid input raises `BigrError`, one line.
    """

    def __init__(
        self,
        sampler: Sampler,
        sampling: Sampling,
        editing: Editing,
        classes: Sequence[str],
        *,
        presets: Mapping[str, Sampling] | None = None,
        knows_labels: bool = True,
        statistics: FeatureStatistics | None = None,
        text: TextEncoder | None = None,
    ) -> None:
        self.sampler, self.sampling, self.editing = sampler, sampling, editing
        self.presets = dict(presets or {})
        self.classes, self.knows_labels = tuple(classes), knows_labels
        self.statistics, self.text = statistics, text

    @classmethod
    def of(cls, models: Path, networks: tuple[Tokenizer, BiGR], settings: ImageSettings) -> "ImageModel":
        """The model of the networks of `models`, and of the features' statistics there, if any.

        Iterations and diffusion steps beyond what the model can take are reduced to that. Raises `BigrError` where a
        weight of the generator is not finite.
        """
        tokenizer, network = networks
        device = network.backbone.mask_tok.device
        accelerate(network, settings.compile, device)
        context = partial(autocast, device, settings.precision, network.config.dim)
        model = cls(
            Sampler(tokenizer, network, settings.batch_size, context, settings.decode_precision),
            within(settings.sampling, limits(network)),
            settings.editing or PAPER_EDITING,
            settings.classes,
            presets=settings.presets,
            knows_labels=settings.knows_labels,
            statistics=load_statistics(models / "features", models / "bigr"),
            text=(
                encoder_of(models / "bigr", models / "text", device, models.absolute().parent)
                if network.config.text_tokens
                else None
            ),
        )
        model.check_finite()
        return model

    @classmethod
    def from_pretrained(
        cls,
        source: Path | str,
        *,
        revision: str | None = None,
        cache_dir: Path | str | None = None,
        local_files_only: bool = True,
        device: str = "auto",
    ) -> "ImageModel":
        """The model that `save_pretrained` or `push_to_hub` wrote; tokenizer/ and bigr/ alone will do.

        The arguments are those of `bigr.interop.hub.from_pretrained` and `bigr.load`. Raises `BigrError` where there is
        none.
        """
        folder = hub.local_folder(source, revision, cache_dir, local_files_only)
        networks = load_networks(folder, device)
        return cls.of(folder, networks, ImageSettings.of_folder(folder, networks[1]))

    def save_pretrained(self, folder: Path | str) -> None:
        """Write `folder`/tokenizer and `folder`/bigr (config.json and model.safetensors each), and the settings; the
        encoder of texts too, but no weights of a frozen one.

        `from_pretrained` and `bigr.load` read them. Other files in `folder` stay. The precisions are not kept.
        """
        how = ImageSettings(
            self.sampling, self.presets, self.editing, self.classes, "auto", self.batch_size, self.knows_labels
        )
        folder = Path(folder)
        hub.save_pretrained(self.networks[0], folder / "tokenizer")
        hub.save_pretrained(self.networks[1], folder / "bigr", model_hash(folder / "tokenizer"))
        write_json(folder / SETTINGS_FILE, asdict(how))
        if self.text is not None:
            (folder / "text").mkdir(exist_ok=True)
            self.text.save(folder / "text")
        if self.statistics is not None and self.statistics.best_layer is not None:
            save_statistics(folder / "features", self.statistics, folder / "bigr")

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, revision: str | None = None, token: str | None = None
    ) -> str:
        """Upload what `save_pretrained` writes; see `bigr.interop.hub.push_to_hub`."""
        return hub.upload(self.save_pretrained, repo_id, private, revision, token)

    @property
    def networks(self) -> tuple[Tokenizer, BiGR]:
        """The tokenizer and the generator."""
        return self.sampler.tokenizer, self.sampler.network

    @property
    def batch_size(self) -> int:
        """How many images are drawn together."""
        return self.sampler.batch_size

    @property
    def size(self) -> int:
        """The side of the model's square images, in pixels."""
        return int(self.sampler.tokenizer.config.image_size)

    @property
    def num_layers(self) -> int:
        """How many layers `features` can be taken of."""
        return int(self.sampler.network.config.layers)

    @property
    def feature_layer(self) -> int:
        """The layer of features by default: the linear probe's best, the middle one where that is not known."""
        best = None if self.statistics is None else self.statistics.best_layer
        return (self.num_layers + 1) // 2 if best is None else best

    def limits(self) -> dict[str, tuple[int, int]]:
        """The range of `iterations`, and of `diffusion_steps` where the model takes any."""
        return limits(self.sampler.network)

    def check_finite(self) -> None:
        """Raise `BigrError` where a weight of the generator is not finite; `bigr.load` calls it."""
        check_finite(self.sampler.network)

    def generate(self, labels: Label | Sequence[Label], **options: Unpack[Options]) -> list[Image.Image]:
        """Images of each class asked for: all variants of the first, then of the second, and so on.

        Image i is image i of the stage `samples` for the same labels, seed and settings.
        """
        how = SamplingOptions(**options)
        listed = labels if isinstance(labels, Sequence) and not isinstance(labels, str) else [labels]
        if not listed:
            raise BigrError("labels must name at least one class, or None")
        numbers = self._labels([label for label in listed for _ in range(how.variants)])
        sampling, seeds = self._sampling(self._own(how), how), how.seeds(len(numbers), "samples")
        report = self._reporter(how, working_iterations(sampling, self.sampler.tokens), len(numbers))
        return self.sampler.draw(sample_codes, numbers, sampling=sampling, seeds=seeds, on_iteration=report)

    def inpaint(
        self,
        image: Picture,
        mask: Picture,
        *,
        label: Label = None,
        blend: Blend = "feather",
        **options: Unpack[Options],
    ) -> list[Image.Image]:
        """`variants` copies of the image, at its own size, painted anew where the mask marks it.

        label: what to paint; with None the rest of the image decides, the only way where the model knows no classes.
        blend: see `bigr.imaging.blend.blended`; pixels outside the mask and its seam are those of the image.
        """
        given = read_picture(image)
        return self._paint(given, read_mask(mask, given.size), label, blend, SamplingOptions(**options))

    def edit(
        self, image: Picture, mask: Picture, label: Label, *, blend: Blend = "feather", **options: Unpack[Options]
    ) -> list[Image.Image]:
        """`inpaint` with a class for the marked region."""
        if label is None:
            raise BigrError("label must be the class to paint, got None; without a class, inpaint")
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
        """The inverse of `inpaint`: what surrounds a part of the image is painted.

        Either box (left, top, right, bottom; pixels): this part is kept, and the rest of the image painted anew at the
        same size; or margins (left, top, right, bottom, or one number for all; pixels): added on each side.
        """
        given = read_picture(image)
        if (box is None) == (margins is None):
            raise BigrError("outpaint: give either box (the part to keep) or margins (pixels to add on each side)")
        if box is not None:
            left, top, right, bottom = _four(box, "box")
            if not (0 <= left < right <= given.width and 0 <= top < bottom <= given.height):
                raise BigrError(f"box must be a part of the image of {given.width}×{given.height} pixels, got {box}")
        else:
            assert margins is not None
            sides = (margins,) * 4 if isinstance(margins, Integral) else margins
            given, (left, top, right, bottom) = with_margins(given, _four(sides, "margins"))
        mask = np.ones((given.height, given.width), dtype=bool)
        mask[top:bottom, left:right] = False
        if not mask.any():
            raise BigrError("outpaint: nothing is left to paint: the box is the whole image, or all margins are 0")
        return self._paint(given, mask, label, blend, SamplingOptions(**options))

    def interpolate(
        self, first: Label, second: Label, steps: int = INTERPOLATION_STEPS, **options: Unpack[Options]
    ) -> list[Image.Image]:
        """Images on the way from one class to the other, both ends included: `steps` of them for each variant.

        The condition is r·e(first) + (1 − r)·e(second), r from 1 to 0; all images of a variant share their draws.
        """
        how = SamplingOptions(**options)
        check_whole("steps", steps, 2, 1024)
        self._check_labels("there is nothing to interpolate")
        sampling = self._sampling(self.editing.painting(self._own(how)), how)
        count = steps * how.variants
        first_class, second_class = (end.expand(count, *end.shape) for end in self._labels([first, second]))
        ratios = torch.linspace(1, 0, steps, device=first_class.device).repeat(how.variants)
        seeds = [seed for seed in how.seeds(how.variants, "samples") for _ in range(steps)]
        rows = first_class, second_class, ratios
        report = self._reporter(how, working_iterations(sampling, self.sampler.tokens), count)
        return self.sampler.draw(interpolate_codes, *rows, sampling=sampling, seeds=seeds, on_iteration=report)

    def enrich(
        self,
        image: Picture,
        *,
        label: Label = None,
        rounds: int | None = None,
        consistent: bool = True,
        **options: Unpack[Options],
    ) -> list[Image.Image]:
        """A small image enlarged to the model's size, its detail drawn by the model (docs/method.md, section 5).

        rounds: how often every token is drawn anew, 1 to 4; consistent: the result, made small again, is the given
        image (bigr/sampling/resolution.py). An image of the model's size or more is first reduced to half that size.
        Guidance acts where a label is given.
        """
        how = SamplingOptions(**options)
        small = self.small(read_picture(image))
        rounds = self.editing.enrich_rounds if rounds is None else rounds
        check_whole("rounds", rounds, 1, 4)
        sampling = self._sampling(self.editing.enriching(self._own(how)), how, guided=label is not None)
        labels, seeds = self._labels([label] * how.variants), how.seeds(how.variants, "enrich")
        iterations = enrich_iterations(sampling, self.sampler.network.config.grid, rounds=rounds)
        report = self._reporter(how, iterations, how.variants)
        drawn = enlarge(
            self.sampler, [small] * how.variants, labels, sampling, seeds, rounds=rounds, on_iteration=report
        )
        return [consistent_with(small, one) for one in drawn] if consistent else drawn

    def small(self, image: Image.Image) -> Image.Image:
        """What `enrich` enlarges: the centre square of an image, smaller than the model's images."""
        short = min(image.size)
        return center_crop(image, short if short < self.size else max(1, self.size // 2))

    def reconstruct(self, image: Picture) -> Image.Image:
        """The centre square of an image, encoded and decoded by the tokenizer, at the model's size."""
        codes = self.sampler.encode([center_crop(read_picture(image), self.size)])
        return self.sampler.decode(codes)[0]

    def features(self, images: Picture | Sequence[Picture], layer: int | None = None) -> Tensor:
        """The generator's features of images: float32 [n, D] on the CPU, tokens averaged (docs/method.md, section 5).

        images: their centre squares; layer: 1 to `num_layers`, else `feature_layer`. Images are encoded in batches:
        those beside an image move its features by rounding alone, unless a bit of its code is that close to being the
        other one.
        """
        number = self._layer(layer)
        return torch.cat([rows[:, number - 1].clone() for rows in self._averages(images)])

    def layer_features(self, images: Picture | Sequence[Picture]) -> Tensor:
        """`features` of every layer at once: float32 [n, L, D] on the CPU."""
        return torch.cat(list(self._averages(images)))

    def nearest(self, asked: Tensor, known: Tensor, count: int, layer: int | None = None) -> tuple[Tensor, Tensor]:
        """For each of the features [q, D] the `count` most alike of [n, D]: similarities float32, places int64, [q, k].

        Both are `features` of the same layer, compared by the cosine of standardised features (`statistics`, or those
        of `known` where there are none).
        """
        number = self._layer(layer)
        statistics = None if self.statistics is None else self.statistics.layer(number)
        return similarity.most_alike(asked, known, count, statistics)

    def _averages(self, images: Picture | Sequence[Picture]) -> Iterator[Tensor]:
        given = several(images)
        if not given:
            raise BigrError("images must be at least one image")
        return similarity.token_averages(self.sampler, given)

    def _layer(self, layer: int | None) -> int:
        """The layer given, or the default. Raises `BigrError` for one that does not exist."""
        number = self.feature_layer if layer is None else layer
        check_whole("layer", number, 1, self.num_layers)
        return number

    def _labels(self, labels: Sequence[Label]) -> Tensor:
        """What the generator is told, on the device: int64 [n], or texts.

        A model trained without labels has learned the unconditional case alone.
        """
        if self.text is not None:
            texts = [prompt(label) for label in labels]
            given = as_given(self.text, texts)
        else:
            given = torch.tensor([class_number(label, self.classes) for label in labels])
        if not self.knows_labels:
            return self.sampler.network.backbone.unconditional(len(given), self.sampler.device)
        return to_device(given, self.sampler.device)

    def named(self, label: Label) -> str:
        """A class's name, a text itself; "any" for none. Raises `BigrError` for what the model does not take."""
        if self.takes_texts:
            return prompt(label).strip() or "any"
        number = class_number(label, self.classes)
        return "any" if number == len(self.classes) else self.classes[number]

    @property
    def takes_texts(self) -> bool:
        """Whether a text takes the class's place."""
        return self.text is not None

    def _check_labels(self, consequence: str) -> None:
        if not self.knows_labels:
            raise BigrError(f"label: this model was trained without labels; {consequence}")

    def _reporter(self, how: SamplingOptions, iterations: int, count: int) -> OnIteration | None:
        """What the sampler calls where there is an `on_step`; `count` images, each batch in so many iterations."""
        batches = -(-count // self.sampler.batch_size)
        return how.on_step and progress_reporter(self.sampler.tokenizer, how.on_step, iterations * batches)

    def _own(self, how: SamplingOptions) -> Sampling:
        """The model's sampler, or that of the preset. Raises `BigrError` where there is no such preset."""
        if how.preset is None:
            return self.sampling
        if not self.presets:
            raise BigrError(
                f"preset {how.preset}: this model comes without presets; load it with the params.yaml or recipe that "
                "has them, or set the sampler's options one by one"
            )
        if how.preset not in self.presets:
            raise BigrError(f"preset must be one of {', '.join(self.presets)}, got {how.preset!r}")
        found = self.presets[how.preset]
        try:
            check_limits(found, self.limits())
        except BigrError as error:
            raise BigrError(f"preset {how.preset} does not fit this model: {error}") from None
        return found

    def _sampling(self, sampling: Sampling, how: SamplingOptions, guided: bool = True) -> Sampling:
        """The sampler of one call. Without a class there is no guidance: it would change nothing."""
        found = how.applied(sampling, self.limits())
        return found if guided and self.knows_labels else replace(found, guidance_scale=1.0)

    def _paint(
        self, image: Image.Image, mask: Mask, label: Label, blend: Blend, how: SamplingOptions
    ) -> list[Image.Image]:
        """`variants` copies of `image`, each painted where `mask` bool [H, W] is True."""
        check(blend)
        if label is not None:
            self._check_labels("inpaint without a class")
        own = self._own(how) if label is None else self.editing.painting(self._own(how))
        sampling = self._sampling(own, how, guided=label is not None)
        labels = self._labels([label] * how.variants)
        drawn = [np.array(image) for _ in range(how.variants)]
        parts = parts_of(mask, self.size, self.sampler.network.config.grid)
        report = self._reporter(how, sum(part.iterations(sampling) for part in parts), how.variants)
        for place, part in enumerate(parts):
            paint(
                self.sampler,
                drawn,
                [part] * how.variants,
                labels,
                sampling,
                how.seeds(how.variants, "inpaint", place),
                blend=blend,
                feather=self.editing.feather,
                on_iteration=report,
            )
        return [Image.fromarray(array) for array in drawn]


def _four(numbers: object, name: str) -> tuple[int, int, int, int]:
    """Four whole numbers, given under `name`. Raises `BigrError` for anything else."""
    if (
        not isinstance(numbers, Sequence)
        or len(numbers) != 4
        or not all(isinstance(number, Integral) for number in numbers)
    ):
        raise BigrError(f"{name} must be four whole numbers of pixels (left, top, right, bottom), got {numbers}")
    left, top, right, bottom = (int(number) for number in numbers)
    return left, top, right, bottom
