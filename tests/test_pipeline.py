"""The whole pipeline, small but real: nothing → evaluated samples, with every output accounted for in MLflow."""

import json
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bigr import config
from bigr.cli import program
from bigr.evaluation.headline import headline
from bigr.pipeline.stage_table import NAMES
from bigr.runtime.errors import BigrError
from bigr.runtime.paths import is_code
from bigr.tracking.store import CODE, Store
from tests import scratch, tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def project(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after `dvc repro` from nothing, under settings that take seconds."""
    return scratch.copy(trained, tmp_path_factory.mktemp("pipeline") / "copy", records=True)


@pytest.fixture(autouse=True)
def default_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are in the project, whatever this session's environment says."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)


def test_second_repro_runs_nothing_and_the_first_left_the_repository_clean(project: Path) -> None:
    assert "Running stage" not in scratch.run(project, "dvc", "repro")
    assert scratch.run(project, "git", "status", "--short") == "?? dvc.lock\n"


def test_every_output_in_dvc_lock_has_a_run_that_wrote_it_and_names_what_it_read(project: Path, tmp_path: Path) -> None:
    store, stages = Store(project), config.read(project / "dvc.yaml")["stages"]
    locked = config.read(project / "dvc.lock")["stages"]
    assert tuple(locked) == NAMES
    for name, stage in locked.items():
        for out in stage["outs"]:
            found = store.runs(**{f"dvc.out.{out['path']}": out["md5"]}, bigr__kind="stage")
            assert found, f"no run wrote {out['path']}"
            run, writer = found[0], found[0].info.run_id
            assert (run.info.run_name, run.info.status) == (name, "FINISHED")
            read = {dep["path"]: dep["md5"] for dep in stage["deps"]}
            data = {f"dvc.dep.{path}": md5 for path, md5 in read.items() if not is_code(path)}
            assert {key: value for key, value in run.data.tags.items() if key.startswith("dvc.dep.")} == data
            code = json.loads(Path(store.client.download_artifacts(writer, CODE, str(tmp_path))).read_text())
            assert code == {path: md5 for path, md5 in read.items() if is_code(path)}
            assert run.data.tags["mlflow.note.content"] == stages[name]["desc"]
            assert run.data.tags["mlflow.source.git.commit"] == scratch.run(project, "git", "rev-parse", "HEAD").strip()


def test_the_stages_of_one_repro_are_under_one_parent_with_the_figures_and_the_samples(project: Path) -> None:
    store = Store(project)
    (parent,) = [run for run in store.runs(bigr__kind="pipeline") if run.info.run_name.startswith("pipeline ")]
    assert parent.data.tags["mlflow.source.name"].endswith("dvc repro")
    stages = store.runs(mlflow__parentRunId=parent.info.run_id)
    assert [run.info.run_name for run in reversed(stages)] == list(NAMES)
    figures = json.loads((project / "outputs/metrics.json").read_text())
    assert parent.data.metrics["samples.label_agreement"] == figures["samples"]["label_agreement"]
    assert "samples.png" in [file.path for file in store.client.list_artifacts(parent.info.run_id)]
    generator = next(run for run in stages if run.info.run_name == "generator")
    assert store.client.get_metric_history(generator.info.run_id, "val_loss")
    models = store.client.list_artifacts(generator.info.run_id, "models/generator")
    assert [Path(file.path).name for file in models] == ["config.json", "model.safetensors"]


def test_metrics_and_plots_are_shown(project: Path) -> None:
    shown = json.loads(scratch.run(project, "dvc", "metrics", "show", "--json"))
    figures = json.loads((project / "outputs/metrics.json").read_text())
    assert shown[""]["data"]["outputs/headline.json"]["data"] == headline(figures)
    shown = json.loads(scratch.run(project, "dvc", "metrics", "show", "--json", "outputs/metrics.json"))
    assert shown[""]["data"]["outputs/metrics.json"]["data"] == figures
    page = Path(scratch.run(project, "dvc", "plots", "show").strip().removeprefix("file://")).read_text()
    titles = [title for plot in config.read(project / "dvc.yaml")["plots"] for title in plot]
    assert titles and all(title in page for title in titles if " " in title)
    pictures = {path.name for path in (project / "dvc_plots" / "static").iterdir()}
    for name in ("samples", "reconstructions", "probe", "confusion"):
        assert any(f"{name}.png" in picture for picture in pictures)


def test_the_finished_pipeline_is_a_version_that_competes_for_champion(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    store, params = Store(project), (project / "params.yaml").read_bytes()
    (version,) = store.client.search_model_versions("name = 'bigr'")
    locked = config.read(project / "dvc.lock")["stages"]
    written = {out["path"]: out["md5"] for stage in locked.values() for out in stage["outs"]}
    kept = {key.removeprefix("dvc."): value for key, value in version.tags.items() if key.startswith("dvc.")}
    assert kept and kept.items() <= written.items()
    assert store.client.get_run(str(version.run_id)).data.tags["bigr.kind"] == "pipeline"

    def promote() -> tuple[int, str]:
        done = CliRunner().invoke(program.app, ["promote"], catch_exceptions=False)
        return done.exit_code, done.output.splitlines()[-1]

    try:
        refused = subprocess.run(
            ["bigr", "promote"], cwd=project, env=scratch.environment(project), capture_output=True, text=True
        )
        said = (refused.stdout + refused.stderr).splitlines()[-1]
        assert refused.returncode == 3 and said.startswith("version 1 is not promoted, there is no champion: ")
        gate = [{"name": "probe.best_top1", "tolerance": 0.0, "relative": False, "limit": None}]
        tiny.apply(project / "params.yaml", {"promotion.metrics": gate})
        assert promote() == (0, "version 1 is the champion now: the first champion, within all limits")
        assert promote() == (0, "version 1 is the champion already")
        tiny.apply(project / "params.yaml", {"samples.count": 50})
        with pytest.raises(BigrError, match=r"^stage samples is out of date"):
            promote()
    finally:
        (project / "params.yaml").write_bytes(params)
    assert len(store.client.search_model_versions("name = 'bigr'")) == 1


def test_an_experiment_is_run_shown_and_tracked_under_its_name(project: Path) -> None:
    said = scratch.run(project, "dvc", "exp", "run", "--temp", "-n", "guided", "-S", "samples.guidance_scale=3.0")
    ran = [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")]
    assert ran == ["samples", "evaluation"]
    shown = json.loads(scratch.run(project, "dvc", "exp", "show", "--json"))
    (experiment,) = [e for baseline in shown for e in baseline["experiments"] or []]
    data = experiment["revs"][0]["data"]
    assert data["params"]["params.yaml"]["data"]["samples"]["guidance_scale"] == 3.0
    assert "label_agreement" in data["metrics"]["outputs/headline.json"]["data"]
    (parent,) = [run for run in Store(project).runs(bigr__kind="pipeline") if run.info.run_name == "guided"]
    assert parent.data.params["samples.guidance_scale"] == "3.0"
    assert parent.info.status == "FINISHED"
    assert "guidance_scale: 3" not in (project / "params.yaml").read_text()
    assert len(Store(project).client.search_model_versions("name = 'bigr'")) == 1, "an experiment is no version"
