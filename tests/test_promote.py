"""The gate: who becomes champion, and why not; and that both are measured on the same images."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from bigr import config
from bigr.cli.promote_command import page
from bigr.config import PromotionMetric
from bigr.evaluation.fidelity.distances import metric_names
from bigr.pipeline import promotion
from bigr.pipeline.promotion import Decision, settle
from bigr.pipeline.remeasure import Remeasurement
from bigr.pipeline.runner import run_stage
from bigr.runtime.context import Context
from bigr.runtime.errors import BigrError
from bigr.runtime.files import write_json
from bigr.runtime.metric_directions import COMPARED_METRICS, LOWER_IS_BETTER
from bigr.stages import draw_samples as samples
from bigr.stages import encode_codes, encode_texts, evaluate_model, pack_shards
from bigr.tracking.registry.gate import compare, decide
from bigr.tracking.registry.versions import NAME, Candidate, Registry, Version
from bigr.tracking.store import Store
from flows.execution import Outcome
from flows.gate import GateResult as Told
from flows.page import Page
from tests import scratch, worlds

EXTRACTORS = get_args(config.EvaluationSettings.model_fields["extractor"].annotation)
LOWER, HIGHER = "samples.fd_classifier", "samples.label_agreement"


def comparison(
    name: str = LOWER, tolerance: float = 0.1, relative: bool = False, limit: float | None = None
) -> PromotionMetric:
    return PromotionMetric(name=name, tolerance=tolerance, relative=relative, limit=limit)


def decided(by: PromotionMetric, challenger: float, champion: float | None) -> tuple[bool, str, str]:
    """Whether the challenger passes, the verdict, and why."""
    rows = compare([by], {by.name: challenger}, None if champion is None else {by.name: champion})
    passes, why = decide(rows)
    return passes, rows[0].verdict, why


@pytest.mark.parametrize(
    ("by", "challenger", "champion", "passes", "verdict"),
    [
        (comparison(LOWER), 4.9, 5.0, True, "better"),
        (comparison(LOWER), 5.1, 5.0, False, "tolerated"),
        (comparison(LOWER), 5.11, 5.0, False, "worse"),
        (comparison(LOWER), 5.0, 5.0, False, "equal"),
        (comparison(HIGHER, 0.01), 0.96, 0.95, True, "better"),
        (comparison(HIGHER, 0.01), 0.941, 0.95, False, "tolerated"),
        (comparison(HIGHER, 0.01), 0.93, 0.95, False, "worse"),
        (comparison(LOWER, 0.1, relative=True), 54.9, 50.0, False, "tolerated"),
        (comparison(LOWER, 0.1, relative=True), 55.1, 50.0, False, "worse"),
        (comparison("samples.kd_classifier", 0.1, relative=True), -9.1, -10.0, False, "tolerated"),
        (comparison("samples.kd_classifier", 0.1, relative=True), -8.9, -10.0, False, "worse"),
        (comparison(LOWER, limit=4.0), 4.5, 5.0, False, "beyond its limit"),
        (comparison(HIGHER, limit=0.9), 0.89, 0.5, False, "beyond its limit"),
        (comparison(HIGHER, limit=0.9), 0.9, None, True, "within its limit"),
        (comparison(HIGHER, limit=0.9), 0.8, None, False, "beyond its limit"),
        (comparison(HIGHER), 0.1, None, True, "no limit"),
    ],
)
def test_a_challenger_passes_where_none_is_worse_and_one_is_better(
    by: PromotionMetric, challenger: float, champion: float | None, passes: bool, verdict: str
) -> None:
    assert decided(by, challenger, champion)[:2] == (passes, verdict)


def test_one_figure_that_is_worse_outweighs_all_that_are_better() -> None:
    rows = compare([comparison(LOWER), comparison(HIGHER, 0.01)], {LOWER: 1.0, HIGHER: 0.5}, {LOWER: 9.0, HIGHER: 0.9})
    assert decide(rows) == (False, f"{HIGHER} is 0.5, worse than the champion's 0.9 by more than 0.01")


def test_a_figure_within_its_tolerance_is_made_up_for_by_a_better_one() -> None:
    rows = compare(
        [comparison(LOWER), comparison(HIGHER, 0.01)], {LOWER: 5.05, HIGHER: 0.91}, {LOWER: 5.0, HIGHER: 0.9}
    )
    assert decide(rows) == (True, f"better in {HIGHER}, in no metric worse by more than its tolerance")


def test_every_reason_is_told() -> None:
    assert decided(comparison(LOWER), 5.0, 5.0)[2] == "no metric is better than the champion's"
    assert decided(comparison(HIGHER, limit=0.9), 0.8, None)[2] == f"{HIGHER} is 0.8, and a champion has at least 0.9"
    assert decided(comparison(LOWER, limit=4), 4.5, None)[2] == f"{LOWER} is 4.5, and a champion has at most 4"


@pytest.mark.parametrize("limit", [5.05, 7.0])
def test_at_worst_is_the_stricter_of_tolerance_and_limit(limit: float) -> None:
    (row,) = compare([comparison(LOWER, 0.1, limit=limit)], {LOWER: 4.0}, {LOWER: 5.0})
    assert row.worst == min(limit, 5.1)


def test_a_figure_that_was_not_measured_is_named_with_those_that_were() -> None:
    with pytest.raises(BigrError, match=r"names samples\.fid, which .* did not measure; it measured a\.b, c\.d"):
        compare([comparison("samples.fid")], {"c.d": 1.0, "a.b": 2.0}, None)


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_the_distances_of_every_extractor_can_be_compared(extractor: str) -> None:
    called = metric_names(extractor)
    assert {f"{part}.{name}" for part in ("samples", "reconstructions") for name in called[:2]} <= LOWER_IS_BETTER
    scores = {f"{part}.{called.score}" for part in ("samples", "reconstructions")}
    assert scores <= set(COMPARED_METRICS) - LOWER_IS_BETTER


# The registry behind the gate.


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "BIGR_EXECUTION"):
            patch.delenv(name, raising=False)
        root = tmp_path_factory.mktemp("promote")
        worlds.write_models(root)
        write_json(root / "data/shards/index.json", {"image_size": 8, "classes": ["a", "b", "c"], "splits": {}})
        yield Registry(Store(root))


@pytest.fixture
def offer(registry: Registry) -> Callable[..., Decision]:
    """Let a model, named by a hash, with these two figures compete; the registry starts empty."""
    if registry.client.search_registered_models():
        registry.client.delete_registered_model(NAME)
    root = Path(registry.store.uri.removeprefix("sqlite:///")).parent
    by = [{"name": LOWER, "tolerance": 0.1, "relative": True, "limit": None}]
    by += [{"name": HIGHER, "tolerance": 0.01, "relative": False, "limit": 0.5}]

    def compete(name: str, distance: float, agreement: float, images: str = "images") -> Decision:
        write_json(
            root / "outputs/metrics.json", {"samples": {"fd_classifier": distance, "label_agreement": agreement}}
        )
        hashes = {"models/tokenizer": "t", "models/bigr": name, "data/shards": images, "outputs/metrics.json": name}
        return settle(Candidate(root, worlds.settings(promotion__metrics=by), hashes), registry)

    return compete


def aliases(registry: Registry) -> dict[str, int]:
    return {name: int(number) for name, number in registry.client.get_registered_model(NAME).aliases.items()}


def test_the_first_within_its_limits_becomes_champion_and_the_best_stays(
    registry: Registry, offer: Callable[..., Decision]
) -> None:
    poor = offer("poor", 9.0, 0.4)
    assert poor.summary == (
        f"version 1 is not promoted, there is no champion: {HIGHER} is 0.4, and a champion has at least 0.5"
    )
    assert aliases(registry) == {"challenger": 1}
    assert offer("first", 9.0, 0.8).promoted
    assert aliases(registry) == {"challenger": 2, "champion": 2}
    worse = offer("worse", 8.0, 0.7)
    assert (worse.promoted, worse.champion, worse.version) == (False, 2, 3)
    assert aliases(registry) == {"challenger": 3, "champion": 2}
    better = offer("better", 8.0, 0.8)
    assert (better.promoted, better.champion) == (True, 2)
    assert aliases(registry) == {"challenger": 4, "champion": 4}
    notes = {int(v.version): v.tags["bigr.gate"] for v in registry.client.search_model_versions(f"name = '{NAME}'")}
    assert notes[3] == worse.summary and notes[4] == better.summary


def test_the_champion_that_competes_again_stays_without_a_comparison(
    registry: Registry, offer: Callable[..., Decision]
) -> None:
    offer("only", 9.0, 0.8)
    again = offer("only", 9.0, 0.8)
    assert (again.is_champion, again.promoted, again.summary) == (True, False, "version 1 is the champion already")
    assert len(registry.client.search_model_versions(f"name = '{NAME}'")) == 1


def test_a_challenger_that_failed_fails_again_and_is_no_new_version(
    registry: Registry, offer: Callable[..., Decision]
) -> None:
    offer("first", 9.0, 0.8)
    verdicts = [offer("worse", 8.0, 0.7).summary for _ in range(2)]
    assert verdicts[0] == verdicts[1]
    assert len(registry.client.search_model_versions(f"name = '{NAME}'")) == 2


def test_the_page_shows_every_figure_and_the_decision_last(offer: Callable[..., Decision]) -> None:
    offer("first", 9.0, 0.8)
    lines = page(offer("worse", 8.0, 0.7))
    assert lines[0].split() == ["metric", "champion", "challenger", "at", "worst", "verdict"]
    assert lines[1].split() == [LOWER, "9", "8", "9.9", "better"]
    assert lines[2].split() == [HIGHER, "0.8", "0.7", "0.79", "worse"]
    assert lines[-1].startswith("version 2 is not promoted, version 1 stays the champion: ")


def test_the_page_of_a_flow_run_shows_the_same() -> None:
    row = {"name": LOWER, "champion": None, "challenger": 8.0, "worst": 9.9, "verdict": "within its limit"}
    shown = Page("run", Path(), {}, {}, {"evaluation": Outcome("cached", 1.0)})
    assert "Promotion" not in shown.text()
    shown.gate = Told("Promoted", "version 1 is the champion now", (row,), "version 0 was measured again")
    assert "## Promotion\n\nVersion 1 is the champion now. Version 0 was measured again.\n" in shown.text()
    assert f"| {LOWER} | — | 8 | 9.9 | within its limit |" in shown.text()


# Measured on the same images, by the same extractor.


def settings(**changes: Any) -> Any:
    own = {
        "samples__count": 12,
        "samples__batch_size": 12,
        "samples__iterations": 4,
        "samples__diffusion_steps": 4,
        "shards__image_size": 8,
        "shards__source": "pictures",
        "tokenizer__attention_resolutions": [],
        "evaluation__classifier_steps": 5,
        "evaluation__precision_recall_neighbours": 2,
    }
    return worlds.settings(**own | changes)


def write_pictures(root: Path, count: int) -> None:
    """A source folder of random pictures, the same first ones for any `count`."""
    draws = np.random.default_rng(0)
    for number in range(count):
        for split in ("train", "val"):
            path = root / "pictures" / split / str(number % 3) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


def pipeline(root: Path, hashes: dict[str, str], own: Any) -> Candidate:
    """Run what measures a model, as `dvc repro` does."""
    for stage in (pack_shards, encode_codes, samples, evaluate_model):
        stage.run(own, Context(root))
    return Candidate(root, own, hashes)


def test_a_champion_of_older_images_is_measured_again_on_the_new_ones(registry: Registry, tmp_path: Path) -> None:
    if registry.client.search_registered_models():
        registry.client.delete_registered_model(NAME)
    by = [{"name": LOWER, "tolerance": 1e9, "relative": False, "limit": None}]
    old = settings(promotion__metrics=by, samples__guidance_scale=3.0)
    new = settings(promotion__metrics=by, samples__count=15)
    write_pictures(tmp_path, 12)
    worlds.write_models(tmp_path)
    hashes = {"models/tokenizer": "t1", "models/bigr": "b1", "data/shards": "s1", "outputs/metrics.json": "m1"}
    champion = pipeline(tmp_path, hashes, old)
    assert settle(champion, registry).promoted

    write_pictures(tmp_path, 15)
    both = new.model_copy(update={"samples": new.samples.model_copy(update={"guidance_scale": 3.0})})
    expected = pipeline(tmp_path, {}, both).metrics  # what the champion's own models come to on the new images
    worlds.write_models(tmp_path, bits=5)
    hashes = {"models/tokenizer": "t2", "models/bigr": "b2", "data/shards": "s2", "outputs/metrics.json": "m2"}
    challenger = pipeline(tmp_path, hashes, new)
    assert challenger.metrics[LOWER] != expected[LOWER]

    decision = settle(challenger, registry)
    assert "version 1, the champion" in decision.measured_again and "15 new samples" in decision.measured_again
    assert decision.measured_again in " ".join(page(decision))
    assert decision.rows[0].champion == pytest.approx(expected[LOWER])
    assert decision.rows[0].challenger == pytest.approx(challenger.metrics[LOWER])
    (run,) = registry.store.search(
        "dataset.name = 'data/shards' and dataset.digest = 's2' and tags.`bigr.version` = '1'"
    )
    assert run.info.run_name == "version 1 again"
    assert run.data.tags["mlflow.parentRunId"] == registry.client.get_model_version(NAME, "2").run_id
    first = registry.find(champion)
    assert first is not None
    assert registry.metrics(first, challenger.protocol) == pytest.approx(expected)
    assert not list((tmp_path / ".dvc/tmp/promote").iterdir())


def test_a_challenger_with_fewer_samples_than_the_champion_never_wins_and_nothing_is_measured_for_it(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if registry.client.search_registered_models():
        registry.client.delete_registered_model(NAME)
    by = [{"name": LOWER, "tolerance": 1e9, "relative": False, "limit": None}]
    worlds.write_models(tmp_path)
    write_json(tmp_path / "data/shards/index.json", {"image_size": 8, "classes": ["a", "b", "c"], "splits": {}})

    def offer(name: str, samples: int, distance: float) -> Decision:
        metrics = {"samples": {"fd_classifier": distance, "images": samples}}
        write_json(tmp_path / "outputs/metrics.json", metrics)
        hashes = {"models/tokenizer": "t", "models/bigr": name, "data/shards": "s", "outputs/metrics.json": name}
        return settle(Candidate(tmp_path, settings(promotion__metrics=by, samples__count=samples), hashes), registry)

    def measured_again_at(distance: float) -> Callable[..., None]:
        def measure(self: Remeasurement, _: object, settings: config.Settings, *rest: object) -> None:
            figures = {"fd_classifier": distance, "images": settings.samples.count}
            write_json(self.root / "outputs/metrics.json", {"samples": figures})

        return measure

    monkeypatch.setattr(Remeasurement, "measure", measured_again_at(9.0))
    assert offer("usual", 1000, 9.0).promoted
    quick = offer("quick", 100, 1.0)
    assert not quick.promoted and not quick.measured_again and aliases(registry)["champion"] == 1
    assert quick.why.endswith("set samples.count to 1000 or more")
    longer = offer("longer", 2000, 9.5)
    assert not longer.promoted and longer.measured_again
    better = offer("better", 1000, 8.0)
    assert better.promoted, "a comparison with more samples must not shut out the usual ones"
    assert not offer("quick again", 100, 1.0).promoted and aliases(registry)["champion"] == better.version


def test_a_champion_that_cannot_be_measured_on_the_new_images_is_named_with_the_remedy(
    registry: Registry, offer: Callable[..., Decision], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise BigrError("it is for 8-pixel images")

    offer("first", 9.0, 0.8)
    monkeypatch.setattr(Remeasurement, "measure", refuse)
    with pytest.raises(
        BigrError, match=r"version 1, cannot be measured .* \(it is for 8-pixel images\); choose by hand"
    ):
        offer("second", 8.0, 0.8, images="new")
    assert aliases(registry) == {"challenger": 2, "champion": 1}


def test_measuring_again_with_another_extractor_is_refused(
    offer: Callable[..., Decision], monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_extractor(self: Remeasurement, *_: object) -> None:
        write_json(self.root / "outputs/protocol.json", {"extractor": "another"})
        write_json(self.root / "outputs/metrics.json", {})

    offer("first", 9.0, 0.8)
    monkeypatch.setattr(Remeasurement, "measure", other_extractor)
    with pytest.raises(BigrError, match="measured with another extractor than the challenger"):
        offer("second", 8.0, 0.8, images="new")


@pytest.mark.slow
def test_the_stage_and_promote_name_the_same_evaluation_protocol_so_that_nothing_is_measured_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    project = scratch.make(tmp_path, real=True)
    monkeypatch.chdir(project)
    params = project / "params.yaml"
    by = [{"name": LOWER, "tolerance": 1e9, "relative": False, "limit": None}]
    own = settings(promotion__metrics=by)
    write_json(params, own.model_dump())  # JSON is YAML
    write_pictures(project, 12)
    pack_shards.run(own, Context(project))

    def finish(number: int) -> None:
        """A pipeline that has made another model."""
        monkeypatch.setenv("BIGR_EXECUTION", f"execution {number}")
        worlds.write_models(project, bits=5 + number)
        encode_codes.run(own, Context(project))
        encode_texts.run(own, Context(project))
        samples.run(own, Context(project))
        run_stage("evaluation", project, params)
        scratch.run(project, "dvc", "commit", "-q", "-f", "samples", "evaluation")

    registry = Registry(Store(project))

    def measured(version: Version) -> list[str]:
        """The digests of the protocols under which a version's metric was recorded, one for each record."""
        logged = registry.client.get_logged_model(version.model_id).metrics or []
        return [str(metric.dataset_digest) for metric in logged if metric.key == LOWER]

    finish(1)
    first = registry.named("models:/bigr/1")
    protocol = measured(first)
    assert len(protocol) == 1
    registry.promote(first)  # by hand, as on MLflow's page
    finish(2)
    decision = promotion.promote(project, params)
    assert (decision.version, decision.champion, decision.measured_again) == (2, 1, "")
    assert measured(first) == measured(registry.named("models:/bigr/2")) == protocol


