"""What all processes of the stage `evaluation` measure together, before the first one writes it.

Every process calls `measure`. In each of its parts all processes take the same steps, whatever fails in one of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bigr.data.codes import CodesDataset
from bigr.data.shards import ShardIndex
from bigr.data.sources.source import SPLITS
from bigr.evaluation.evaluation_parts import Attempt, NotApplicable
from bigr.evaluation.fidelity.classifier import Classifier, train_on_shards
from bigr.evaluation.fidelity.extractors import Extractor, classifier_extractor, inception_extractor
from bigr.evaluation.fidelity.statistics import measure_share
from bigr.evaluation.imagesets.image_stream import ImageStream, mean_psnr
from bigr.evaluation.representation.features import Features, layer_features
from bigr.evaluation.representation.linear_probe import selection
from bigr.evaluation.representation.representation_metrics import Neighbourhood, neighbourhood
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.models.masked.generator import BiGR
from bigr.runtime.distributed import from_first, is_main, my_range, of_each, together, world
from bigr.runtime.errors import BigrError

if TYPE_CHECKING:
    from bigr.config import EvaluationSettings as Section
    from bigr.config import Settings


@dataclass(frozen=True)
class Inputs:
    """What is measured, and with what.

    inception: its weights, where it is the extractor; sets: samples, reconstructions, train and val; labels: of the
    validation images, int64 [n]; unfinished: the folder of features.
    """

    settings: "Settings"
    device: torch.device
    root: Path
    shards: ShardIndex
    codes: Mapping[str, CodesDataset]
    tokenizer: Tokenizer
    model: BiGR
    inception: Mapping[str, Tensor] | None
    sets: Mapping[str, ImageStream]
    labels: Tensor
    unfinished: Path

    @property
    def section(self) -> "Section":
        """The settings `evaluation`."""
        return self.settings.evaluation

    @property
    def classes(self) -> list[str]:
        """The names of the classes."""
        return self.shards.classes


@dataclass(frozen=True)
class Measured:
    """The results, or what they failed with. seen: the classifier's predictions for each set; looked: the extractor,
    whose features of each set are on disk; features: of both splits, and k-NN on them.
    """

    classifier: Attempt[Classifier]
    seen: Mapping[str, Attempt[Tensor]]
    looked: Attempt[Extractor]
    psnr: Attempt[float]
    features: Attempt[tuple[Features, Features, Neighbourhood]]


def measure(inputs: Inputs) -> Measured:
    """Measure; each process its share."""
    section, sets = inputs.section, inputs.sets
    classifier = Attempt(lambda: shared_classifier(inputs))
    return Measured(
        classifier=classifier,
        seen={
            name: Attempt(partial(predictions, classifier, sets[name], section.batch_size))
            for name in ("val", "reconstructions", "samples")
        },
        looked=Attempt(lambda: look(inputs, classifier)),
        psnr=Attempt(lambda: mean_psnr(sets["reconstructions"], sets["val"], section.batch_size)),
        features=Attempt(lambda: layers(inputs)),
    )


def shared_classifier(inputs: Inputs) -> Classifier:
    """The classifier, which the first process trains, in every process."""
    device, shards = inputs.device, inputs.root / "data" / "shards"

    def train() -> Classifier:
        return train_on_shards(inputs.section, shards, inputs.settings.run.workers, device)

    trained = together(lambda: train() if is_main() else None)
    if trained is not None and world() == 1:
        return trained
    state = None if trained is None else {name: value.cpu() for name, value in trained.state_dict().items()}
    config, state = from_first((None if trained is None else trained.config, state))
    if trained is None:
        assert config is not None and state is not None
        trained = Classifier(config)
        trained.load_state_dict(state)
    ready = trained.eval().requires_grad_(False)
    return together(lambda: ready.to(device))


def needed(classifier: Attempt[Classifier]) -> Classifier:
    """The classifier, for a part that looks through it. Raises `NotApplicable` where its training failed."""
    if classifier.error is not None:
        raise NotApplicable("it needs the classifier, which failed")
    return classifier.result()


def predictions(classifier: Attempt[Classifier], images: ImageStream, batch_size: int) -> Tensor:
    """The class that the classifier sees in each image, int64 [n]; each process looks at its share."""
    seeing, mine = needed(classifier), my_range(len(images), batch_size)
    seen = together(lambda: [seeing.predict(batch) for batch in images.batches(batch_size, mine)])
    return torch.cat([batch for part in of_each(seen) for batch in part])


def look(inputs: Inputs, classifier: Attempt[Classifier]) -> Extractor:
    """The extractor of the distances, after every process has looked at its share of each set through it."""
    if inputs.inception is None:
        known = needed(classifier)
        extractor = together(lambda: classifier_extractor(known, inputs.device))
    else:
        weights = inputs.inception
        extractor = together(lambda: inception_extractor(weights, inputs.device))
    for name, images in inputs.sets.items():
        share = partial(measure_share, extractor, images, inputs.section.batch_size, inputs.unfinished, name=name)
        together(share)
    return extractor


def check_probe(section: "Section", classes: int, images: int) -> None:
    """Raise `NotApplicable` where there is one class, or too few training images to choose a layer by."""
    if classes < 2:
        raise NotApplicable("there is one class: nothing to tell it from")
    try:
        selection(images, section.selection_fraction)
    except BigrError as error:
        raise NotApplicable(str(error)) from None


def layers(inputs: Inputs) -> tuple[Features, Features, Neighbourhood]:
    """Every layer's features of both splits, and k-NN on them."""
    section, device, classes = inputs.section, inputs.device, len(inputs.classes)
    model = together(lambda: inputs.model.to(device))
    counts = {"train": min(section.probe_images, inputs.shards.images("train")), "val": len(inputs.sets["val"])}
    check_probe(section, classes, counts["train"])
    train, val = (
        layer_features(inputs.unfinished, split, model, inputs.codes[split], counts[split], section.batch_size)
        for split in SPLITS
    )
    return train, val, neighbourhood(section, train, val, classes, device)
