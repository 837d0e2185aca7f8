"""`bigr probe`: any trained model on any labelled images; what does not fit is one line."""

import csv
import json
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigr.cli import program
from bigr.evaluation.representation import folder_probe
from bigr.evaluation.representation.features import Features
from bigr.runtime.locks import only_one
from tests import tiny, worlds

CLASSES = ("blue", "dark green", "red")
OUT = {"metrics.json", "probe.csv", "probe.png", "tsne.png"}
SPLITS = {"train": 36, "val": 15}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings, untrained models for ten classes, and pictures of three that differ in colour; the current folder."""
    worlds.write_models(tmp_path, classes=10)
    shutil.copy(worlds.ROOT / "params.yaml", tmp_path)
    tiny.apply(tmp_path / "params.yaml", tiny.OVERRIDES | {"evaluation.probe_epochs": 100, "run.device": "cpu"})
    draws = np.random.default_rng(0)
    for split, count in SPLITS.items():
        for number in range(count):
            pixels = draws.integers(0, 100, (14, 11, 3), dtype=np.uint8)
            pixels[..., 2 - number % 3] += 150
            path = tmp_path / "images" / split / CLASSES[number % 3] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def probe(monkeypatch: pytest.MonkeyPatch, *words: object, images: str = "images") -> int:
    monkeypatch.setattr(sys, "argv", ["bigr", "probe", "--images", images, *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        program.main()
    return int(ended.value.code or 0)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pictures, which take most of the time."""
    monkeypatch.setattr(folder_probe.Representation, "draw", lambda self, folder, classes: None)


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_a_model_is_probed_on_images_of_classes_that_it_does_not_know(project, monkeypatch, capsys) -> None:
    assert probe(monkeypatch) == 0
    out = project / "outputs" / "probe"
    assert {path.name for path in out.iterdir()} == OUT
    assert {path.name for path in out.parent.iterdir()} == {"probe"}  # the features are gone
    found = metrics(out)
    assert found["images"] == {"source": "images", "classes": 3, **SPLITS}
    by_layer = [found["probe"][f"top1_layer_0{layer}"] for layer in (1, 2)]
    assert max(by_layer) >= 0.5  # untrained networks tell three colours apart better than chance
    assert found["probe"]["best_top1"] == by_layer[int(found["probe"]["best_layer"]) - 1]
    rows = list(csv.DictReader((out / "probe.csv").open()))
    assert [float(row["knn_top1"]) for row in rows] == [found["knn"][f"top1_layer_0{layer}"] for layer in (1, 2)]
    said = capsys.readouterr().out
    assert "3 classes; images: train 36, val 15" in said
    assert f"{found['probe']['best_top1']:.1%}*" in said


