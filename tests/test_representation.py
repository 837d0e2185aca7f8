"""Features on disk, nearest neighbours, t-SNE: what they hold, and that memory does not grow with the images."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from bigr.evaluation.representation.features import Features, layer_features, write_features
from bigr.evaluation.representation.linear_probe import LayerAccuracies, selection
from bigr.evaluation.representation.nearest_neighbours import nearest_neighbours
from bigr.evaluation.representation.tsne import tsne
from bigr.interop.standardisation import FeatureStatistics, load_statistics, save_statistics
from bigr.models.masked.generator import BiGR, BiGRConfig
from bigr.runtime.errors import BigrError
from tests.worlds import features_of, write_codes, write_models

CPU = torch.device("cpu")


def clusters(images: int, *, layers=2, width=8, classes=5, seed=0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [n, L, D] around a centre of each class, the same for every seed, closer together in layer 1."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (images,), generator=draws)
    spread = torch.linspace(2, 0.5, layers)[:, None]
    return centres[labels][:, None] + spread * torch.randn(images, layers, width, generator=draws), labels


def restored(features: Features) -> torch.Tensor:
    return features.rows(slice(None), CPU)


# Features


def test_features_are_token_averages_of_every_layer_whatever_the_batch(tmp_path) -> None:
    codes = write_codes(tmp_path, classes=3, images=20)
    torch.manual_seed(0)
    model = BiGR(BiGRConfig(24, 4, 3, 32, 2, 2, 32, 1, ffn_multiple_of=32)).eval()
    bits, labels = codes.batch(torch.arange(18))
    with torch.no_grad():
        expected = torch.stack([layer.mean(1) for layer in model.features(bits)], dim=1)
    for size in (5, 18):
        (tmp_path / str(size)).mkdir()
        features = layer_features(tmp_path / str(size), "train", model, codes, 18, batch_size=size)
        assert torch.equal(features.labels, labels)
        torch.testing.assert_close(restored(features), expected, atol=1e-3 * float(expected.std()), rtol=0)


def test_any_images_and_any_layer_are_read(tmp_path: Path) -> None:
    x, labels = clusters(40)
    features = write_features(tmp_path / "f.npy", zip(x.split(16), labels.split(16), strict=True), 40)
    assert (len(features), features.layers, features.width) == (40, 2, 8)
    chosen = torch.tensor([39, 0, 16, 16])
    assert torch.equal(features.rows(chosen, CPU), restored(features)[chosen])
    assert torch.equal(features.layer(2, slice(3, 9), CPU), restored(features)[3:9, 1])
    torch.testing.assert_close(restored(features), x, atol=5e-3, rtol=0)
    again = Features.open(tmp_path / "f.npy")
    assert torch.equal(restored(again), restored(features))
    assert torch.equal(again.labels, labels)


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1e8, 0), (1e-9, 0), (1e-3, 5), (1, 3000), (1e-30, 0)])
def test_float16_keeps_three_digits_of_what_differs_at_any_scale_and_offset(scale, offset, tmp_path: Path) -> None:
    x = clusters(64)[0].double() * scale + offset
    exact = x.float()
    features = write_features(tmp_path / "f.npy", [(exact[:16], torch.arange(16)), (exact[16:], torch.arange(48))], 64)
    error = (restored(features).double() - exact.double()).abs().amax()
    assert error < 2e-3 * float(exact.double().std(0).mean())


def test_one_image_and_images_that_are_all_alike_are_kept(tmp_path: Path) -> None:
    x = torch.full((6, 2, 4), 3.0)
    x[4:] = -70.0
    x[:, 1] = 0
    batches = [(batch, torch.zeros(1, dtype=torch.int64)) for batch in x.split(1)]
    torch.testing.assert_close(restored(write_features(tmp_path / "f.npy", batches, 6)), x, atol=0, rtol=5e-4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e9])
def test_features_that_no_trained_model_has_are_one_line(bad, tmp_path: Path) -> None:
    x, labels = clusters(40)
    x[21, 1, 3] = bad
    with pytest.raises(BigrError, match="image 21 in layer 2 are not finite"):
        write_features(tmp_path / "f.npy", zip(x.split(16), labels.split(16), strict=True), 40)


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(tmp_path: Path) -> None:
    x, labels = clusters(4)
    with pytest.raises(BigrError, match=r"need 320000000\.0 GB"):
        write_features(tmp_path / "f.npy", [(x, labels)], 10**16)


def test_damaged_features_are_one_line(tmp_path: Path) -> None:
    x, labels = clusters(40)
    path = tmp_path / "f.npy"
    write_features(path, [(x, labels)], 40)
    whole = path.read_bytes()
    for content in (b"", b"no features", whole[:-100]):
        path.write_bytes(content)
        with pytest.raises(BigrError, match=f"{path}.*remove"):
            Features.open(path)
    write_features(tmp_path / "g.npy", [(x[:30], labels[:30])], 30)
    path.write_bytes((tmp_path / "g.npy").read_bytes())
    with pytest.raises(BigrError, match="does not match"):
        Features.open(path)


# Nearest neighbours


def voted(train: Features, val: Features, *, held_out: torch.Tensor | None = None, **options) -> LayerAccuracies:
    """`nearest_neighbours` of features standardised by the training split."""
    chosen = selection(len(train), 0.1) if held_out is None else held_out
    return nearest_neighbours(train, val, held_out=chosen, statistics=train.statistics(CPU), device=CPU, **options)


def theirs(known: torch.Tensor, asked: torch.Tensor, labels: torch.Tensor, neighbours: int) -> np.ndarray:
    """The classes that scikit-learn's neighbours vote for, features [n, D] standardised by those that are known."""
    mean, deviation = known.mean(0), known.std(0, correction=0)
    model = KNeighborsClassifier(neighbours, metric="cosine", weights=lambda distances: np.exp((1 - distances) / 0.07))
    model.fit(((known - mean) / deviation).numpy(), labels.numpy())
    return (-model.predict_proba(((asked - mean) / deviation).numpy())).argsort(axis=1, kind="stable")[:, 0]


