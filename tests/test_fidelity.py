"""Distances between sets of images: torch-fidelity over this project's extractors."""

import importlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from bigr.evaluation.fidelity.classifier import Classifier, ClassifierConfig
from bigr.evaluation.fidelity.distances import Fidelity
from bigr.evaluation.fidelity.extractors import (
    InceptionExtractor,
    classifier_extractor,
    inception_extractor,
    read_inception_weights,
)
from bigr.evaluation.fidelity.statistics import measure
from bigr.evaluation.imagesets.image_stream import ImageStream
from bigr.runtime import torchvision_import
from bigr.runtime.errors import BigrError

# isort: split
from torch_fidelity import feature_extractor_inceptionv3 as upstream

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    """uint8 [400, 3, 16, 16]."""
    images = torch.from_numpy(load_digits().images[:400] / 16 * 255).round().to(torch.uint8)
    return images[:, None].expand(-1, 3, -1, -1).repeat_interleave(2, -1).repeat_interleave(2, -2)


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    """Untrained: its features are as good as any for a comparison of arithmetic."""
    torch.manual_seed(0)
    model = Classifier(ClassifierConfig(16, classes=10, channels=8, features=24)).eval().requires_grad_(False)
    model.neck[0].weight *= 100  # features of a trained one's size
    return model


def images(tensor: torch.Tensor) -> ImageStream:
    return ImageStream(len(tensor), lambda: iter(tensor))


def compare(model, first: torch.Tensor, second: torch.Tensor, *, batch_size=64, **options) -> dict[str, float]:
    """Figures of the first images against the second, under a classifier or Inception's weights."""
    extractor = (classifier_extractor if isinstance(model, Classifier) else inception_extractor)(model, CPU)
    given = {"kid_subsets": 3, "kid_subset_size": 50, "neighbours": 3, "seed": 0}
    a, b = (measure(extractor, images(tensor), batch_size) for tensor in (first, second))
    return Fidelity(**given | options).compare(a, b)


def features(classifier: Classifier, batch: torch.Tensor) -> np.ndarray:
    return classifier.features(batch.float() / 255).double().numpy()


