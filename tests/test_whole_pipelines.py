"""All stages in order on images that are not like the digits: odd grids, one class, very many, one image a class.

Networks are tiny and learn nothing; what comes out has the shape and the number that was asked for, its metrics are
finite and in range, and what was left out is named.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import bigr
from bigr.runtime.context import Context
from bigr.stages import (
    draw_samples,
    encode_codes,
    evaluate_model,
    pack_shards,
    train_generator,
    train_tokenizer,
    train_transcoder,
)
from tests import worlds

STAGES = (pack_shards, train_tokenizer, encode_codes, train_generator, train_transcoder, draw_samples, evaluate_model)


def write_images(root: Path, *, size: int, classes: int, train: int, val: int) -> None:
    """Smooth random images in root/pictures/{train,val}/<class>: so many of each class."""
    draws = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / "pictures" / split / f"{label:04d}"
            folder.mkdir(parents=True)
            for number in range(count):
                coarse = Image.fromarray(draws.integers(0, 256, (4, 4, 3), dtype=np.uint8))
                coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{number}.png")


def run_pipeline(root: Path, **overrides: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run every stage on root/pictures; what metrics.json and evaluation-parts.json hold."""
    chosen: dict[str, Any] = {
        "shards__source": "pictures",
        "run__workers": 1,
        "tokenizer__steps": 2,
        "tokenizer__attention_resolutions": [],
        "generator__steps": 2,
        "transcoder__steps": 2,
        "evaluation__classifier_steps": 3,
        "evaluation__zero_shot_images": 4,
        "evaluation__knn_neighbours": 200,
        "evaluation__tsne_perplexity": 500.0,
    }
    settings = worlds.settings(**chosen | overrides)
    for stage in STAGES:
        stage.run(settings, Context(root))
    size, count = settings.shards.image_size, settings.samples.count
    with np.load(root / "outputs" / "samples.npz") as drawn:
        assert drawn["arr_0"].shape == (count, size, size, 3)
        assert drawn["arr_1"].shape == (count,)
    for name in ("samples.png", "reconstructions.png", "plots/bits.png", "plots/confusion.png"):
        with Image.open(root / "outputs" / name) as picture:
            picture.load()
    metrics = json.loads((root / "outputs" / "metrics.json").read_text())
    check_metrics(metrics)
    parts = json.loads((root / "outputs" / "evaluation-parts.json").read_text())
    assert parts["failed"] == {}
    assert metrics["samples"]["images"] == count
    return metrics, parts


def check_metrics(metrics: dict[str, dict[str, float]]) -> None:
    """Every metric is finite, every share from 0 to 1."""
    shares = ("agreement", "accuracy", "top1", "top5", "precision", "recall", "entropy", "share")
    for part, figures in metrics.items():
        for name, value in figures.items():
            assert math.isfinite(value), (part, name)
            if name.endswith(shares) or name.startswith(("top1", "top5")):
                assert 0 <= value <= 1 + 1e-12, (part, name, value)
            if name.startswith("fd_"):
                assert value >= -1e-3, (part, name, value)


APPLICATIONS = {f"zero_shot.{name}" for name in ("inpainting", "editing", "interpolation", "enrichment")}


@pytest.mark.parametrize(
    ("size", "multipliers", "iterations"),
    [(28, [1, 1, 2], 12), (6, [1, 1], 4), (5, [1], 3), (2, [2, 2], 1)],
    ids=["7x7 tokens of 4 pixels", "3x3 tokens of 2 pixels", "5x5 tokens of a pixel", "a single token"],
)
def test_images_of_any_grid_go_through_the_whole_pipeline(tmp_path: Path, size, multipliers, iterations) -> None:
    write_images(tmp_path, size=size, classes=3, train=8, val=4)
    metrics, parts = run_pipeline(
        tmp_path,
        shards__image_size=size,
        tokenizer__channel_multipliers=multipliers,
        samples__iterations=iterations,
        samples__count=30,  # more than there are images
        tokenizer__embed_dim=64,  # of a single token GroupNorm needs more than a channel a group
    )
    assert set(parts["measured"]) >= {"fidelity", "representation", *APPLICATIONS}
    assert metrics["zero_shot"]["images"] == 4
    (made,) = bigr.load(tmp_path, params=None).enrich(Image.new("RGB", (9, 7), "red"), iterations=1, diffusion_steps=2)
    assert made.size == (size, size)


def test_images_of_one_class_go_through_and_what_needs_another_is_left_out_and_named(tmp_path: Path) -> None:
    write_images(tmp_path, size=8, classes=1, train=12, val=6)
    metrics, parts = run_pipeline(tmp_path, shards__image_size=8, samples__iterations=2)
    assert set(parts["left_out"]) == {"representation", "zero_shot.editing", "zero_shot.interpolation"}
    assert all("one class" in reason for reason in parts["left_out"].values())
    assert not {"probe", "knn"} & metrics.keys()
    assert {"inpaint_psnr", "inpaint_label_agreement", "enrich_label_agreement"} <= metrics["zero_shot"].keys()


@pytest.mark.slow
def test_a_thousand_classes_of_one_image_each_go_through(tmp_path: Path) -> None:
    write_images(tmp_path, size=8, classes=1000, train=1, val=1)
    metrics, parts = run_pipeline(
        tmp_path,
        shards__image_size=8,
        samples__iterations=2,
        samples__count=25,  # fewer than there are classes
        tokenizer__batch_size=64,
    )
    assert set(parts["measured"]) >= {"fidelity", "representation", *APPLICATIONS}
    assert metrics["val_against_train"]["images"] == 1000


def test_the_fewest_images_go_through_with_settings_made_for_many(tmp_path: Path) -> None:
    """Two classes of one image each, in either split, and every batch, subset and neighbourhood larger than that."""
    write_images(tmp_path, size=8, classes=2, train=1, val=1)
    metrics, parts = run_pipeline(
        tmp_path, shards__image_size=8, samples__iterations=2, samples__count=50, evaluation__zero_shot_images=100
    )
    sets = ("samples", "reconstructions", "val_against_train")
    assert {"representation", *(f"precision and recall of {name}" for name in sets)} == set(parts["left_out"])
    assert metrics["zero_shot"]["images"] == 2


def test_images_that_are_all_the_same_go_through(tmp_path: Path) -> None:
    """As the codes of a tokenizer that has collapsed are: nothing varies, and nothing may be divided by that."""
    for split, count in (("train", 8), ("val", 5)):
        for label in ("a", "b"):
            for number in range(count):
                path = tmp_path / "pictures" / split / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8)).save(path)
    metrics, parts = run_pipeline(tmp_path, shards__image_size=8, samples__iterations=2)
    assert parts["left_out"] == {}
    assert metrics["codes"]["dead_bits"] > 0


def test_three_training_images_are_enough_for_a_probe(tmp_path: Path) -> None:
    write_images(tmp_path, size=8, classes=3, train=1, val=1)
    metrics, _ = run_pipeline(tmp_path, shards__image_size=8, samples__iterations=2, evaluation__zero_shot_images=0)
    assert {"best_top1", "best_layer"} <= metrics["probe"].keys() & metrics["knn"].keys()
