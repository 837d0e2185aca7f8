"""What a scheduled run leaves out: stages that DVC finds unchanged, and a gate that has judged the model before."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ruamel.yaml import YAML

from bigr import config
from bigr.pipeline.dvcfile import stages
from bigr.tracking.store import Store
from flows import gate
from flows.execution import Outcome, execute
from flows.freshness import unchanged
from flows.page import Page
from tests import mini_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that has run once."""
    folder = mini_project.make(tmp_path_factory.mktemp("freshness") / "project")
    for stage in mini_project.STAGES:
        execute(stage, folder, {}, False, lambda line: None)
    return folder


def test_dvc_tells_in_one_go_what_is_unchanged(project: Path) -> None:
    assert unchanged(project, mini_project.STAGES) == set(mini_project.STAGES)
    added = project / "data/dataset/another"
    added.write_text("an image")
    try:
        assert unchanged(project, mini_project.STAGES) == {"samples", "evaluation"}  # dataset's own output differs, too
    finally:
        added.unlink()


def test_where_dvc_cannot_tell_nothing_is_taken_for_unchanged(tmp_path: Path) -> None:
    assert unchanged(tmp_path, mini_project.STAGES) == set()


def ran(project: Path, monkeypatch: pytest.MonkeyPatch, states: dict[str, str]) -> list[str]:
    """The stages for which the flow asks `dvc repro`, where those of `states` are found unchanged."""
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    from flows import pipeline

    asked = []

    def run_stage(stage: str, folder: str, environment: Any, force: bool, unchanged: bool, **options: Any) -> Any:
        if not unchanged:
            asked.append(stage)
        return SimpleNamespace(result=lambda raise_on_failure: Outcome("cached", 0.0))

    monkeypatch.setattr(pipeline, "run_stage", SimpleNamespace(with_options=lambda **names: run_stage))
    monkeypatch.setattr(pipeline, "unchanged", lambda folder, chosen: set(states))
    graph = stages(project, config.read(project / "params.yaml"))
    page = Page("calm-heron", project, {}, {})
    assert pipeline._run(graph, mini_project.STAGES, page, {}, force=False) == ""
    return asked


def test_a_stage_is_left_out_only_where_all_that_it_reads_was(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = dict.fromkeys(mini_project.STAGES, "unchanged")
    assert ran(project, monkeypatch, everything) == []
    del everything["shards"]  # found in the cache, it may give what samples did not read before
    assert ran(project, monkeypatch, everything) == ["shards", "samples", "evaluation"]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a dvc.lock and a registry without versions."""
    folder = tmp_path_factory.mktemp("judged")
    outs = [{"path": path, "md5": f"{n}" * 32} for n, path in enumerate((*gate.MODELS, gate.SAMPLES))]
    with (folder / "dvc.lock").open("w") as file:
        YAML().dump({"schema": "2.0", "stages": {"all": {"cmd": "all", "outs": outs}}}, file)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        Store(folder).client.create_registered_model(gate.NAME)
    return folder


@pytest.mark.parametrize(
    ("samples", "tags", "alias", "expected"),
    [
        ("3" * 32, {"bigr.gate": "not promoted"}, "", False),  # the same models, other samples
        ("2" * 32, {}, "challenger", False),  # registered, and not judged
        ("2" * 32, {}, "champion", True),
        ("2" * 32, {"bigr.gate": "not promoted"}, "", True),
    ],
)
def test_the_gate_has_judged_a_model_that_has_its_decision(
    judged: Path, monkeypatch: pytest.MonkeyPatch, samples: str, tags: dict[str, str], alias: str, expected: bool
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    hashes = {"dvc.models/tokenizer": "0" * 32, "dvc.models/bigr": "1" * 32, f"dvc.{gate.SAMPLES}": samples}
    client = Store(judged).client
    version = client.create_model_version(gate.NAME, (judged / "package").as_uri(), tags={**hashes, **tags}).version
    if alias:
        client.set_registered_model_alias(gate.NAME, alias, version)
    assert gate.has_judged(judged, judged) is expected
    client.delete_model_version(gate.NAME, version)