@pytest.mark.parametrize("neighbours", [1, 7, 20])
def test_nearest_neighbours_are_scikit_learns_whatever_the_blocks(neighbours: int) -> None:
    (train, labels), (val, val_labels) = clusters(70, seed=1), clusters(30, seed=2)
    shift, scale = torch.linspace(-50, 900, 8), torch.logspace(-2, 2, 8)  # as in a backbone, one number outweighs all
    stored = features_of(train * scale + shift, labels), features_of(val * scale + shift, val_labels)
    for block_bytes in (1, 5000, 10**6):  # blocks of 1 image, of 35, of all
        found = voted(*stored, classes=5, neighbours=neighbours, temperature=0.07, block_bytes=block_bytes)
        for layer in range(2):
            known, asked = (restored(f)[:, layer] for f in stored)
            expected = (theirs(known, asked, labels, neighbours) == val_labels.numpy()).mean()
            assert found.top1[layer] == pytest.approx(expected)
    assert found.best == 2
    assert found.top5 == [1, 1]


@pytest.mark.parametrize("block_bytes", [1, 5000, 10**6])
def test_a_held_out_image_is_no_neighbour_of_its_own(block_bytes: int) -> None:
    """Labels at random: whoever sees itself is always right."""
    train, _ = clusters(60, seed=1)
    labels = torch.randint(0, 5, (60,), generator=torch.Generator().manual_seed(3))
    stored, held_out = features_of(train, labels), torch.arange(0, 60, 3)
    options = {"classes": 5, "neighbours": 1, "temperature": 0.07, "block_bytes": block_bytes}
    found = voted(stored, stored, held_out=held_out, **options)
    assert found.top1 == [1, 1]
    mean, deviation = restored(stored).mean(0), restored(stored).std(0, correction=0)
    for layer, accuracy in enumerate(found.selection):
        unit = torch.nn.functional.normalize(((restored(stored) - mean) / deviation)[:, layer], dim=1)
        nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(1)
        assert accuracy == pytest.approx((labels[nearest] == labels)[held_out].double().mean().item())


def test_more_neighbours_than_images_are_all_images() -> None:
    features = features_of(*clusters(30))
    options = {"classes": 5, "temperature": 0.07}
    everyone = voted(features, features, neighbours=30, **options)
    assert voted(features, features, neighbours=1000, **options) == everyone


def test_a_low_temperature_lets_the_nearest_decide() -> None:
    train, val = features_of(*clusters(100, seed=1)), features_of(*clusters(100, seed=2))
    nearest = voted(train, val, classes=5, neighbours=1, temperature=1.0)
    assert voted(train, val, classes=5, neighbours=50, temperature=1e-6).top1 == nearest.top1
    assert voted(train, val, classes=5, neighbours=50, temperature=1.0).top1 != nearest.top1


# Statistics


@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1e-3, 5), (1, 3000)])
def test_statistics_are_those_of_all_images_whatever_the_blocks(scale: float, offset: float) -> None:
    features = features_of(clusters(70)[0] * scale + offset, clusters(70)[1])
    rows = restored(features).double()
    for block_bytes in (1, 10**6):
        found = features.statistics(CPU, block_bytes)
        torch.testing.assert_close(found.mean.double(), rows.mean(0), rtol=1e-6, atol=1e-6 * scale)
        torch.testing.assert_close(found.deviation.double(), rows.std(0, correction=0), rtol=1e-4, atol=0)
        unit = found.standardised(restored(features)).double()
        assert unit.mean(0).abs().max() < 1e-2 and (unit.std(0, correction=0) - 1).abs().max() < 1e-3


