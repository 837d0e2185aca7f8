"""The instruments as the section `evaluation` of params.yaml describes them."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bigr.data.shards import ImageBatches, ShardIndex
from bigr.evaluation.fidelity.classifier import INSTRUMENT_SEED, Classifier, ClassifierConfig, train_classifier
from bigr.evaluation.fidelity.distances import Fidelity
from bigr.runtime.seeds import derive_seed

if TYPE_CHECKING:
    from bigr.config import EvaluationSettings as Section


def train_offline(
    section: "Section", folder: Path, shards: ShardIndex, workers: int, device: torch.device
) -> Classifier:
    """The offline classifier, trained on the training split: the same for every model over the same shards."""
    stream = ImageBatches(
        folder,
        "train",
        section.classifier_batch_size,
        seed=derive_seed(INSTRUMENT_SEED, "classifier", "order"),
        horizontal_flip=False,
        workers=workers,
    )
    width, features = section.classifier_channels, section.classifier_features
    return train_classifier(
        stream.from_step(0),
        ClassifierConfig(shards.image_size, len(shards.classes), width, features),
        steps=section.classifier_steps,
        learning_rate=section.classifier_learning_rate,
        device=device,
    )


def instrument(section: "Section", device: torch.device) -> Fidelity:
    """What measures distances between sets of images, whatever the extractor."""
    return Fidelity(
        kid_subsets=section.kid_subsets,
        kid_subset_size=section.kid_subset_size,
        neighbours=section.precision_recall_neighbours,
        seed=derive_seed(INSTRUMENT_SEED, "fidelity"),
        device=device,
    )
