"""The linear probe."""

import pytest
import torch

from bigr.evaluation.features import Features
from bigr.evaluation.probe import linear_probe
from tests.worlds import features_of

CPU = torch.device("cpu")
OPTIONS = {"epochs": 10, "batch_size": 64, "learning_rate": 0.01, "weight_decay": 0.0, "device": CPU}
CLASSES, WIDTH = 8, 16


def noise(images: int, layers: int, seed: int) -> torch.Tensor:
    return torch.randn(images, layers, WIDTH, generator=torch.Generator().manual_seed(seed))


def separable(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """[n, 1, D] with one direction a class, on a scale and an offset that the normalisation must take away."""
    directions = torch.eye(WIDTH)[labels]
    return ((directions * 5 + noise(len(labels), 1, seed)[:, 0] * 0.3) / 1000 + 5)[:, None]


@pytest.fixture(scope="module")
def splits() -> tuple[Features, Features]:
    """Features [n, 2, D] of train and val: layer 1 is noise, layer 2 tells the classes apart."""
    made = []
    for images, seed in ((640, 0), (320, 10)):
        labels = torch.arange(images) % CLASSES
        made.append(features_of(torch.cat([noise(images, 1, seed), separable(labels, seed + 1)], dim=1), labels))
    return made[0], made[1]


def test_a_probe_reads_separable_classes_and_is_at_chance_on_noise(splits) -> None:
    result = linear_probe(*splits, classes=CLASSES, **OPTIONS)
    assert result.top1[1] == 1
    assert result.top1[0] == pytest.approx(1 / CLASSES, abs=0.08)
    assert result.top5[0] == pytest.approx(5 / CLASSES, abs=0.1)
    assert result.best == 2


def test_probes_of_several_layers_are_what_each_would_be_alone(splits) -> None:
    together = linear_probe(*splits, classes=CLASSES, **OPTIONS)
    first_layers = [features_of(f.rows(slice(None), CPU)[:, :1], f.labels) for f in splits]
    alone = linear_probe(*first_layers, classes=CLASSES, **OPTIONS)
    assert together.top1[0] == alone.top1[0]


def test_the_same_features_give_the_same_accuracies_whatever_torchs_seed(splits) -> None:
    torch.manual_seed(1)
    first = linear_probe(*splits, classes=CLASSES, **OPTIONS)
    torch.manual_seed(2)
    assert linear_probe(*splits, classes=CLASSES, **OPTIONS) == first


def test_top5_is_everything_where_there_are_fewer_classes() -> None:
    labels = torch.arange(60) % 3
    features = features_of(noise(60, 2, seed=0), labels)
    assert linear_probe(features, features, classes=3, **OPTIONS).top5 == [1, 1]


def test_a_split_smaller_than_a_batch_still_trains() -> None:
    labels = torch.arange(32) % CLASSES
    features = features_of(separable(labels, seed=0), labels)
    result = linear_probe(features, features, classes=CLASSES, **OPTIONS | {"epochs": 100})
    assert result.top1 == [1]
