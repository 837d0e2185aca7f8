"""A flow run with settings of its own works in a clone, leaves the user's files alone, and becomes an experiment."""

import csv
import io
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bigr import config
from bigr.runtime.errors import BigrError
from flows import workspace
from flows.execution import Outcome, StageFailed, execute
from flows.page import Page
from tests import mini_project
from tests.mini_project import run


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that has run once, with changes that nobody has committed."""
    folder = mini_project.make(tmp_path_factory.mktemp("workspace") / "project")
    for stage in mini_project.STAGES:
        execute(stage, folder, {}, False, lambda line: None)
    (folder / "params.yaml").write_text((folder / "params.yaml").read_text() + "# a note of the user's\n")
    (folder / "new file.txt").write_text("new")
    (folder / "flows/deploy.py").unlink()
    (folder / "pictures").mkdir()
    (folder / "pictures/one.png").write_text("one")
    with (folder / ".gitignore").open("a") as file:
        file.write("/pictures/\n")
    return folder


def values(project: Path) -> dict[str, Any]:
    return config.read(project / "params.yaml")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"generator.stepz": 3}, "settings: generator.stepz is not a setting; did you mean generator.steps?"),
        ({"generater.steps": 3}, "settings: generater is not a setting; did you mean generator?"),
        ({"generator.steps.most": 3}, "settings: generator.steps.most is not a setting; steps holds a value"),
        ({"generator.steps": "many"}, "settings: generator.steps must be a valid integer, got 'many'"),
        (
            {"generator.dim": 128, "generator.heads": 5},
            "settings: generator.heads must be a divisor of generator.dim = 128",
        ),
    ],
)
def test_an_override_that_does_not_fit_is_one_line(project: Path, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(BigrError) as error:
        workspace.merge(values(project), overrides)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_overrides_reach_single_settings_only(project: Path) -> None:
    before = values(project)
    merged = workspace.merge(before, {"seed": 7, "samples.guidance_scale": 2.0})
    assert merged["seed"] == 7 and merged["samples"]["guidance_scale"] == 2.0
    assert before == values(project)
    assert {**merged["samples"], "guidance_scale": before["samples"]["guidance_scale"]} == before["samples"]


def test_a_clone_holds_the_project_as_it_is_and_only_the_overrides_differ(project: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    workspace.clone(project, clone, {"samples.guidance_scale": 2.0})
    mine, theirs = (clone / "params.yaml").read_text().splitlines(), (project / "params.yaml").read_text().splitlines()
    assert [b for a, b in zip(theirs, mine, strict=True) if a.split() != b.split()] == ["  guidance_scale: 2.0"]
    assert (clone / "new file.txt").read_text() == "new"
    assert not (clone / "flows/deploy.py").exists()
    assert (clone / "data/dataset/image").read_text() == (project / "data/dataset/image").read_text()
    states = [execute(stage, clone, {}, False, lambda line: None).state for stage in mini_project.STAGES]
    assert states == ["cached", "cached", "ran", "ran"]


def test_a_clone_that_was_made_is_found_again_and_half_a_clone_is_made_anew(project: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / "half").touch()
    workspace.clone(project, clone, {"seed": 1})
    assert not (clone / "half").exists()
    (clone / "checkpoint").touch()
    workspace.clone(project, clone, {"seed": 1})
    assert (clone / "checkpoint").exists()


@pytest.fixture
def password(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The project has a remote with a password, and whatever the user's programs make can be read by all."""
    path = project / ".dvc/config.local"
    before = path.read_text() if path.exists() else None
    path.write_text((before or "") + "['remote \"store\"']\n    url = https://store\n    password = s3cr3t\n")
    mask = os.umask(0o022)
    yield "s3cr3t"
    os.umask(mask)
    path.unlink() if before is None else path.write_text(before)


def test_what_a_clone_knows_of_the_users_passwords_only_the_user_can_read(project: Path, password: str) -> None:
    clone = project / workspace.FOLDER / "2222bbbb-0"
    workspace.clone(project, clone, {"seed": 1})
    copied = clone / ".dvc/config.local"
    assert password in copied.read_text()
    assert stat.S_IMODE(copied.stat().st_mode) == 0o600
    assert stat.S_IMODE(clone.stat().st_mode) == 0o700
    assert execute("dataset", clone, {}, False, lambda line: None).state == "cached"
    workspace.remove(clone)
    assert not clone.exists()


