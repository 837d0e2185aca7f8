"""What the model does without further training, measured on held-out images (docs/method.md, section 5).

Inpainting: the lower half, with the label and without. Editing: the box around what is in the picture, to another
class. Interpolation: its midpoint. Enrichment: of images made half as large. The offline classifier says what is seen.
What is known stays the image's own pixels; what is painted is pasted, without a seam.

Shapes: n images, H×W pixels, N tokens, K bits, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from bigr.data.images import to_tensor
from bigr.evaluation.evaluation_parts import NotApplicable
from bigr.evaluation.fidelity.classifier import Classifier
from bigr.evaluation.protocol import EVALUATION_SEED
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.models.masked.generator import BiGR
from bigr.models.psnr import psnr
from bigr.runtime.progress import Progress
from bigr.runtime.seeds import derive_seed
from bigr.sampling.decode import batched, decoded
from bigr.sampling.editing import enrich_codes, inpaint_codes, interpolate_codes, painting, unknown_tokens
from bigr.sampling.resolution import consistent_with
from bigr.sampling.unmask import Sampling, check_finite

if TYPE_CHECKING:
    from bigr.config import EditingSettings, SamplesSettings

SUBJECT_CONTRAST = 0.2
"""How far a pixel's brightness must be from the background's for it to belong to the subject, of 1."""


@dataclass(frozen=True)
class ZeroShotSettings:
    """Samplers. free: without a label; editing: where a class is painted, and of interpolation."""

    free: Sampling
    editing: Sampling
    enrich_rounds: int

    @classmethod
    def of(cls, samples: "SamplesSettings", editing: "EditingSettings") -> "ZeroShotSettings":
        """The samplers of `bigr.load` under these sections of params.yaml."""
        sampling = Sampling.of(samples)
        free = replace(sampling, guidance_scale=1.0)  # without a label there is nothing to guide to
        painted = painting(sampling, editing.guidance_scale, editing.gumbel_temperature)
        return cls(free, painted, editing.enrich_rounds)


class ZeroShot:
    """The networks, the classifier and the settings, and one method for each application.

    tokenizer, network and classifier are on the same device; knows_labels: whether the model was trained with labels.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        network: BiGR,
        classifier: Classifier,
        settings: ZeroShotSettings,
        batch_size: int,
        *,
        knows_labels: bool = True,
    ) -> None:
        self._tokenizer, self._network, self._classifier = tokenizer, network, classifier
        self._settings, self._batch_size, self._knows_labels = settings, batch_size, knows_labels
        self._classes = network.config.num_classes

    def applications(self, images: Tensor, labels: Tensor, mean: Tensor) -> dict[str, Callable[[], dict[str, float]]]:
        """By name what measures each application, of images uint8 [n, 3, H, W] and their labels int64 [n].

        mean: the mean training picture, float [3, H, W] in [0, 1], which inpainting is compared with. What they return
        is part of `zero_shot` in metrics.json; they raise `NotApplicable` where they would measure nothing.
        """
        return {
            "inpainting": lambda: self.inpainting(images, labels, mean),
            "editing": lambda: self.editing(images, labels),
            "interpolation": lambda: self.interpolation(len(images)),
            "enrichment": lambda: self.enrichment(images, labels),
        }

    def inpainting(self, images: Tensor, labels: Tensor, mean: Tensor) -> dict[str, float]:
        """The lower half, painted anew: the class that is kept where the label is given; PSNR in dB, the mean over
        images, where it is not, beside that of the mean picture's lower half."""
        mask = torch.zeros(len(images), *images.shape[2:], dtype=torch.bool)
        mask[:, images.shape[2] // 2 :] = True
        none = torch.full_like(labels, self._classes)
        freely = self._painted("inpainting without a label", images, mask, none, self._settings.free)
        filled = torch.where(mask.unsqueeze(1), (mean * 255).round().to(torch.uint8), images)
        figures = {"inpaint_psnr": _psnr(freely, images), "mean_fill_psnr": _psnr(filled, images)}
        if self._knows_labels:
            told = self._painted("inpainting", images, mask, labels, self._settings.editing)
            figures["inpaint_label_agreement"] = self._agreement(told, labels)
        return figures

    def editing(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """The box around the subject painted as another class, each in turn: how often that class is then seen."""
        self._check_classes()
        targets = other_classes(labels, self._classes)
        edited = self._painted("editing", images, subject_boxes(images), targets, self._settings.editing)
        return {"edit_label_agreement": self._agreement(edited, targets)}

    def interpolation(self, count: int) -> dict[str, float]:
        """Pictures half-way between two classes: how often one of the two is seen."""
        self._check_classes()
        first = torch.arange(count) % self._classes
        second = other_classes(first, self._classes)

        def draw(places: slice, seeds: list[int]) -> Tensor:
            a, b = self._here(first[places]), self._here(second[places])
            half = torch.full((len(a),), 0.5, device=a.device)
            return interpolate_codes(self._network, a, b, half, self._settings.editing, seeds)

        seen = self._seen(self._drawn("interpolation", count, "interpolate", draw))
        return {"interpolation_agreement": float(((seen == first) | (seen == second)).double().mean())}

    def enrichment(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Images made half as large and enlarged again: the class that is seen, by bicubic interpolation (`bicubic_…`),
        of what the model draws (`drawn_…`), and of that made consistent with the small image, the result
        (`enrich_…`); `consistent_…`: the same correction without the model, of the bicubic image."""
        size = images.shape[-1]
        half = max(1, size // 2)
        small = [_picture(image).resize((half, half), Image.Resampling.BICUBIC) for image in images]
        large = torch.stack([to_tensor(one.resize((size, size), Image.Resampling.BICUBIC)) for one in small])
        none = torch.full_like(labels, self._classes)

        def draw(places: slice, seeds: list[int]) -> Tensor:
            codes = self._tokenizer.codes(self._here(large[places]).float() / 255)
            how, rounds = self._settings.free, self._settings.enrich_rounds
            return enrich_codes(self._network, codes, self._here(none[places]), how, seeds, rounds=rounds)

        drawn = self._drawn("enrichment", len(images), "enrich", draw)

        def consistent(pictures: Tensor) -> Tensor:
            pairs = zip(small, pictures, strict=True)
            return torch.stack([to_tensor(consistent_with(one, _picture(picture))) for one, picture in pairs])

        return {
            "enrich_label_agreement": self._agreement(consistent(drawn), labels),
            "bicubic_label_agreement": self._agreement(large, labels),
            "drawn_label_agreement": self._agreement(drawn, labels),
            "consistent_label_agreement": self._agreement(consistent(large), labels),
        }

    def _check_classes(self) -> None:
        if not self._knows_labels:
            raise NotApplicable("the model was trained without labels")
        if self._classes < 2:
            raise NotApplicable("there is one class, and no other")

    def _painted(self, what: str, images: Tensor, mask: Tensor, labels: Tensor, sampling: Sampling) -> Tensor:
        """Images uint8 [n, 3, H, W] whose pixels in mask bool [n, H, W] are the model's."""
        unknown = unknown_tokens(mask, self._network.config.grid)

        def draw(places: slice, seeds: list[int]) -> Tensor:
            codes = self._tokenizer.codes(self._here(images[places]).float() / 255)
            return inpaint_codes(
                self._network, codes, self._here(unknown[places]), self._here(labels[places]), sampling, seeds
            )

        return torch.where(mask.unsqueeze(1), self._drawn(what, len(images), "inpaint", draw), images)

    def _drawn(self, what: str, count: int, place: str, draw: Callable[[slice, list[int]], Tensor]) -> Tensor:
        """What `draw` makes of slices of the images and their seeds, decoded: uint8 [count, 3, H, W] on the CPU."""
        check_finite(self._network)
        parts = []
        with Progress(what, count, unit="image") as progress:
            for places in batched(count, self._batch_size):
                seeds = [derive_seed(EVALUATION_SEED, "zero-shot", place, index) for index in places]
                with torch.no_grad():
                    codes = draw(slice(places.start, places.stop), seeds)
                parts.append(decoded(self._tokenizer, codes).permute(0, 3, 1, 2))
                progress.advance(len(places))
        return torch.cat(parts)

    def _seen(self, images: Tensor) -> Tensor:
        return torch.cat([self._classifier.predict(batch) for batch in images.split(self._batch_size)])

    def _agreement(self, images: Tensor, labels: Tensor) -> float:
        return float((self._seen(images) == labels).double().mean())

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._network.backbone.mask_tok.device)


def other_classes(labels: Tensor, classes: int) -> Tensor:
    """Another class for each label int64 [n]: one further, two further, … in turn."""
    return (labels + 1 + torch.arange(len(labels)) % (classes - 1)) % classes


def subject_boxes(images: Tensor) -> Tensor:
    """Images uint8 [n, 3, H, W] → masks bool [n, H, W]: the box around what differs from the background.

    The background is the median brightness of the picture's border. Where nothing differs from it, the whole picture is
    marked.
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


def _psnr(images: Tensor, originals: Tensor) -> float:
    return float(psnr(images.double(), originals.double(), peak=255).mean())


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
