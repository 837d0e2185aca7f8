"""The linear probe."""

import pytest
import torch

from bigr.evaluation.probe import layer_features, linear_probe
from bigr.models.bigr import BiGR, BiGRConfig
from tests.worlds import write_codes

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
def splits() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Features [n, 2, D] of train and val: layer 1 is noise, layer 2 tells the classes apart."""
    made = []
    for images, seed in ((640, 0), (320, 10)):
        labels = torch.arange(images) % CLASSES
        made.append((torch.cat([noise(images, 1, seed), separable(labels, seed + 1)], dim=1), labels))
    return made[0], made[1]


def test_a_probe_reads_separable_classes_and_is_at_chance_on_noise(splits) -> None:
    result = linear_probe(*splits, classes=CLASSES, **OPTIONS)
    assert result.top1[1] == 1
    assert result.top1[0] == pytest.approx(1 / CLASSES, abs=0.08)
    assert result.top5[0] == pytest.approx(5 / CLASSES, abs=0.1)
    assert result.best == 2


def test_probes_of_several_layers_are_what_each_would_be_alone(splits) -> None:
    (train, labels), (val, val_labels) = splits
    together = linear_probe(*splits, classes=CLASSES, **OPTIONS)
    alone = linear_probe((train[:, :1], labels), (val[:, :1], val_labels), classes=CLASSES, **OPTIONS)
    assert together.top1[0] == alone.top1[0]


def test_the_same_features_give_the_same_accuracies_whatever_torchs_seed(splits) -> None:
    torch.manual_seed(1)
    first = linear_probe(*splits, classes=CLASSES, **OPTIONS)
    torch.manual_seed(2)
    assert linear_probe(*splits, classes=CLASSES, **OPTIONS) == first


def test_top5_is_everything_where_there_are_fewer_classes() -> None:
    labels = torch.arange(60) % 3
    features = noise(60, 2, seed=0)
    assert linear_probe((features, labels), (features, labels), classes=3, **OPTIONS).top5 == [1, 1]


def test_a_split_smaller_than_a_batch_still_trains() -> None:
    labels = torch.arange(32) % CLASSES
    features = separable(labels, seed=0)
    result = linear_probe((features, labels), (features, labels), classes=CLASSES, **OPTIONS | {"epochs": 100})
    assert result.top1 == [1]


def test_features_are_token_averages_of_every_layer_whatever_the_batch(tmp_path) -> None:
    codes = write_codes(tmp_path, classes=3, images=20)
    torch.manual_seed(0)
    model = BiGR(BiGRConfig(24, 4, 3, 32, 2, 2, 32, 1, ffn_multiple_of=32)).eval()
    features, labels = layer_features(model, codes, 18, batch_size=5)
    bits, expected_labels = codes.batch(torch.arange(18))
    with torch.no_grad():
        expected = torch.stack([layer.mean(1) for layer in model.features(bits)], dim=1)
    assert torch.equal(labels, expected_labels)
    assert features.shape == (18, 2, 32)
    torch.testing.assert_close(features, expected)
