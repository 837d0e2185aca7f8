"""The evaluation stage, and the parts of its protocol that have no file of their own."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

import bigr
from bigr.cli import program
from bigr.data.shards import ShardIndex
from bigr.evaluation import measurement, plots
from bigr.evaluation.code_usage import CodeUsage, code_usage
from bigr.evaluation.fidelity import statistics
from bigr.evaluation.fidelity.classifier import Classifier, ClassifierConfig, train_classifier
from bigr.evaluation.fidelity.extractors import weights_hash
from bigr.evaluation.fidelity.neighbours import draw_neighbours, nearest, nearest_ratio
from bigr.evaluation.headline import HEADLINE
from bigr.evaluation.imagesets.image_stream import ImageStream, files_hash, mean_psnr
from bigr.evaluation.imagesets.npz_images import read_samples
from bigr.evaluation.representation import features
from bigr.evaluation.representation.linear_probe import LayerAccuracies
from bigr.evaluation.zero_shot import ZeroShot, measured_model
from bigr.interop.folders import load_model, model_hash, save
from bigr.interop.standardisation import FeatureStatistics
from bigr.models.autoencoder.tokenizer import Tokenizer, TokenizerConfig
from bigr.models.masked.generator import BiGR, BiGRConfig
from bigr.runtime.context import Context, Report
from bigr.runtime.dotted_keys import flatten
from bigr.runtime.errors import BigrError
from bigr.runtime.files import sha256_file
from bigr.stages import encode_codes, evaluate_model, pack_shards
from tests import tiny, worlds
from tests.test_training import run_processes

PER_CLASS = {"train": 12, "val": 5}


def test_a_stream_of_images_is_read_from_the_first_on_every_time() -> None:
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1)
    stream = ImageStream(6, lambda: iter(images))
    for _ in range(2):
        assert [batch.flatten().tolist() for batch in stream.batches(4)] == [[0, 1, 2, 3], [4, 5]]
    assert stream.first(3, 2).flatten().tolist() == [0, 1, 2]


def test_psnr_is_the_mean_over_images_in_decibels() -> None:
    originals = torch.full((3, 3, 4, 4), 100, dtype=torch.uint8)
    images = originals + torch.tensor([0, 1, 10], dtype=torch.uint8).view(3, 1, 1, 1)
    expected = (100 + 20 * math.log10(255) + 20 * math.log10(25.5)) / 3
    found = mean_psnr(ImageStream(3, lambda: iter(images)), ImageStream(3, lambda: iter(originals)), batch_size=2)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("size", [8, 40])
def test_the_nearest_training_image_is_found_and_copies_are_told_from_new_images(size: int, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    training = torch.randint(0, 256, (30, 3, size, size), dtype=torch.uint8, generator=draw)
    held_out = torch.randint(0, 256, (10, 3, size, size), dtype=torch.uint8, generator=draw)
    stream, copies = ImageStream(30, lambda: iter(training)), training[[7, 29, 3]]
    mine, theirs = nearest([copies, held_out], stream, torch.device("cpu"))
    assert mine.place.tolist() == [7, 29, 3] and mine.distance.max() < 1e-3
    assert nearest_ratio(mine, theirs) < 0.01 and nearest_ratio(theirs, theirs) == 1
    if size == 8:  # compared as they are
        apart = (held_out[:1].float() - training.float()).square().flatten(1).mean(1).sqrt() / 255
        assert theirs.distance[0] == pytest.approx(float(apart.min()), rel=1e-3)
        assert int(theirs.place[0]) == int(apart.argmin())
    draw_neighbours(tmp_path / "pairs.png", ImageStream(3, lambda: iter(copies)), [0, 1, 2], mine, stream)
    with Image.open(tmp_path / "pairs.png") as picture:
        assert picture.size[0] > 3 * size and picture.size[1] > 2 * size


def test_code_usage_counts_what_the_codes_hold(tmp_path: Path) -> None:
    dataset = worlds.write_codes(tmp_path, images=30)
    bits, _ = dataset.batch(torch.arange(20))
    usage = code_usage(dataset, 20)
    torch.testing.assert_close(usage.frequency, bits.double().mean(dim=(0, 1)))
    assert usage.unique_share == len(torch.unique(bits.flatten(0, 1), dim=0)) / (20 * 16)


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11])
def test_the_classifier_trains_for_any_number_of_steps(steps: int) -> None:
    batches = [(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))] * steps
    config = ClassifierConfig(8, 2, channels=4, features=4)
    made = train_classifier(batches, config, steps=steps, learning_rate=0.01, device=torch.device("cpu"))
    assert all(weights.isfinite().all() for weights in made.state_dict().values())


def test_a_bit_that_hardly_changes_is_dead() -> None:
    usage = CodeUsage(torch.tensor([0.0, 0.005, 0.5, 0.25, 0.995, 1.0], dtype=torch.float64), 1.0)
    assert usage.dead == 4
    assert usage.entropy[[0, 2, 5]].tolist() == [0, 1, 0]
    assert float(usage.entropy[3]) == pytest.approx(0.811278, abs=1e-6)


@pytest.mark.parametrize("classes", [3, 10, 60])
def test_pictures_are_pngs_that_are_the_same_every_time(classes: int, tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    asked, seen = draws.integers(0, classes, (2, 500))
    points = draws.normal(size=(500, 2))
    usage = CodeUsage(torch.rand(24, dtype=torch.float64), 0.5)
    probe = LayerAccuracies([0.2, 0.9, 0.5], [0.8, 1.0, 0.9], [0.2, 0.8, 0.9])
    knn = LayerAccuracies([0.1, 0.6, 0.5], [0.8, 1.0, 0.9], [0.1, 0.6, 0.5])
    written = []
    for name in ("first", "second"):
        folder = tmp_path / name
        plots.probe_plot(folder / "probe.png", probe, knn, classes)
        plots.tsne_plot(folder / "tsne.png", points, asked, [f"class {i}" for i in range(classes)], layer=2)
        plots.bits_plot(folder / "bits.png", usage)
        plots.confusion_plot(folder / "confusion.png", asked, seen, [f"class {i}" for i in range(classes)])
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert written[0] == written[1]
    for name in written[0]:
        with Image.open(tmp_path / "first" / name) as picture:
            assert min(picture.size) >= 400


def test_a_class_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dollars would start a formula, and matplotlib leaves out of a legend what begins with an underscore."""
    drawn: list[Any] = []
    save = plots._save
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure) or save(figure, path))
    labels = np.arange(12) % 3
    names = ["$x_^$", "_hidden", "5$"]
    plots.tsne_plot(tmp_path / "tsne.png", np.random.default_rng(0).random((12, 2)), labels, names, layer=1)
    plots.confusion_plot(tmp_path / "confusion.png", labels, labels, names)
    assert [text.get_text().replace("\\", "") for text in drawn[0].legends[0].get_texts()] == names