def test_what_was_there_is_replaced_only_if_a_probe_wrote_it(project, undrawn, monkeypatch, capsys) -> None:
    for _ in range(2):
        assert probe(monkeypatch, "--out", "found") == 0
    (project / "found" / "thesis.txt").touch()
    assert probe(monkeypatch, "--out", "found") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "--out found holds 'thesis.txt', which no probe wrote; name a new folder"
    )
    assert probe(monkeypatch, "--out", "params.yaml") == 2


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        (".", "--out . is the current folder, or one above it; name a new folder"),
        ("..", "--out .. is the current folder, or one above it; name a new folder"),
        ("params.yaml/new", "--out params.yaml/new cannot be written (Not a directory"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(out, reason, project, undrawn, monkeypatch, capsys) -> None:
    assert probe(monkeypatch, "--out", out) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(reason)
    assert probe(monkeypatch, "--features", "params.yaml") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("--features params.yaml cannot be written")


def test_two_probes_beside_each_other_do_not_take_each_others_features(project, undrawn, monkeypatch, capsys) -> None:
    """Within one process: `flock` keeps two openings of a file apart as it does two processes."""
    with only_one(project / "outputs" / ".probe.features" / ".lock"):
        (project / "outputs" / ".probe.features" / "train.npy").touch()
        assert probe(monkeypatch) == 2
        line = "--out outputs/probe: another `bigr probe` is writing to it; wait for it, or name another"
        assert capsys.readouterr().err.splitlines()[-1] == line
        assert (project / "outputs" / ".probe.features" / "train.npy").exists()
    assert probe(monkeypatch) == 0  # that one was killed
    assert {path.name for path in (project / "outputs").iterdir()} == {"probe"}

    write, computed = folder_probe.write_features, []
    ended = threading.Event()

    def first(path: Path, *given) -> Features:
        """While it computes, a second probe of the same images starts, and must wait."""
        computed.append(path.stem)
        if len(computed) == 1:
            other.start()
            assert not ended.wait(0.5)
        return write(path, *given)

    def second() -> None:
        second_found.extend(folder_probe._kept(project / "kept", origin, lambda split, path: pytest.fail(split)))
        ended.set()

    origin: dict[str, str] = {}
    kept, second_found = folder_probe._kept, []
    other = threading.Thread(target=second)
    monkeypatch.setattr(folder_probe, "write_features", first)
    monkeypatch.setattr(folder_probe, "_kept", lambda folder, own, do: origin.update(own) or kept(folder, own, do))
    assert probe(monkeypatch, "--features", "kept") == 0
    assert ended.wait(60)
    assert computed == ["train", "val"]
    assert [len(features) for features in second_found] == list(SPLITS.values())


def test_kept_features_are_used_again_and_only_for_what_they_are_of(project, undrawn, monkeypatch) -> None:
    computed = []
    write = folder_probe.write_features
    monkeypatch.setattr(folder_probe, "write_features", lambda path, *a: computed.append(path.stem) or write(path, *a))
    assert probe(monkeypatch, "--out", "first", "--features", "kept") == 0
    assert computed == ["train", "val"]
    assert probe(monkeypatch, "--out", "second", "--features", "kept") == 0
    assert computed == ["train", "val"]
    assert metrics(project / "second") == metrics(project / "first")
    Image.new("RGB", (9, 9), "red").save(project / "images" / "train" / "red" / "2.png")
    assert probe(monkeypatch, "--out", "third", "--features", "kept") == 0
    assert probe(monkeypatch, "--out", "fourth", "--features", "kept", "--max-images", "12") == 0
    worlds.write_models(project, classes=11)
    assert probe(monkeypatch, "--out", "fifth", "--features", "kept") == 0
    assert computed == 4 * ["train", "val"]
    assert len(list((project / "kept").glob("[!.]*"))) == 4


def test_no_more_images_than_asked_are_measured_and_a_folder_is_split(project, undrawn, monkeypatch, capsys) -> None:
    assert probe(monkeypatch, "--max-images", 10, images="images/train") == 0
    assert metrics(project / "outputs/probe")["images"] | {"source": ""} == {
        "source": "", "classes": 3, "train": 10, "val": 3,
    }  # fmt: skip
    assert "images: train 10 of 33, val 3" in capsys.readouterr().out


def test_an_image_that_cannot_be_read_is_named_or_left_out_by_the_settings(
    project, undrawn, monkeypatch, capsys
) -> None:
    (project / "images" / "train" / "red" / "2.png").write_bytes(b"no image")
    assert probe(monkeypatch) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("images/train/red/2.png cannot be read (not a JPEG, PNG or WebP image); repair")
    assert not (project / "outputs" / "probe").exists()
    tiny.apply(project / "params.yaml", {"shards.max_bad_fraction": 0.1})
    assert probe(monkeypatch) == 0
    assert metrics(project / "outputs/probe")["images"]["train"] == 35


def test_an_image_beyond_the_limit_of_pixels_is_not_decoded(project, undrawn, monkeypatch, capsys) -> None:
    (project / "images" / "train" / "red" / "2.png").write_bytes(worlds.bomb())
    with worlds.memory_grows_by_less_than(200e6):
        assert probe(monkeypatch) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("images/train/red/2.png cannot be read (20000×20000 pixels; at most 100,000,000 are read")


@pytest.mark.parametrize(
    ("words", "images", "reason"),
    [
        ((), "nothing", "--images: nothing does not exist"),
        ((), "images/train/red", "--images: images/train/red has 12 images but no class folders"),
        (("--model", "models/tokenizer"), "images", "models/tokenizer holds a model of kind 'tokenizer'"),
        (("--model", "models/nothing"), "images", "models/nothing/config.json: no such file"),
        (("--params", "nothing.yaml"), "images", "nothing.yaml: no such file"),
    ],
)
def test_what_does_not_fit_is_one_line(words, images, reason, project, monkeypatch, capsys) -> None:
    assert probe(monkeypatch, *words, images=images) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(reason)


def test_a_model_that_cannot_read_the_tokenizers_codes_is_refused(project, monkeypatch, capsys) -> None:
    worlds.write_models(project, model_bits=8)
    assert probe(monkeypatch) == 2
    assert "--model has (bits, grid) = (8, 4), --tokenizer (6, 4); name its own" in capsys.readouterr().err
    worlds.write_models(project, tokenizer="another")
    assert probe(monkeypatch) == 2
    assert "--model was trained on codes of another tokenizer" in capsys.readouterr().err
