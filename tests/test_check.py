"""`bigr check`, and every stage before it begins: what will stop a later one is found in settings, files and images."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import save_file

from bigr import config
from bigr.models.autoencoder.tokenizer import TokenizerConfig
from bigr.pipeline import check, images_found, runner
from bigr.runtime.context import Context
from bigr.runtime.errors import BigrError
from bigr.stages import pack_shards, train_tokenizer
from tests import scratch, tiny, worlds


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose images are to be in pictures/; its code is that of the tests."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text(f"[core]\n    no_scm = true\n    site_cache_dir = {tmp_path / 'site'}\n")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(scratch.ROOT / name, tmp_path / name)
    tiny.apply(tmp_path / "params.yaml", tiny.OVERRIDES | {"shards.source": "pictures"})
    return tmp_path


def add_images(project: Path, **counts: int) -> None:
    """Images in pictures/<class>/, the class with underscores for slashes: `train_cat=3`."""
    for folder, count in counts.items():
        place = project / "pictures" / folder.replace("_", "/")
        place.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (9, 9), (number, 0, 0)).save(place / f"{number}.png")


def complaints(run: Any) -> list[str]:
    """The lines of the error that a call ends with."""
    with pytest.raises(BigrError) as caught:
        run()
    return str(caught.value).splitlines()


def checked(project: Path) -> list[str]:
    """What `bigr check` and the first stage complain of: the same."""
    params = project / "params.yaml"
    said = complaints(lambda: check.summary(project, params))
    assert complaints(lambda: runner.run_stage("dataset", project, params)) == said
    assert not (project / "data").exists()
    return said


def test_check_counts_images_and_classes_of_a_folder_and_opens_none(project: Path) -> None:
    add_images(project, train_cat=3, train_dog=2, val_cat=2)
    (project / "pictures/train/cat/0.png").write_bytes(b"no image")
    lines = check.summary(project, project / "params.yaml")
    assert "images      16×16 from pictures: 5 to train on, 2 held out, 2 classes" in lines


def test_a_folder_that_the_stage_shards_would_refuse_is_refused_before_the_first_stage(project: Path) -> None:
    (project / "pictures").mkdir()
    (line,) = checked(project)
    assert line.startswith("shards.source: ") and "no class folders" in line


def test_a_split_too_small_to_measure_distances_to_is_named_before_the_first_stage(project: Path) -> None:
    add_images(project, train_cat=1, val_cat=1)
    training, validation = checked(project)
    assert training.startswith("shards.source: pictures has 1 training image; ")
    assert validation.startswith("shards.source: pictures has 1 validation image; ")
    assert "shards.val_fraction" in validation


def test_what_shards_made_earlier_lack_is_named_before_anything_is_trained(project: Path, monkeypatch) -> None:
    worlds.write_shards(project, size=16, images=3)  # one of them is held out
    monkeypatch.setattr(train_tokenizer, "run", lambda *_: pytest.fail("it ran"))
    (line,) = complaints(lambda: runner.run_stage("tokenizer", project, project / "params.yaml"))
    assert line.startswith("data/shards has 1 validation image; ")


def test_features_that_will_not_fit_on_the_disk_are_named_before_the_first_stage(project: Path) -> None:
    add_images(project, train_cat=3, train_dog=3, val_cat=2)
    tiny.apply(project / "params.yaml", {"generator.layers": 10**14})
    (line,) = checked(project)
    assert line.startswith("evaluation.probe_images is 50000: every layer's features of 8 images need 51200000.0 GB")


def test_weights_that_the_evaluation_cannot_use_are_named_before_the_first_stage(project: Path) -> None:
    add_images(project, train_cat=3, train_dog=3, val_cat=2)
    chosen = {"evaluation.extractor": "inception-v3-compat", "evaluation.extractor_weights": "weights.safetensors"}
    tiny.apply(project / "params.yaml", chosen)
    (project / "weights.safetensors").write_bytes(b"no weights")
    (line,) = checked(project)
    assert line.startswith("evaluation.extractor_weights: ") and "does not hold Inception's weights" in line


def test_weights_that_the_tokenizer_cannot_use_are_named_before_the_first_stage(project: Path) -> None:
    add_images(project, train_cat=3, train_dog=3, val_cat=2)
    chosen = {"tokenizer.perceptual_weight": 1.0, "tokenizer.perceptual_weights": "lpips.safetensors"}
    tiny.apply(project / "params.yaml", chosen)
    save_file({"lin0.model.1.weight": worlds.lpips_weights()["lin0.model.1.weight"]}, project / "lpips.safetensors")
    (line,) = checked(project)
    assert line.startswith("tokenizer.perceptual_weights: ")


def test_weights_of_a_ready_model_that_are_cut_off_are_named_before_the_first_stage(project: Path) -> None:
    add_images(project, train_cat=3, train_dog=3, val_cat=2)
    ready = train_tokenizer.Tokenizer(TokenizerConfig.of(config.load(project / "params.yaml").tokenizer, image_size=16))
    train_tokenizer.save(project / "ready", ready)
    weights = project / "ready/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    tiny.apply(project / "params.yaml", {"tokenizer.from": "ready"})
    (line,) = checked(project)
    assert line.startswith("tokenizer.from: ") and "ready/model.safetensors: cannot be read" in line


@pytest.mark.parametrize("changes", [{"run.device": "cuda"}, {"run.device": "cuda:7"}, {"run.device": "mps"}])
def test_a_device_that_is_not_there_is_named_before_the_first_stage(project: Path, changes, monkeypatch) -> None:
    for backend in ("cuda", "backends.mps"):
        monkeypatch.setattr(f"torch.{backend}.is_available", lambda: False)
    add_images(project, train_cat=3, train_dog=3, val_cat=2)
    tiny.apply(project / "params.yaml", changes)
    (line,) = checked(project)
    assert line.startswith(f"run.device is {changes['run.device']}, ")


def test_more_processes_than_gpus_are_named_before_the_first_stage(project: Path, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    add_images(project, train_cat=3, train_dog=3, val_cat=2)
    tiny.apply(project / "params.yaml", {"run.processes": 4})
    (line,) = checked(project)
    assert line.startswith("run.processes is 4, but there are 2 CUDA devices here")
    tiny.apply(project / "params.yaml", {"run.processes": 2})
    assert check.summary(project, project / "params.yaml")


@pytest.mark.parametrize("name", ["models", "outputs", "checkpoints"])
def test_a_file_where_stages_write_a_folder_is_named_before_the_first_stage(project: Path, name: str) -> None:
    add_images(project, train_cat=3, train_dog=3, val_cat=2)
    (project / name).write_text("")
    (line,) = checked(project)
    assert line.startswith(f"{name} is not a folder")


def test_a_folder_that_stages_may_not_write_to_is_named_before_the_first_stage(project: Path, monkeypatch) -> None:
    add_images(project, train_cat=3, train_dog=3, val_cat=2)
    (project / "models").mkdir()
    allowed = os.access  # root may write anywhere
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "models" and allowed(path, mode))
    (line,) = checked(project)
    assert line.startswith(f"{project / 'models'}: no right to write there")


@pytest.mark.parametrize(
    ("source", "complaint"),
    [("data/dataset/train/3", "which the stage dataset does not write"), ("data/shards/x", "where the stage shards")],
)
def test_a_source_that_holds_no_images_is_named_before_the_first_stage(project: Path, source, complaint) -> None:
    tiny.apply(project / "params.yaml", {"shards.source": source})
    assert any(complaint in line for line in checked(project))


@pytest.mark.parametrize(
    ("setting", "place"), [("codes.draws", "data/codes"), ("samples.count", "outputs/samples.npz")]
)
def test_what_will_not_fit_on_the_disk_is_named_before_the_first_stage(project: Path, setting, place) -> None:
    add_images(project, train_cat=3, train_dog=3, val_cat=2)
    tiny.apply(project / "params.yaml", {setting: 10**14})
    (line,) = checked(project)
    assert line.startswith(f"{setting} is {10**14}: ") and f" GB in {place}, the disk has " in line


def test_images_added_to_the_source_count_though_shards_were_made_before(project: Path) -> None:
    """Of the first ones so many could not be read that the check refuses what is in the shards."""
    add_images(project, train_cat=3, train_dog=3, val_cat=2)
    (project / "pictures/val/cat/0.png").write_bytes(b"no image")
    tiny.apply(project / "params.yaml", {"shards.max_bad_fraction": 0.5})
    settings = config.load(project / "params.yaml")
    pack_shards.run(settings, Context(project))
    made = {"stages": {"shards": {"params": {"params.yaml": {"shards": settings.shards.model_dump()}}}}}
    YAML().dump(made, project / "dvc.lock")
    (line,) = complaints(lambda: check.summary(project, project / "params.yaml"))
    assert line.startswith("data/shards has 1 validation image; ")
    Image.new("RGB", (9, 9)).save(project / "pictures/val/cat/another.png")
    assert "images      16×16 from pictures: 6 to train on, 3 held out, 2 classes" in check.summary(
        project, project / "params.yaml"
    )


GATE = {"tolerance": 0.1, "relative": False, "limit": None}
FREE = {"generator.use_labels": False, "samples.guidance_scale": 1.0}


@pytest.mark.parametrize(
    ("metric", "changes", "classes", "reason"),
    [
        ("samples.fid", {}, 2, "evaluation.extractor is classifier"),
        ("zero_shot.inpaint_psnr", {"evaluation.zero_shot_images": 0}, 2, "evaluation.zero_shot_images is 0"),
        ("zero_shot.inpaint_label_agreement", FREE, 2, "generator.use_labels is false"),
        ("zero_shot.edit_label_agreement", FREE, 2, "generator.use_labels is false"),
        ("zero_shot.interpolation_agreement", {}, 1, "there is one class"),
        ("probe.best_top1", {}, 1, "there is one class"),
        ("probe.best_top1", {}, 2, None),
        ("samples.is_classifier", {"samples.count": 9}, 2, "a set has 9 images, fewer than 10"),
        ("reconstructions.is_classifier", {}, 2, "a set has 6 images, fewer than 10"),
        ("samples.precision", {"evaluation.precision_recall_neighbours": 6}, 2, "a set has no more than evaluation."),
        ("samples.precision", {"evaluation.precision_recall_neighbours": 5}, 2, None),
        ("zero_shot.inpaint_psnr", FREE, 1, None),
        ("samples.fd_classifier", {}, 1, None),
    ],
)
def test_a_metric_of_the_gate_that_will_not_be_measured_is_named_by_the_check(
    project: Path, metric: str, changes: dict[str, Any], classes: int, reason: str | None
) -> None:
    add_images(project, **{f"{split}_{name}": 3 for split in ("train", "val") for name in "ab"[:classes]})
    tiny.apply(project / "params.yaml", changes)
    yaml = YAML()
    values = yaml.load(project / "params.yaml")
    values["promotion"]["metrics"] = [{"name": metric, **GATE}]
    yaml.dump(values, project / "params.yaml")
    if reason is None:
        assert check.summary(project, project / "params.yaml")
        return
    (line,) = complaints(lambda: check.summary(project, project / "params.yaml"))
    assert line.startswith(f"promotion.metrics names {metric}, which is not measured where {reason}")
    settings = config.load(project / "params.yaml")
    images_found.check_images(project, settings, images_found.images_of(project, settings))  # the stages can do without


def test_too_few_training_images_for_a_probe_of_the_gate_are_named_by_the_check(project: Path) -> None:
    add_images(project, train_a=1, train_b=1, val_a=2)
    (line,) = complaints(lambda: check.summary(project, project / "params.yaml"))
    assert line.startswith("promotion.metrics names probe.best_top1, which is not measured where there are 2 training")


def test_the_flow_refuses_before_it_starts_a_stage(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(project / "prefect"))
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    from flows import pipeline

    add_images(project, train_a=3, val_a=1)
    monkeypatch.chdir(project)
    state = pipeline.pipeline.fn(promote=False)
    assert state.is_failed() and "1 validation image" in str(state.message)
    Image.new("RGB", (9, 9)).save(project / "pictures/val/a/another.png")
    state = pipeline.pipeline.fn()
    assert state.is_failed() and str(state.message).startswith("promotion.metrics names probe.best_top1, which is not")