def test_there_is_nothing_to_promote_before_the_pipeline_has_finished(tmp_path: Path) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((worlds.ROOT / name).read_bytes())
    with pytest.raises(BigrError, match="does not exist, so there is nothing to promote; run `dvc repro` first"):
        promotion.promote(tmp_path, tmp_path / "params.yaml")
    assert not (tmp_path / "mlflow.db").exists()


def test_a_database_that_is_none_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(promotion, "candidate", lambda root, params: None)
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 100)
    with pytest.raises(BigrError, match=r"mlflow.db\) could not be asked: .*file is not a database") as refused:
        promotion.promote(tmp_path, tmp_path / "params.yaml")
    assert "\n" not in str(refused.value)


def test_the_settings_of_the_project_name_figures_that_its_extractor_gives() -> None:
    for file in (worlds.ROOT / "params.yaml", *(worlds.ROOT / "recipes").glob("*.yaml")):
        chosen = config.load(file)
        others = {name for other in EXTRACTORS if other != chosen.evaluation.extractor for name in metric_names(other)}
        assert not {by.name.split(".")[1] for by in chosen.promotion.metrics} & others, file.name


def test_a_decision_is_told_to_machines_in_json(offer: Callable[..., Decision]) -> None:
    told = json.loads(json.dumps(offer("first", 9.0, 0.8).as_json()))
    assert (told["version"], told["champion"], told["promoted"], told["is_champion"]) == (1, None, True, True)
    assert told["rows"][1]["verdict"] == "within its limit" and told["summary"].startswith("version 1 is the champion")
