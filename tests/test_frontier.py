"""benchmarks/frontier: models, searched settings and metrics, each made once; what is on the frontier."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.frontier import measure, report, train, tune
from benchmarks.frontier.quality import Drawing, Judge, Quality
from benchmarks.machine import Machine
from bigr.data.shards import read_split
from bigr.interop.folders import model_hash
from bigr.runtime.errors import BigrError
from bigr.sampling.unmask import Sampling
from tests import tiny, worlds

IMAGES = 24


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, codes, and a tokenizer; models of two targets that were trained for a few steps."""
    root = tmp_path_factory.mktemp("frontier")
    (root / "params.yaml").write_bytes((worlds.ROOT / "params.yaml").read_bytes())
    tiny.apply(root / "params.yaml", tiny.OVERRIDES | {"generator.steps": 2, "generator.warmup_steps": 0})
    worlds.write_models(root)
    worlds.write_shards(root, size=8, classes=3, images=24)
    worlds.write_codes(root, bits=6, images=24, tokenizer=model_hash(root / "models" / "tokenizer"))
    train.main("0", "flip,direct", root, root / "params.yaml", None)
    return root


def tuned(project: Path, tries: int, **options: Any) -> list[dict[str, Any]]:
    """The first tries of a search."""
    options |= {"images": IMAGES, "budget": tries * IMAGES, "project": project, "params": project / "params.yaml"}
    tune.main(steps="3", seeds="0", **options)
    return tune.read_lines(project / "outputs" / "frontier" / "tuned" / "flip-S3.jsonl")


def test_a_trained_model_is_not_trained_again_and_one_of_other_settings_is_refused(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "function_of", lambda stage: pytest.fail(f"{stage} ran again"))
    train.main("0", "flip", project, project / "params.yaml", None)
    other = tmp_path / "params.yaml"
    other.write_bytes((project / "params.yaml").read_bytes())
    tiny.apply(other, {"generator.learning_rate": 0.5})
    with pytest.raises(BigrError, match="flip-0 was trained with other settings"):
        train.main("0", "flip", project, other, None)


def test_models_differ_in_target_and_seed_alone(project: Path) -> None:
    flip, direct = (
        json.loads((project / "outputs" / "frontier" / f"{target}-0" / "record.json").read_text())
        for target in ("flip", "direct")
    )
    assert flip["settings"]["generator"].pop("target") == "flip"
    assert direct["settings"]["generator"].pop("target") == "direct"
    assert flip["settings"] == direct["settings"]
    assert flip["seconds"].keys() == {"generator", "transcoder"}


def test_a_search_continues_where_it_was_stopped(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tuned(project, 3)
    monkeypatch.setattr(tune, "neighbour", lambda *_: pytest.fail("a try too many"))
    assert tuned(project, 3) == first
    monkeypatch.undo()
    longer = tuned(project, 4)
    assert longer[:3] == first
    settings = list(map(tune.sampling_of, longer))
    assert len(set(settings)) == 4
    assert {sampling.diffusion_steps for sampling in settings} == {3}
    assert all(0 <= line["agreement"] <= 1 and line["over_floor"] > 0 for line in longer)


def test_what_is_set_is_not_searched_and_is_checked(project: Path) -> None:
    params = project / "params.yaml"
    with pytest.raises(BigrError, match=r"samples.iterations"):
        tune.main(steps="3", set_=["iterations=99"], project=project, params=params)
    with pytest.raises(BigrError, match="KEY=VALUE"):
        tune.main(steps="3", set_=["iterations"], project=project, params=params)
    point = tune.Point("flip", {"diffusion_steps": 3, "temperature": 1.0})
    lines = tune.search(
        point,
        Sampling(2, 3),
        lambda sampling: {"over_floor": abs(sampling.guidance_scale - 3), "agreement": 1.0},
        project / "search.jsonl",
        tries=60,
        agreement=0.9,
    )
    tried = list(map(tune.sampling_of, lines))
    assert {sampling.temperature for sampling in tried} == {1.0}
    assert tune.best(tune.read_lines(project / "search.jsonl"), 0.9)["sampling"]["guidance_scale"] == 3
    assert "bit_noise" not in point.searched
    assert "bit_noise" in tune.Point("mask", point.fixed).searched


def test_enough_agreement_comes_before_a_small_distance() -> None:
    results = [
        {"agreement": 0.90, "over_floor": 1.0},
        {"agreement": 0.96, "over_floor": 9.0},
        {"agreement": 0.98, "over_floor": 3.0},
        {"agreement": 0.97, "over_floor": 2.0},
    ]
    assert tune.best(results[:2], 0.97) == results[1]
    assert tune.best(results, 0.97) == results[3]
    assert tune.best(results, 0.5) == results[0]


def test_quality_is_measured_once_and_written_with_the_speed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned(project, 2)

    def measured(rounds: int) -> None:
        measure.main(
            points="flip-S3", seeds="0", images=IMAGES, rounds=rounds, project=project, params=project / "params.yaml"
        )

    measured(0)
    out = project / "outputs" / "frontier"
    assert not (out / "frontier.json").exists()
    monkeypatch.setattr(Drawing, "images", lambda *_: pytest.fail("drawn again"))
    monkeypatch.setattr(Machine, "measured", lambda *_: Machine("a machine", 1, "AVX2", "float32", 0.1, "2", "3"))
    measured(2)
    rows = json.loads((out / "frontier.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["default", "quality", "balanced", "fast", "flip-S3"]
    assert all(row["images_per_second"] > 0 and len(row["quality"]["recall"]) == 1 for row in rows)
    assert len((out / "frontier.md").read_text().splitlines()) == 2 + len(rows)
    assert (out / "frontier.png").stat().st_size > 1000
    with pytest.raises(BigrError, match="flip-S9"):
        measure.main(points="flip-S9", seeds="0", project=project, params=project / "params.yaml")
    with pytest.raises(BigrError, match="--targets flip --seeds 7"):
        measure.main(points="flip-S3", seeds="7", project=project, params=project / "params.yaml")


def test_held_out_images_are_as_far_from_the_training_split_as_the_floor(project: Path) -> None:
    settings = worlds.settings()
    first, other = (Judge(project, project / f"classifier-{seed}", settings, seed) for seed in (1, 2))
    pairs = list(read_split(project / "data" / "shards", "val", 1))
    images = torch.stack([image for image, _ in pairs]), torch.tensor([label for _, label in pairs])
    assert first.of(*images)["over_floor"] == pytest.approx(1)
    assert first.of(*images)["agreement"] == first.accuracy
    assert first.floor != other.floor
    both = Quality(project, project, settings, (1, 2))
    noisy = images[0] // 2, images[1]
    for metric, mean in both.of(*noisy).items():
        assert mean == pytest.approx((first.of(*noisy)[metric] + other.of(*noisy)[metric]) / 2)
    assert both.accuracy == pytest.approx((first.accuracy + other.accuracy) / 2)


def test_the_frontier_is_what_nothing_beats_in_both() -> None:
    def row(name: str, speed: float, distance: float, agreement: float = 0.98) -> report.Row:
        quality = {"over_floor": [distance], "agreement": [agreement], "precision": [1.0], "recall": [1.0]}
        return report.Row(name, "flip", {}, speed, quality)

    rows = [row("slow", 1, 1.2), row("beaten", 1.5, 1.9), row("fast", 4, 1.5), row("wrong", 9, 1.1, 0.9)]
    assert [each.name for each in report.on_the_frontier(rows, 0.97)] == ["slow", "fast"]