# The stage, over a small project with real digits and models that have learnt nothing.


class Told(Report):
    """Keeps what a stage reports."""

    def __init__(self) -> None:
        self.final: dict[str, float] = {}
        self.curves: dict[str, list[int]] = {}
        self.pictures: dict[str, Path] = {}

    def metrics(self, values, step=None) -> None:
        if step is None:
            self.final |= values
        else:
            for name in values:
                self.curves.setdefault(name, []).append(step)

    def picture(self, name, path, step=None) -> None:
        self.pictures[name] = path


def small_settings(**overrides):
    return worlds.settings(run__workers=1, tokenizer__base_channels=32, shards__images_per_shard=50, **overrides)


def write_samples(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    (root / "outputs").mkdir(exist_ok=True)
    np.savez(root / "outputs" / "samples.npz", arr_0=images, arr_1=labels)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """Shards, codes, models and samples; the samples are training images under their labels."""
    root = tmp_path_factory.mktemp("evaluated")
    data = load_digits()
    kept: list[np.ndarray] = []
    for label in range(10):
        images = data.images[data.target == label]
        for i, image in enumerate(images[: sum(PER_CLASS.values())]):
            folder = root / "data" / "dataset" / ("train" if i < PER_CLASS["train"] else "val") / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            pixels = Image.fromarray((image / 16 * 255).astype(np.uint8)).resize((16, 16)).convert("RGB")
            pixels.save(folder / f"{i:03}.png")
            if i < 4:
                kept.append(np.asarray(pixels))
    settings = small_settings()
    pack_shards.run(settings, Context(root))
    torch.manual_seed(0)
    save(root / "models" / "tokenizer", Tokenizer(TokenizerConfig.of(settings.tokenizer, image_size=16)))
    encode_codes.run(settings, Context(root))
    bits, grid = settings.tokenizer.code_bits, settings.grid
    model = BiGR(BiGRConfig(bits, grid, 10, 32, 2, 2, 32, 1, ffn_multiple_of=32))
    save(root / "models" / "bigr", model, tokenizer=model_hash(root / "models" / "tokenizer"))
    write_samples(root, np.stack(kept), np.arange(10).repeat(4))
    return root


@pytest.fixture
def copied(project: Path, tmp_path: Path) -> Path:
    """A project of the test's own, to damage: links to the shared one, but for outputs."""
    for name in ("data", "models"):
        (tmp_path / name).mkdir()
        for folder in (project / name).iterdir():
            (tmp_path / name / folder.name).symlink_to(folder)
    return tmp_path


@pytest.fixture(scope="module")
def evaluated(project: Path) -> tuple[Path, Told]:
    told = Told()
    evaluate_model.run(small_settings(), Context(project, report=told))
    return project, told


def test_metrics_are_complete_finite_and_reported_under_the_same_names(evaluated) -> None:
    root, told = evaluated
    metrics = json.loads((root / "outputs" / "metrics.json").read_text())
    distances = {"fd_classifier", "kd_classifier", "is_classifier", "precision", "recall", "images"}
    layers = {f"top{k}_layer_0{layer}" for k in (1, 5) for layer in (1, 2)}
    assert {part: set(figures) for part, figures in metrics.items()} == {
        "samples": distances | {"label_agreement", "nearest_ratio", "over_floor"},
        "reconstructions": distances | {"label_agreement", "psnr"},
        "val_against_train": distances,
        "classifier": {"val_accuracy"},
        "codes": {"bit_entropy", "dead_bits", "unique_share"},
        "zero_shot": {
            "images",
            "inpaint_psnr",
            "mean_fill_psnr",
            "interpolation_agreement",
            *(f"{what}_label_agreement" for what in ("inpaint", "edit", "enrich", "bicubic", "drawn", "consistent")),
        },
        "probe": {"best_layer", "best_top1", "best_top5"} | layers,
        "knn": {"best_layer", "best_top1", "best_top5"} | layers,
    }
    flat = {f"{part}.{name}": value for part, figures in metrics.items() for name, value in figures.items()}
    assert told.final == flat
    assert all(math.isfinite(value) for value in flat.values())
    assert (metrics["samples"]["images"], metrics["val_against_train"]["images"]) == (40, 50)
    ratio = metrics["samples"]["fd_classifier"] / metrics["val_against_train"]["fd_classifier"]
    assert metrics["samples"]["over_floor"] == pytest.approx(ratio)


def test_the_headline_holds_the_metrics_by_which_models_are_compared(evaluated) -> None:
    root, _ = evaluated
    metrics = json.loads((root / "outputs" / "metrics.json").read_text())
    written = json.loads((root / "outputs" / "headline.json").read_text())
    assert len(written) >= 6
    assert written == {short: metrics[part][name] for short in written for part, name in [HEADLINE[short].split(".")]}


def test_samples_that_are_training_images_lie_within_the_training_images(evaluated) -> None:
    root, _ = evaluated
    assert json.loads((root / "outputs" / "metrics.json").read_text())["samples"]["precision"] == 1


def test_what_the_distances_were_measured_with_and_against_is_named_by_hash(evaluated) -> None:
    root, _ = evaluated
    about = json.loads((root / "outputs" / "protocol.json").read_text())
    kept = load_model(root / "models" / "classifier", Classifier)
    assert about["extractor"] == {"name": "classifier", "hash": weights_hash(kept.state_dict())}
    tars = ShardIndex.load(root / "data" / "shards").tars("train")
    assert len(tars) > 1
    expected = files_hash(sha256_file(tar.path) for tar in tars)
    assert about["reference"] == {"split": "train", "images": 120, "hash": expected}


def test_a_hash_of_weights_tells_names_shapes_and_values_but_no_order() -> None:
    weights = {"a": torch.arange(4.0), "b": torch.zeros(2)}
    same = weights_hash({"b": torch.zeros(2), "a": torch.arange(4.0)})
    others = [
        {"a": torch.arange(4.0).view(2, 2), "b": torch.zeros(2)},
        {"c": torch.arange(4.0), "b": torch.zeros(2)},
        {"a": torch.arange(4.0), "b": torch.zeros(2, dtype=torch.int32)},
        {"a": torch.arange(4.0) + 1, "b": torch.zeros(2)},
    ]
    assert weights_hash(weights) == same
    assert len({same, *map(weights_hash, others)}) == 5


def test_bigr_evaluate_gives_the_figures_of_the_stage(evaluated, tmp_path: Path, monkeypatch) -> None:
    root, _ = evaluated
    shutil.copy(Path(__file__).parents[1] / "params.yaml", tmp_path)
    tiny.apply(tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    words = ["--samples", str(root / "outputs/samples.npz"), "--reference", str(root / "data/shards")]
    done = CliRunner().invoke(
        program.app,
        ["evaluate", *words, "--weights", str(root / "models/classifier"), "--json"],
        catch_exceptions=False,
    )
    told = json.loads(done.stdout)
    samples = json.loads((root / "outputs/metrics.json").read_text())["samples"]
    assert told["figures"] == {name: samples[name] for name in told["figures"]}
    about = json.loads((root / "outputs/protocol.json").read_text())
    assert told["extractor"] == about["extractor"]
    assert told["reference"]["hash"] == about["reference"]["hash"]


def test_tables_and_pictures_are_written_and_reported(evaluated) -> None:
    root, told = evaluated
    folder = root / "outputs" / "plots"
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "bits.png",
        "confusion.csv",
        "confusion.png",
        "neighbours.png",
        "probe.csv",
        "probe.png",
        "tsne.png",
    }
    assert told.pictures == {name: folder / f"{name}.png" for name in evaluate_model.PLOTS}
    columns = ("top1", "top5", "knn_top1", "knn_top5", "selection_top1", "knn_selection_top1")
    assert told.curves == {f"probe_by_layer.{column}": [1, 2] for column in columns}
    assert not (root / "checkpoints").exists()  # of the features
    probe = list(csv.DictReader((folder / "probe.csv").open()))
    assert [row["layer"] for row in probe] == ["1", "2"]
    confusion = list(csv.DictReader((folder / "confusion.csv").open()))
    assert [row["actual"] for row in confusion] == [str(i // 4) for i in range(40)]
    agreeing = sum(row["actual"] == row["predicted"] for row in confusion) / 40
    assert told.final["samples.label_agreement"] == pytest.approx(agreeing)


def test_the_model_is_loaded_with_the_layer_and_the_statistics_that_were_measured(evaluated, tmp_path: Path) -> None:
    root, told = evaluated
    model = bigr.load(root)
    assert model.feature_layer == told.final["probe.best_layer"]
    assert model.statistics is not None
    pictures = sorted((root / "data/dataset/train").rglob("*.png"))
    expected = FeatureStatistics.of(model.layer_features(pictures))
    error = (model.statistics.mean - expected.mean).abs() / expected.deviation.mean()
    assert error.max() < 1e-3  # float16 on the way
    torch.testing.assert_close(model.statistics.deviation, expected.deviation, rtol=1e-2, atol=1e-3)


def test_the_runs_seed_does_not_touch_the_evaluation_protocol(evaluated, copied: Path) -> None:
    root, told = evaluated
    with np.load(root / "outputs" / "samples.npz") as samples:
        write_samples(copied, samples["arr_0"], samples["arr_1"])
    again = Told()
    settings = small_settings()
    evaluate_model.run(settings.model_copy(update={"seed": 77}), Context(copied, report=again))
    assert again.final == told.final


def test_no_more_images_of_a_split_are_measured_than_asked(project: Path, copied: Path) -> None:
    write_samples(copied, np.zeros((40, 16, 16, 3), dtype=np.uint8), np.arange(40) % 10)
    told = Told()
    evaluate_model.run(small_settings(evaluation__reference_images=20), Context(copied, report=told))
    assert told.final["reconstructions.images"] == 20
    assert json.loads((copied / "outputs/protocol.json").read_text())["reference"]["images"] == 20


def test_how_many_images_the_probe_learns_from_changes_nothing_that_is_measured_of_samples(evaluated, copied) -> None:
    root, told = evaluated
    with np.load(root / "outputs" / "samples.npz") as samples:
        write_samples(copied, samples["arr_0"], samples["arr_1"])
    few = Told()
    evaluate_model.run(small_settings(evaluation__probe_images=10), Context(copied, report=few))
    changed = {name.split(".")[0] for name, value in few.final.items() if value != told.final[name]}
    assert changed == {"probe", "knn"}


def test_a_part_that_fails_leaves_the_others_their_metrics_and_is_named(
    evaluated, copied: Path, caplog, monkeypatch
) -> None:
    root, told = evaluated

    def broken(*_: object) -> float:
        raise RuntimeError("a defect of the code")

    monkeypatch.setattr(measurement, "mean_psnr", broken)
    with np.load(root / "outputs" / "samples.npz") as samples:
        write_samples(copied, samples["arr_0"], samples["arr_1"])
    (copied / "models" / "bigr").unlink()
    model = load_model(root / "models" / "bigr", BiGR)
    torch.nn.init.constant_(next(model.backbone.layers[-1].parameters()), float("nan"))  # it has diverged
    save(copied / "models" / "bigr", model, tokenizer=model_hash(root / "models" / "tokenizer"))
    caplog.set_level("ERROR")
    rest = Told()
    with pytest.raises(BigrError, match=r"failed in psnr .*representation .*layer 2 .*outputs/metrics.json") as error:
        evaluate_model.run(small_settings(), Context(copied, report=rest))
    assert "\n" not in str(error.value)
    metrics = json.loads((copied / "outputs" / "metrics.json").read_text())
    assert {"samples", "reconstructions", "val_against_train", "classifier", "codes"} <= metrics.keys()
    assert not {"probe", "knn"} & metrics.keys()
    assert len(rest.final) > 20 and "reconstructions.psnr" not in rest.final
    assert rest.final == {name: v for name, v in told.final.items() if name in rest.final}
    parts = json.loads((copied / "outputs" / "evaluation-parts.json").read_text())
    assert parts["failed"]["representation"]["traceback"] is None  # the user's to put right
    assert set(parts["failed"]) >= {"representation", "psnr", "zero_shot.inpainting", "zero_shot.enrichment"}
    assert parts["failed"]["zero_shot.inpainting"]["traceback"] is None
    assert "Traceback" in parts["failed"]["psnr"]["traceback"]  # for whoever mends the code
    assert any("representation failed" in record.message for record in caplog.records)
    assert {path.name for path in (copied / "outputs" / "plots").iterdir()} == {
        "bits.png", "confusion.csv", "confusion.png", "neighbours.png",
    }  # fmt: skip


def test_what_is_drawn_without_further_training_shows_its_progress(project: Path, caplog) -> None:
    tokenizer, model = (
        load_model(project / "models" / "tokenizer", Tokenizer),
        load_model(project / "models" / "bigr", BiGR),
    )
    classifier = Classifier(ClassifierConfig(16, 10, 8, 8)).eval()
    sections = small_settings().samples, small_settings().editing
    measured = ZeroShot(measured_model(tokenizer, model, *sections, 256), classifier, 256)
    images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    every = measured.applications(ImageStream(4, lambda: iter(images)), torch.arange(4), torch.zeros(3, 16, 16))
    with caplog.at_level("INFO", "bigr.runtime.progress"):
        for application in every.values():
            application()
    drawn = ("inpainting without a label", "inpainting", "editing", "interpolation", "enrichment")
    assert [line.partition(" images")[0] for line in caplog.messages] == [f"{name}: 4/4" for name in drawn]


def test_what_was_measured_is_named_where_nothing_fails(evaluated) -> None:
    root, _ = evaluated
    parts = json.loads((root / "outputs" / "evaluation-parts.json").read_text())
    applications = {f"zero_shot.{name}" for name in ("inpainting", "editing", "interpolation", "enrichment")}
    assert set(parts["measured"]) >= {"classifier", "fidelity", "codes", "representation", *applications}
    assert parts["left_out"] == parts["failed"] == {}


def test_missing_samples_are_one_line_that_names_the_stage(copied: Path) -> None:
    with pytest.raises(BigrError, match=r"samples.npz is missing; run the stage samples"):
        evaluate_model.run(small_settings(), Context(copied))


@pytest.mark.parametrize(
    ("images", "labels", "reason"),
    [
        (np.zeros((4, 8, 8, 3), np.uint8), np.zeros(4, int), r"arr_0 must be .* got uint8 \[4, 8, 8, 3\]"),
        (np.zeros((4, 16, 16, 3), np.float32), np.zeros(4, int), "arr_0 must be .* got float32"),
        (np.zeros((4, 3, 16, 16), np.uint8), np.zeros(4, int), r"must be uint8 \[n, 16, 16, 3\]"),
        (np.zeros((4, 16, 16, 3), np.uint8), np.zeros(3, int), r"arr_1 must be .* got int64 \[3\]"),
        (np.zeros((4, 16, 16, 3), np.uint8), np.zeros(4), "arr_1 must be .* got float64"),
        (np.zeros((4, 16, 16, 3), np.uint8), np.full(4, 10), r"labels must be in \[0, 10\), got 10 to 10"),
    ],
)
def test_samples_that_do_not_fit_are_one_line(images: np.ndarray, labels: np.ndarray, reason: str, tmp_path) -> None:
    write_samples(tmp_path, images, labels)
    with pytest.raises(BigrError, match=reason):
        read_samples(tmp_path / "outputs" / "samples.npz", image_size=16, classes=10)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 half of one"])
def test_damaged_samples_are_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "samples.npz").write_bytes(content)
    with pytest.raises(BigrError, match=r"run the stage samples again") as error:
        read_samples(tmp_path / "samples.npz", image_size=16, classes=10)
    assert "\n" not in str(error.value)


class Code:
    """Unpickling one touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_file_of_samples_is_not_run(tmp_path: Path) -> None:
    code = np.array([Code(tmp_path / "ran")], dtype=object)
    np.savez(tmp_path / "samples.npz", arr_0=code, arr_1=np.zeros(1, int))
    with pytest.raises(BigrError, match=r"run the stage samples again"):
        read_samples(tmp_path / "samples.npz", image_size=16, classes=10)
    assert not (tmp_path / "ran").exists()


def test_codes_of_another_tokenizer_are_refused(project: Path, copied: Path) -> None:
    (copied / "models" / "tokenizer").unlink()
    torch.manual_seed(1)
    save(copied / "models" / "tokenizer", Tokenizer(TokenizerConfig.of(small_settings().tokenizer, image_size=16)))
    with pytest.raises(BigrError, match=r"codes of another tokenizer"):
        evaluate_model.run(small_settings(), Context(copied))


def test_a_model_for_other_codes_is_refused(project: Path, copied: Path) -> None:
    (copied / "models" / "bigr").unlink()
    bits = small_settings().tokenizer.code_bits + 8
    save(copied / "models" / "bigr", BiGR(BiGRConfig(bits, 4, 10, 32, 2, 2, 32, 1, ffn_multiple_of=32)))
    with pytest.raises(BigrError, match=rf"models/bigr has \(bits, grid, classes\) = \({bits}, 4, 10\)"):
        evaluate_model.run(small_settings(), Context(copied))


CHEAP = {"run__device": "cpu", "evaluation__batch_size": 10, "evaluation__zero_shot_images": 0}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_measure_what_one_does_also_after_a_kill(
    copied: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(copied / "models", copied / "own", symlinks=False)
    shutil.rmtree(copied / "models")
    (copied / "own").rename(copied / "models")
    draws = np.random.default_rng(0)
    write_samples(copied, draws.integers(0, 256, (47, 16, 16, 3), dtype=np.uint8), np.arange(47) % 10)
    for module in (statistics, features):
        monkeypatch.setattr(module, "PART", 20)
    evaluate_model.run(small_settings(**CHEAP), Context(copied, "one"))
    one = flatten(json.loads((copied / "outputs" / "metrics.json").read_text()))

    parts = copied / "checkpoints" / "evaluation"
    assert not parts.exists()
    assert run_processes(_MEASURED.replace("KILLED", "True"), copied, processes)[-1] == 9
    before = {path.name for path in parts.glob("*.safetensors")}
    assert {name.split("-")[0] for name in before} == {"samples", "reconstructions", "train", "val"}
    again = 6 // processes  # another number of processes
    assert run_processes(_MEASURED.replace("KILLED", "False"), copied, again) == [0] * again
    written = [name for number in range(again) for name in json.loads((copied / f"written-{number}").read_text())]
    images = 47, 50, 120, 50  # samples, reconstructions, and the splits, whose layers have features too
    assert len(written) + len(before) == sum(math.ceil(n / 20) for n in (*images, 120, 50))
    assert not before & set(written)
    several = flatten(json.loads((copied / "outputs" / "metrics.json").read_text()))
    assert one.keys() == several.keys() and several == pytest.approx(one, rel=1e-9)
    assert not parts.exists()


_MEASURED = """
import json, os, pathlib, sys
import torch
from bigr.evaluation.fidelity import statistics
from bigr.evaluation.representation import features
from bigr.runtime.context import Context
from bigr.runtime.distributed import process_group, rank, world
from bigr.stages import evaluate_model
from tests.test_evaluation import CHEAP, small_settings

root, written = pathlib.Path(sys.argv[1]), []
for module in (statistics, features):
    def write(path, *tensors, own=module.write_tensors):
        if KILLED and rank() == world() - 1 and path.name.startswith("train-0") and module is features:
            os._exit(9)
        own(path, *tensors)
        written.append(path.name)
    module.PART, module.write_tensors = 20, write
with process_group(torch.device("cpu")):
    try:
        evaluate_model.run(small_settings(**CHEAP), Context(root, "the same"))
    except BaseException:
        os._exit(1)
    (root / f"written-{rank()}").write_text(json.dumps(written))
"""


def test_inceptions_weights_are_read_before_anything_takes_time(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_samples(copied, np.zeros((40, 16, 16, 3), dtype=np.uint8), np.arange(40) % 10)
    (copied / "weights.pth").write_bytes(b"no weights")
    monkeypatch.setattr(measurement, "train_on_shards", lambda *_: pytest.fail("the classifier was trained first"))
    chosen = {"evaluation__extractor": "inception-v3-compat", "evaluation__extractor_weights": "weights.pth"}
    with pytest.raises(BigrError, match=r"evaluation\.extractor_weights: .*weights\.pth does not hold"):
        evaluate_model.run(small_settings(**chosen), Context(copied))