def test_a_clone_that_was_killed_keeps_no_password_once_it_is_made_anew_or_removed(
    project: Path, password: str
) -> None:
    clone = project / workspace.FOLDER / "3333cccc-0"
    workspace.clone(project, clone, {"seed": 1})
    (clone / ".git/made").unlink()  # as after a kill in the making, when others could read the folder
    (clone / ".dvc/config.local").chmod(0o644)
    clone.chmod(0o755)
    workspace.clone(project, clone, {"seed": 1})
    assert stat.S_IMODE((clone / ".dvc/config.local").stat().st_mode) == 0o600
    assert stat.S_IMODE(clone.stat().st_mode) == 0o700
    workspace.remove(clone)
    assert list((project / ".dvc/tmp").rglob("config.local")) == []


def test_a_clone_sees_images_that_git_does_not_have(project: Path, tmp_path: Path) -> None:
    workspace.clone(project, tmp_path / "clone", {"shards.source": "pictures"})
    assert (tmp_path / "clone/pictures/one.png").read_text() == "one"
    assert (tmp_path / "clone/pictures").is_symlink()
    execute("shards", tmp_path / "clone", {}, False, lambda line: None)
    lock = (tmp_path / "clone/dvc.lock").read_text()
    assert "path: pictures" in lock and str(project) not in lock


def test_a_clone_sees_the_models_that_settings_name(project: Path, tmp_path: Path) -> None:
    (project / "ready").mkdir()
    (project / "ready/config.json").write_text("{}")
    with (project / ".gitignore").open("a") as file:
        file.write("/ready\n")
    workspace.clone(project, tmp_path / "clone", {"tokenizer.from": "ready"})
    assert (tmp_path / "clone/ready/config.json").read_text() == "{}"


def test_the_result_is_an_experiment_of_the_project(project: Path) -> None:
    before = [(project / name).read_bytes() for name in ("params.yaml", "dvc.lock")]
    status, clone = git_state(project), project / workspace.FOLDER / "1111aaaa-0"
    workspace.clone(project, clone, {"samples.guidance_scale": 3.0})
    for stage in ("samples", "evaluation"):
        execute(stage, clone, {}, False, lambda line: None)
    workspace.save(project, clone, workspace.experiment_name(project, "calm heron!", "1111aaaa-0"), mini_project.STAGES)
    assert not clone.exists()
    shown = {row["Experiment"]: row for row in csv.DictReader(io.StringIO(run(project, "dvc", "exp", "show", "--csv")))}
    assert float(shown["calm-heron"]["samples.guidance_scale"]) == 3.0
    assert float(shown["calm-heron"]["guidance"]) == 3.0
    assert [(project / name).read_bytes() for name in ("params.yaml", "dvc.lock")] == before
    assert git_state(project) == status
    assert workspace.experiment_name(project, "calm heron!", "2222bbbb-0") == "calm-heron-2222bbbb"


