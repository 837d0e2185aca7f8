"""The linear probe."""

import pytest
import torch

from bigr.evaluation.representation.features import Features
from bigr.evaluation.representation.linear_probe import LayerAccuracies, linear_probe, selection
from bigr.runtime.errors import BigrError
from tests.worlds import features_of

CPU = torch.device("cpu")
OPTIONS = {"epochs": 10, "batch_size": 64, "learning_rate": 0.01, "weight_decay": 0.0, "device": CPU}
CLASSES, WIDTH = 8, 16


def probed(train: Features, val: Features, **options) -> LayerAccuracies:
    """`linear_probe` with a tenth of the training images held out."""
    return linear_probe(train, val, held_out=selection(len(train), 0.1), **options)


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
    result = probed(*splits, classes=CLASSES, **OPTIONS)
    assert result.top1[1] == 1
    assert result.top1[0] == pytest.approx(1 / CLASSES, abs=0.08)
    assert result.top5[0] == pytest.approx(5 / CLASSES, abs=0.1)
    assert result.best == 2


def test_the_layer_is_chosen_by_training_images_that_were_held_out(splits) -> None:
    """In one layer the held-out training images tell their class, in the other the validation images do."""
    train, val = (f.rows(slice(None), CPU) for f in splits)
    labels, held_out = splits[0].labels, selection(640, 0.1)
    train[:, 0] = train[:, 1]
    val[:, 0] = noise(320, 1, seed=20)[:, 0]
    train[held_out, 1] = noise(len(held_out), 1, seed=21)[:, 0] / 1000 + 5
    options = OPTIONS | {"epochs": 100}
    found = linear_probe(
        features_of(train, labels), features_of(val, splits[1].labels), held_out=held_out, classes=CLASSES, **options
    )
    assert found.top1[1] == 1 > found.top1[0] and found.selection[0] == 1 > found.selection[1]
    assert found.best == 1


def test_held_out_images_are_not_trained_on(splits) -> None:
    train, val = splits
    held_out, labels = selection(640, 0.1), splits[0].labels.clone()
    labels[held_out] = (labels[held_out] + 1) % CLASSES
    misled = features_of(train.rows(slice(None), CPU), labels)
    options = {"held_out": held_out, "classes": CLASSES, **OPTIONS}
    found, expected = linear_probe(misled, val, **options), linear_probe(train, val, **options)
    assert (found.top1, found.top5) == (expected.top1, expected.top5)
    assert (found.selection[1], expected.selection[1]) == (0, 1)


def test_a_selection_is_a_share_of_the_images_drawn_once_and_one_at_least() -> None:
    held_out = selection(1000, 0.1)
    assert held_out.unique().tolist() == held_out.tolist() and len(held_out) == 100
    assert 300 < held_out.double().mean() < 700  # not the first: an image folder is in the order of its classes
    assert torch.equal(held_out, selection(1000, 0.1))
    assert len(selection(3, 0.01)) == 1
    with pytest.raises(BigrError, match="2 images"):
        selection(2, 0.1)


def test_probes_of_several_layers_are_what_each_would_be_alone(splits) -> None:
    together = probed(*splits, classes=CLASSES, **OPTIONS)
    first_layers = [features_of(f.rows(slice(None), CPU)[:, :1], f.labels) for f in splits]
    alone = probed(*first_layers, classes=CLASSES, **OPTIONS)
    assert together.top1[0] == alone.top1[0]


def test_the_same_features_give_the_same_accuracies_whatever_torchs_seed(splits) -> None:
    torch.manual_seed(1)
    first = probed(*splits, classes=CLASSES, **OPTIONS)
    torch.manual_seed(2)
    assert probed(*splits, classes=CLASSES, **OPTIONS) == first


def test_top5_is_everything_where_there_are_fewer_classes() -> None:
    labels = torch.arange(60) % 3
    features = features_of(noise(60, 2, seed=0), labels)
    assert probed(features, features, classes=3, **OPTIONS).top5 == [1, 1]


def test_a_split_smaller_than_a_batch_still_trains() -> None:
    labels = torch.arange(32) % CLASSES
    features = features_of(separable(labels, seed=0), labels)
    result = probed(features, features, classes=CLASSES, **OPTIONS | {"epochs": 100})
    assert result.top1 == [1]
