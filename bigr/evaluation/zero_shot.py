"""What the model does without further training, measured on held-out images (docs/method.md, section 5).

The images are those that `ImageModel` draws; the offline classifier tells their classes. What is painted is pasted.

Shapes: n images, H×W pixels, S the model's size, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bigr.data.images import to_image, to_tensor
from bigr.evaluation.evaluation_parts import NotApplicable
from bigr.evaluation.fidelity.classifier import Classifier
from bigr.evaluation.imagesets.image_stream import ImageStream
from bigr.evaluation.protocol import EVALUATION_SEED
from bigr.imaging.model import ImageModel
from bigr.imaging.options import Editing
from bigr.imaging.painting import enlarge, paint, parts_of
from bigr.imaging.sampler import Sampler
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.models.masked.generator import BiGR
from bigr.models.psnr import psnr
from bigr.runtime.distributed import is_main, my_range, of_each, together
from bigr.runtime.progress import Progress
from bigr.runtime.seeds import derive_seed
from bigr.runtime.transfer import to_device
from bigr.sampling.decode import batched
from bigr.sampling.editing import interpolate_codes
from bigr.sampling.resolution import consistent_with
from bigr.sampling.unmask import Sampling

if TYPE_CHECKING:
    from bigr.config import EditingSettings, SamplesSettings

SUBJECT_CONTRAST = 0.2
"""How far a pixel's brightness must be from the background's for it to belong to the subject, of 1."""


def measured_model(
    tokenizer: Tokenizer,
    network: BiGR,
    samples: "SamplesSettings",
    editing: "EditingSettings",
    batch_size: int,
    *,
    knows_labels: bool = True,
) -> ImageModel:
    """The model of `bigr.load` under these sections of params.yaml, in float32; both networks are on one device."""
    sampler = Sampler(tokenizer, network, batch_size, nullcontext)
    names = [str(number) for number in range(network.config.num_classes)]
    return ImageModel(sampler, Sampling.of(samples), Editing.of(editing), names, knows_labels=knows_labels)


class Share(NamedTuple):
    """What a process measures of n images: their numbers, of 0..n; the images uint8 [m, 3, H, W]; the labels of all n,
    int64 [n].
    """

    numbers: range
    images: Tensor
    labels: Tensor

    def of(self, rows: Tensor) -> Tensor:
        """Those of n rows that are this process's."""
        return rows[self.numbers.start : self.numbers.stop]


