"""What is compared: a trained model under a sampler's settings; and the quality of its samples.

Shapes: n images, H×W pixels.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bigr.data.shards import ShardIndex, read_split
from bigr.evaluation.fidelity.classifier import Classifier, train_on_shards
from bigr.evaluation.fidelity.distances import Fidelity, metric_names
from bigr.evaluation.fidelity.extractors import CLASSIFIER, classifier_extractor
from bigr.evaluation.fidelity.statistics import Statistics, measure
from bigr.evaluation.imagesets.image_stream import ImageStream, split_images
from bigr.interop.folders import load_model, save
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.models.masked.generator import BiGR
from bigr.runtime.cpu_parts import in_parts
from bigr.runtime.device import resolve_device
from bigr.runtime.precision import autocast
from bigr.runtime.seeds import derive_seed
from bigr.sampling.decode import batched, decoded
from bigr.sampling.inputs import balanced_labels
from bigr.sampling.unmask import Sampling, sample_codes

if TYPE_CHECKING:
    from bigr.config import Settings


@dataclass
class Drawing:
    """A tokenizer and a generator that draw images in batches of `samples.batch_size`."""

    tokenizer: Tokenizer
    model: BiGR
    settings: "Settings"

    @classmethod
    def of(cls, folder: Path, settings: "Settings") -> "Drawing":
        """The models below `folder`/models, on the settings' device."""
        device = resolve_device(settings.run.device)
        tokenizer = load_model(folder / "models" / "tokenizer", Tokenizer).to(device)
        return cls(tokenizer, load_model(folder / "models" / "bigr", BiGR).to(device), settings)

    def images(self, sampling: Sampling, count: int, *place: str | int) -> tuple[Tensor, Tensor]:
        """Images uint8 [n, 3, H, W] and their labels int64 [n], the same number of each class; place: of the seeds."""
        labels = balanced_labels(count, self.model.config.num_classes)
        seeds = [derive_seed(self.settings.seed, "frontier", *place, index) for index in range(count)]
        size = self.settings.samples.batch_size
        batches = [slice(places.start, places.stop) for places in batched(count, size)]
        drawn = [self._batch(sampling, labels[places], seeds[places]) for places in batches]
        return torch.cat(drawn).permute(0, 3, 1, 2), labels

    def batch(self, sampling: Sampling) -> None:
        """Draw one batch, for its time."""
        count = self.settings.samples.batch_size
        self._batch(sampling, balanced_labels(count, self.model.config.num_classes), range(count))

    def _batch(self, sampling: Sampling, labels: Tensor, seeds: Sequence[int]) -> Tensor:
        device = self.model.backbone.mask_tok.device

        def draw(part: slice) -> Tensor:
            with autocast(device, self.settings.run.precision, self.model.config.dim):
                codes = sample_codes(self.model, labels[part].to(device), sampling, seeds[part])
            return decoded(self.tokenizer, codes, self.settings.run.decode_precision)

        return torch.cat(in_parts(draw, range(len(seeds)), self.model.config.grid**2, device))


class Quality:
    """Metrics of samples: the means over classifiers with seeds of their own, each of which is trained once.

    folder: where the classifiers are kept. accuracy: of the classifiers, on the held-out images.
    """

    def __init__(self, project: Path, folder: Path, settings: "Settings", seeds: Sequence[int]) -> None:
        self._judges = [Judge(project, folder / f"classifier-{seed}", settings, seed) for seed in seeds]
        self.accuracy = statistics.fmean(judge.accuracy for judge in self._judges)

    def of(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """over_floor, agreement, precision and recall of images uint8 [n, 3, H, W] with labels int64 [n]."""
        found = [judge.of(images, labels) for judge in self._judges]
        return {metric: statistics.fmean(one[metric] for one in found) for metric in found[0]}


class Judge:
    """Metrics of samples in the features of one classifier.

    accuracy: of the classifier, on the held-out images; floor: the Fréchet distance of the held-out images to the
    training split.
    """

    def __init__(self, project: Path, folder: Path, settings: "Settings", seed: int) -> None:
        section, device, shards = settings.evaluation, resolve_device(settings.run.device), project / "data" / "shards"
        if not (folder / "config.json").is_file():
            save(folder, train_on_shards(section, shards, settings.run.workers, device, seed=seed))
        self._classifier = load_model(folder, Classifier).to(device)
        self._extractor, self._size = classifier_extractor(self._classifier, device), section.batch_size
        self._fidelity = Fidelity.of(section, device)
        index = ShardIndex.load(shards)
        real = {
            split: split_images(shards, split, min(section.reference_images, index.images(split)), settings.run.workers)
            for split in ("train", "val")
        }
        self._train = self._statistics(real["train"])
        labels = [label for _, label in read_split(shards, "val", settings.run.workers)]
        self.accuracy = self._agreement(real["val"], torch.tensor(labels[: len(real["val"])]))
        self.floor = self._fidelity.compare(self._statistics(real["val"]), self._train)[_DISTANCE]

    def of(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """over_floor, agreement, precision and recall of images uint8 [n, 3, H, W] with labels int64 [n]."""
        stream = ImageStream(len(images), lambda: iter(images))
        found = self._fidelity.compare(self._statistics(stream), self._train)
        return {
            "over_floor": found[_DISTANCE] / self.floor,
            "agreement": self._agreement(stream, labels),
            "precision": found["precision"],
            "recall": found["recall"],
        }

    def _statistics(self, images: ImageStream) -> Statistics:
        return measure(self._extractor, images, self._size)

    def _agreement(self, images: ImageStream, labels: Tensor) -> float:
        seen = torch.cat([self._classifier.predict(batch) for batch in images.batches(self._size)])
        return float((seen == labels).double().mean())


_DISTANCE = metric_names(CLASSIFIER).distance