def test_a_number_that_never_changes_says_nothing_and_breaks_nothing() -> None:
    x, _ = clusters(40)
    x[:, 0, 3] = 7.0
    x[:, 1] = 2.0
    unit = FeatureStatistics.of(x).standardised(x)
    assert unit.isfinite().all()
    assert (unit[:, 0, 3] == 0).all() and (unit[:, 1] == 0).all()
    assert unit[:, 0, 0].std(correction=0) == pytest.approx(1, abs=1e-5)


def test_statistics_are_kept_with_their_model_and_are_no_other_models(tmp_path: Path) -> None:
    write_models(tmp_path)
    model, folder = tmp_path / "models/bigr", tmp_path / "models/features"
    assert load_statistics(folder, model) is None
    statistics = replace(FeatureStatistics.of(clusters(40)[0]), best_layer=2)
    save_statistics(folder, statistics, model)
    found = load_statistics(folder, model)
    assert found is not None and found.best_layer == 2
    assert torch.equal(found.mean, statistics.mean) and torch.equal(found.deviation, statistics.deviation)
    write_models(tmp_path, classes=4)
    assert load_statistics(folder, model) is None
    (folder / "statistics.safetensors").write_bytes(b"cut")
    with pytest.raises(BigrError, match=f"{folder}.*stage evaluation"):
        load_statistics(folder, model)


# t-SNE


def test_tsne_puts_images_of_a_class_together_and_is_the_same_every_time() -> None:
    x, labels = clusters(120, classes=4)
    x[:, 1] /= 10
    x[:, 1] += 10 * torch.eye(8)[labels]
    features = features_of(x, labels)
    points = tsne(features, 2, images=90, perplexity=30.0)
    assert points.shape == (90, 2)
    vote = KNeighborsClassifier(3).fit(points[:60], labels[:60]).score(points[60:], labels[60:90])
    assert vote == 1
    assert np.array_equal(points, tsne(features, 2, images=90, perplexity=30.0))


@pytest.mark.parametrize("images", [1, 3, 4, 10])
def test_tsne_takes_few_images(images: int) -> None:
    points = tsne(features_of(*clusters(images)), 1, images=360, perplexity=30.0)
    assert points.shape == (images, 2)
    assert np.isfinite(points).all()


# Memory

BUDGET = 40e6
WORK = """
import resource, sys
from pathlib import Path
import torch
from bigr.evaluation.representation.features import Features, token_averages, write_features
from bigr.evaluation.representation.nearest_neighbours import nearest_neighbours
from bigr.evaluation.representation.linear_probe import linear_probe, selection

IMAGES, LAYERS, WIDTH, CLASSES = 8_000, 8, 512, 10
folder, whole, cpu = Path(sys.argv[1]), sys.argv[2] == "whole", torch.device("cpu")

class Model(torch.nn.Module):
    '''Tokens on a plane of their own in each layer.'''
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(LAYERS, 4, WIDTH))
    def features(self, codes):
        return [codes.float() @ weight for weight in self.weight]

def codes(images):
    for first in range(0, images, 100):
        yield (torch.rand(100, 2, 4) < 0.5), torch.arange(100) % CLASSES

def measure():
    train = write_features(folder / "train.npy", token_averages(Model(), codes(IMAGES)), IMAGES)
    val = write_features(folder / "val.npy", token_averages(Model(), codes(200)), 200)
    if whole:
        return train.rows(slice(None), cpu)
    options = {"classes": CLASSES, "device": cpu, "held_out": selection(len(train), 0.02)}
    linear_probe(train, val, epochs=1, batch_size=100, learning_rate=0.01, weight_decay=0.0, **options)
    options["statistics"] = train.statistics(cpu, 3_000_000)
    nearest_neighbours(train, val, neighbours=20, temperature=0.07, block_bytes=3_000_000, **options)

IMAGES, full = 200, IMAGES  # what threads, kernels and lazy imports take, they take now
measure()
IMAGES = full
held = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (held + int(sys.argv[3]),) * 2)
measure()
print((folder / "train.npy").stat().st_size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux bounds a process's own memory, maps apart")
def test_features_far_beyond_the_memory_are_written_and_measured(tmp_path: Path) -> None:
    """A process that may not take 40 MB more measures 66 MB of features; it fails where it reads them whole."""

    def run(how: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", WORK, str(tmp_path), how, str(int(BUDGET))]
        # What is freed goes back to the system, so that what is counted is what is held. (With a threshold above the
        # 0.4 MB of a layer's features, glibc's heap was fragmented in every second run, by up to 50 MB.)
        environment = os.environ | {
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "MALLOC_ARENA_MAX": "1",
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[1], env=environment)

    measured = run("by batches")
    assert measured.returncode == 0, measured.stderr[-2000:]
    assert int(measured.stdout) > 1.5 * BUDGET
    assert "memory" in run("whole").stderr.lower()