class ZeroShot:
    """The model, the classifier, and one method for each application, which measures a process's share of the images.

    They return a value of each image, under the name of its mean in metrics.json.
    """

    def __init__(self, model: ImageModel, classifier: Classifier, batch_size: int) -> None:
        self._model, self._classifier, self._batch_size = model, classifier, batch_size
        self._classes = len(model.classes)

    def applications(
        self, images: ImageStream, labels: Tensor, mean: Tensor
    ) -> dict[str, Callable[[], dict[str, float]]]:
        """By name what measures each application, of n images and their labels int64 [n].

        mean: the mean training image, float [3, H, W] in [0, 1]. They return parts of `zero_shot` in metrics.json, and
        raise `NotApplicable` where they would measure nothing. All processes must call them, in this order.
        """
        numbers = my_range(len(images))
        none = torch.empty(0, 3, self._model.size, self._model.size, dtype=torch.uint8)
        mine = together(lambda: torch.cat([none, *images.batches(self._batch_size, numbers)]))
        share = Share(numbers, mine, labels)

        def shared(measure: Callable[[], dict[str, Tensor]]) -> dict[str, float]:
            return means(together(lambda: measure() if numbers else {}))

        def of_classes(measure: Callable[[], dict[str, Tensor]]) -> dict[str, float]:
            self._check_classes()
            return shared(measure)

        return {
            "inpainting": lambda: shared(lambda: self.inpainting(share, mean)),
            "editing": lambda: of_classes(lambda: self.editing(share)),
            "interpolation": lambda: of_classes(lambda: self.interpolation(share)),
            "enrichment": lambda: shared(lambda: self.enrichment(share)),
        }

    def inpainting(self, share: Share, mean: Tensor) -> dict[str, Tensor]:
        """The lower half, painted anew: whether the class is kept where the label is given; PSNR in dB where it is
        not, beside that of the mean image's lower half."""
        images = share.images
        mask = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
        mask[:, images.shape[2] // 2 :] = True
        unlabelled = self._painted("inpainting without a label", share, mask, None)
        filled = torch.where(mask.unsqueeze(1), (mean * 255).round().to(torch.uint8), images)
        values = {"inpaint_psnr": _psnr(unlabelled, images), "mean_fill_psnr": _psnr(filled, images)}
        if self._model.knows_labels:
            labels = share.of(share.labels)
            values["inpaint_label_agreement"] = self._seen(self._painted("inpainting", share, mask, labels)) == labels
        return values

    def editing(self, share: Share) -> dict[str, Tensor]:
        """The box around the subject painted as another class, each in turn: whether that class is then seen."""
        targets = share.of(other_classes(share.labels, self._classes))
        edited = self._painted("editing", share, subject_boxes(share.images), targets)
        return {"edit_label_agreement": self._seen(edited) == targets}

    def interpolation(self, share: Share) -> dict[str, Tensor]:
        """Images half-way between two classes: whether one of the two is seen."""
        of_all = torch.arange(len(share.labels)) % self._classes
        first, second = share.of(of_all), share.of(other_classes(of_all, self._classes))

        def draw(some: slice, seeds: list[int]) -> Tensor:
            return interpolated(self._model, first[some], second[some], 0.5, seeds)

        seen = self._seen(self._drawn("interpolation", share.numbers, "interpolate", draw))
        return {"interpolation_agreement": (seen == first) | (seen == second)}

    def enrichment(self, share: Share) -> dict[str, Tensor]:
        """Images made half as large and enlarged again: whether their class is seen, each under its name.

        bicubic: in the bicubic interpolation; drawn: in what the model draws; enrich: in that made consistent with the
        small image, the result of `ImageModel.enrich`; consistent: in the bicubic image with the same correction.
        """
        images, labels = share.images, share.of(share.labels)
        size = images.shape[-1]
        half = max(1, size // 2)
        small = [to_image(image).resize((half, half), Image.Resampling.BICUBIC) for image in images]
        large = _pixels([one.resize((size, size), Image.Resampling.BICUBIC) for one in small])

        drawn = self._drawn(
            "enrichment", share.numbers, "enrich", lambda some, seeds: enriched(self._model, small[some], seeds)
        )

        def consistent(drawings: Tensor) -> Tensor:
            pairs = zip(small, drawings, strict=True)
            return _pixels([consistent_with(one, to_image(drawing)) for one, drawing in pairs])

        return {
            "enrich_label_agreement": self._seen(consistent(drawn)) == labels,
            "bicubic_label_agreement": self._seen(large) == labels,
            "drawn_label_agreement": self._seen(drawn) == labels,
            "consistent_label_agreement": self._seen(consistent(large)) == labels,
        }

    def _check_classes(self) -> None:
        if not self._model.knows_labels:
            raise NotApplicable("the model knows no classes")
        if self._classes < 2:
            raise NotApplicable("there is one class, and no other")

    def _painted(self, what: str, share: Share, masks: Tensor, labels: Tensor | None) -> Tensor:
        def draw(some: slice, seeds: list[int]) -> Tensor:
            own = None if labels is None else labels[some]
            return painted(self._model, share.images[some], masks[some], own, seeds)

        return self._drawn(what, share.numbers, "inpaint", draw)

    def _drawn(self, what: str, numbers: range, place: str, draw: Callable[[slice, list[int]], Tensor]) -> Tensor:
        """The images that `draw` returns for slices of 0..m and their seeds: uint8 [m, 3, H, W]; numbers: of these."""
        self._model.check_finite()
        parts = []
        with Progress(what, len(numbers), unit="image", enabled=is_main()) as progress:
            for places in batched(len(numbers), self._batch_size):
                some = slice(places.start, places.stop)
                parts.append(draw(some, [derive_seed(EVALUATION_SEED, "zero-shot", place, n) for n in numbers[some]]))
                progress.advance(len(places))
        return torch.cat(parts)

    def _seen(self, images: Tensor) -> Tensor:
        return torch.cat([self._classifier.predict(batch) for batch in images.split(self._batch_size)])


def means(values: Mapping[str, Tensor]) -> dict[str, float]:
    """The means over the images of all processes, of values of this process's images [m]; none where it has none."""
    every = [part for part in of_each(dict(values)) if part]
    return {name: float(torch.cat([part[name] for part in every]).double().mean()) for name in every[0]}


def painted(model: ImageModel, images: Tensor, masks: Tensor, labels: Tensor | None, seeds: Sequence[int]) -> Tensor:
    """`ImageModel.inpaint` of images uint8 [n, 3, S, S] of the model's size, each with a seed of its own.

    masks: bool [n, S, S], pasted; labels: int64 [n], or None for no class.
    """
    sampler, drawn = model.sampler, [np.array(to_image(image)) for image in images]
    parts = [parts_of(mask.numpy(), model.size, sampler.network.config.grid)[0] for mask in masks]
    if labels is None:
        labels, sampling = _no_class(model, len(images)), replace(model.sampling, guidance_scale=1.0)
    else:
        sampling = model.editing.painting(model.sampling)
    paint(sampler, drawn, parts, to_device(labels, sampler.device), sampling, seeds, blend="none", feather=0.0)
    return _pixels([Image.fromarray(image) for image in drawn])


def interpolated(model: ImageModel, first: Tensor, second: Tensor, ratio: float, seeds: Sequence[int]) -> Tensor:
    """`ImageModel.interpolate`: an image uint8 [n, 3, S, S] at r = `ratio` between classes int64 [n], one per seed."""
    device = model.sampler.device
    rows = to_device(first, device), to_device(second, device), torch.full((len(seeds),), ratio, device=device)
    return _pixels(
        model.sampler.draw(interpolate_codes, *rows, sampling=model.editing.painting(model.sampling), seeds=seeds)
    )


def enriched(model: ImageModel, small: Sequence[Image.Image], seeds: Sequence[int]) -> Tensor:
    """`ImageModel.enrich` of square images without a label, not made consistent: uint8 [n, 3, S, S], one per seed."""
    labels = to_device(_no_class(model, len(small)), model.sampler.device)
    sampling = replace(model.editing.enriching(model.sampling), guidance_scale=1.0)
    return _pixels(enlarge(model.sampler, small, labels, sampling, seeds, rounds=model.editing.enrich_rounds))


def _no_class(model: ImageModel, count: int) -> Tensor:
    return model.sampler.network.backbone.unconditional(count)


def other_classes(labels: Tensor, classes: int) -> Tensor:
    """Another class for each label int64 [n]: one further, two further, … in turn."""
    return (labels + 1 + torch.arange(len(labels)) % (classes - 1)) % classes


def subject_boxes(images: Tensor) -> Tensor:
    """Images uint8 [n, 3, H, W] → masks bool [n, H, W]: the box around what differs from the border's median
    brightness.

    Where nothing differs from it, the whole image is marked.
    """
    bright = images.float().mean(1) / 255
    border = torch.cat([bright[:, 0], bright[:, -1], bright[:, :, 0], bright[:, :, -1]], dim=1)
    subject = (bright - border.median(1).values[:, None, None]).abs() > SUBJECT_CONTRAST
    rows, columns = (_between(subject.any(dim)) for dim in (2, 1))
    boxes = rows.unsqueeze(2) & columns.unsqueeze(1)
    return boxes | ~boxes.any(dim=(1, 2), keepdim=True)


def _between(marked: Tensor) -> Tensor:
    """bool [n, L]: from the first to the last place that is marked."""
    forward, backward = marked.cumsum(1) > 0, marked.flip(1).cumsum(1).flip(1) > 0
    return forward & backward


def _psnr(images: Tensor, originals: Tensor) -> Tensor:
    return psnr(images.double(), originals.double(), peak=255)


def _pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """uint8 [n, 3, H, W]."""
    return torch.stack([to_tensor(picture) for picture in pictures])