@pytest.mark.parametrize(("end", "stays"), [("failed", False), ("killed", True)])
def test_only_the_clone_of_a_killed_run_stays(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str, stays: bool
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    from flows import pipeline

    def run_stages(graph: Any, chosen: list[str], page: Page, *rest: object) -> str:
        assert (page.workspace / "params.yaml").is_file()
        page.stages["shards"] = end
        return f"shards: {end}"

    published = []
    monkeypatch.setattr(pipeline, "flow_run", SimpleNamespace(name="calm-heron", id=f"run-{end}"))
    monkeypatch.setattr(pipeline, "_run", run_stages)
    monkeypatch.setattr(pipeline, "_publish", lambda page, *rest: published.append(page.workspace.exists()))
    monkeypatch.chdir(project)
    state = pipeline.pipeline.fn(settings={"seed": 1})
    assert (state.name, state.message, published) == ("Failed", f"shards: {end}", [True])
    assert (project / workspace.FOLDER / f"run-{end}").exists() is stays


@pytest.mark.parametrize(
    ("settings", "promote", "competes"),
    [({"seed": 1}, None, False), ({"seed": 1}, True, True), ({}, None, True), ({}, False, False)],
)
def test_a_run_with_settings_of_its_own_competes_only_when_asked(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    settings: dict[str, Any],
    promote: bool | None,
    competes: bool,
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    from flows import pipeline

    def run_stages(graph: Any, chosen: list[str], page: Page, *rest: object) -> str:
        page.stages |= dict.fromkeys(chosen, Outcome("ran", 1.0))
        return ""

    pages: list[str] = []
    asked: list[Path] = []
    monkeypatch.setattr(pipeline, "flow_run", SimpleNamespace(name="calm-heron", id="run-competing"))
    monkeypatch.setattr(pipeline, "_run", run_stages)
    monkeypatch.setattr(pipeline, "_promote", lambda page, *rest: asked.append(page.workspace) or "")
    monkeypatch.setattr(pipeline, "_publish", lambda page, *rest: pages.append(page.text()))
    monkeypatch.setattr(pipeline.gate, "applies", lambda *rest: True)
    monkeypatch.setattr(pipeline.workspace, "save", lambda *rest: None)
    monkeypatch.chdir(project)
    deployment = config.read(project / "prefect.yaml")["deployments"][0]["parameters"]
    given = {} if promote is None else {"promote": promote}
    assert pipeline.pipeline.fn(**deployment | {"settings": settings} | given).type == "COMPLETED"
    assert bool(asked) is competes
    assert ("does not compete" in pages[0]) is (bool(settings) and not competes)


@pytest.mark.parametrize("fails", [False, True])
def test_a_page_that_prefect_does_not_take_leaves_the_runs_own_end(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails: bool
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from flows import pipeline

    def run_stage(stage: str, *_: Any, **__: Any) -> Any:
        end = StageFailed(f"{stage}: no image can be decoded") if fails else Outcome("ran", 1.0)
        return SimpleNamespace(result=lambda raise_on_failure: end)

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("the page is too large")

    monkeypatch.setattr(pipeline, "flow_run", SimpleNamespace(name="calm-heron", id="run-page"))
    monkeypatch.setattr(pipeline, "run_stage", SimpleNamespace(with_options=lambda **names: run_stage))
    monkeypatch.setattr(pipeline, "create_markdown_artifact", refuse)
    said: list[str] = []
    logger = SimpleNamespace(warning=lambda text, *values: said.append(text % values), error=lambda message: None)
    monkeypatch.setattr(pipeline, "get_run_logger", lambda: logger)
    monkeypatch.chdir(project)
    state = pipeline.pipeline.fn(promote=False)
    expected = ("Failed", "dataset: no image can be decoded") if fails else ("Completed", "4 stages ran, 0 cached")
    assert (state.name, state.message) == expected
    assert ["page is too large" in line for line in said] == [True]


def test_a_flow_run_looks_for_the_files_that_settings_name_before_it_makes_a_clone(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    from flows import pipeline

    monkeypatch.setattr(pipeline, "flow_run", SimpleNamespace(name="calm-heron", id="run-missing"))
    monkeypatch.chdir(project)
    state = pipeline.pipeline.fn(settings={"shards.source": "nowhere"})
    assert (
        state.message
        == "shards.source is nowhere, which does not exist; put the folder or file of images there, or name another"
    )
    assert not (project / workspace.FOLDER / "run-missing").exists()


def git_state(project: Path) -> str:
    return run(project, "git", "status", "--porcelain") + run(
        project, "git", "rev-parse", "HEAD", "--abbrev-ref", "HEAD"
    )


def test_only_a_git_repository_with_a_commit_can_be_cloned(project: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    with pytest.raises(BigrError, match="in a git repository only; run `git init` and commit"):
        workspace.clone(bare, tmp_path / "clone", {"seed": 1})
    subprocess.run(["git", "init", "-q"], cwd=bare, check=True)
    with pytest.raises(BigrError, match="only after the first commit; run `git commit`"):
        workspace.clone(bare, tmp_path / "clone", {"seed": 1})