def test_frechet_distance_equals_a_direct_computation_on_the_same_features(classifier, digits) -> None:
    a, b = features(classifier, digits[:250]), features(classifier, digits[250:])
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors @ np.diag(np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    direct = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    measured = compare(classifier, digits[:250], digits[250:])
    assert measured["fd_classifier"] == pytest.approx(direct, rel=1e-6)


def test_kernel_distance_equals_a_direct_computation_where_subsets_are_everything(classifier, digits) -> None:
    a, b = features(classifier, digits[:200]), features(classifier, digits[200:])

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    within = sum((k.sum() - np.trace(k)) / (200 * 199) for k in (kernel(a, a), kernel(b, b)))
    measured = compare(classifier, digits[:200], digits[200:], kid_subset_size=200)
    assert measured["kd_classifier"] == pytest.approx(within - 2 * kernel(a, b).mean(), rel=1e-6)


def test_a_set_is_at_no_distance_from_itself(classifier, digits) -> None:
    measured = compare(classifier, digits, digits.flip(0))
    assert measured["fd_classifier"] == pytest.approx(0, abs=1e-6)
    assert (measured["precision"], measured["recall"]) == (1, 1)


def test_precision_is_lost_to_strange_images_and_recall_to_missing_ones(classifier) -> None:
    draws = torch.Generator().manual_seed(0)
    dark = torch.randint(0, 60, (100, 3, 16, 16), dtype=torch.uint8, generator=draws)
    bright = torch.randint(190, 256, (50, 3, 16, 16), dtype=torch.uint8, generator=draws)
    both = torch.cat([dark, bright])
    strange = compare(classifier, both, dark)
    missing = compare(classifier, dark, both)
    assert (strange["precision"], strange["recall"]) == (pytest.approx(100 / 150), 1)
    assert (missing["precision"], missing["recall"]) == (1, pytest.approx(100 / 150))


def test_figures_follow_from_the_seed_and_not_from_the_batch_size(classifier, digits) -> None:
    first, second = digits[:100], digits[100:]
    measured = compare(classifier, first, second)
    assert compare(classifier, first, second) == measured
    assert compare(classifier, first, second, batch_size=7) == pytest.approx(measured, rel=1e-4)
    other = compare(classifier, first, second, seed=2**40 + 1)
    assert other["kd_classifier"] != measured["kd_classifier"]
    assert other["fd_classifier"] == measured["fd_classifier"]


def test_subsets_of_the_kernel_distance_are_no_larger_than_the_smaller_set(classifier, digits) -> None:
    small, large = digits[:30], digits[30:]
    capped = compare(classifier, small, large, kid_subset_size=1000)
    assert capped == compare(classifier, small, large, kid_subset_size=30)


def test_a_set_smaller_than_the_neighbourhood_has_distances_but_no_precision(classifier, digits) -> None:
    few, enough = compare(classifier, digits[:3], digits), compare(classifier, digits[:4], digits)
    assert set(enough) - set(few) == {"precision", "recall"}
    assert np.isfinite(list(few.values())).all()


def test_nothing_is_written_outside_the_project(classifier, digits, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    compare(classifier, digits[:50], digits[50:])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def inception() -> dict[str, torch.Tensor]:
    """Random weights of Inception's shapes."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upstream.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        return InceptionExtractor("inception", ["2048"], {}).state_dict()


@pytest.mark.parametrize("name", ["inception.safetensors", "inception.pth"])
def test_inception_from_a_file_is_torch_fidelitys_own(name: str, inception, digits, tmp_path) -> None:
    published = tmp_path / "inception.pth"
    torch.save(inception, published)  # the format that torch-fidelity publishes and reads
    save_file(inception, tmp_path / "inception.safetensors")
    own = upstream.FeatureExtractorInceptionV3("own", ["2048", "logits_unbiased"], str(published))
    ours = InceptionExtractor("ours", ["2048", "logits_unbiased"], read_inception_weights(tmp_path / name))
    for expected, found in zip(own(digits[:2]), ours(digits[:2]), strict=True):
        assert torch.equal(expected, found)


@pytest.mark.slow
def test_inceptions_figures_have_their_usual_names(inception, digits) -> None:
    measured = compare(inception, digits[:12], digits[12:20], neighbours=2)
    assert set(measured) == {"fid", "kid", "isc", "precision", "recall"}
    assert measured["fid"] > 0
    assert 1 <= measured["isc"] < 12


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.pth", None, "is not there; nothing is downloaded"),
        ("empty.pth", b"", "does not hold Inception's weights"),
        ("text.safetensors", b"not weights at all", "does not hold Inception's weights"),
    ],
)
def test_a_file_that_is_not_inception_is_one_line(name: str, content: bytes | None, reason: str, tmp_path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BigrError, match=reason) as error:
        read_inception_weights(tmp_path / name)
    assert "\n" not in str(error.value)
    assert "evaluation.extractor_weights" in str(error.value)


def test_code_in_a_file_of_weights_is_not_run(tmp_path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "code.pth").write_bytes(f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode())
    with pytest.raises(BigrError, match=r"code.pth does not hold Inception's weights, tensors alone") as error:
        read_inception_weights(tmp_path / "code.pth")
    assert "\n" not in str(error.value)
    assert not marker.exists()


def test_weights_of_another_network_are_one_line(tmp_path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(BigrError, match=r"other.safetensors does not hold Inception's weights") as error:
        read_inception_weights(tmp_path / "other.safetensors")
    assert "\n" not in str(error.value)


def test_operators_are_declared_only_where_torchvisions_import_fails() -> None:
    importlib.reload(torchvision_import)  # torchvision is there by now; a second declaration would be refused
