"""A password in a tracking URI is shown nowhere: no message, log, page or file has it."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bigr
from bigr.pipeline import promotion
from bigr.runtime.errors import BigrError
from bigr.runtime.masking import masked
from flows import page as flow_page
from tests import preloaded, scratch

SECRET = "s3cr3t-w0rd"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://ada:s3cr3t-w0rd@host:5000", "http://***@host:5000"),
        ("https://s3cr3t-w0rd@host/x?y=1", "https://***@host/x?y=1"),
        ("Max retries: 'http://ada:s3cr3t-w0rd@host:9/api/2.0' (x)", "Max retries: 'http://***@host:9/api/2.0' (x)"),
        ("postgresql+psycopg2://ada:s3cr3t-w0rd@host/db", "postgresql+psycopg2://***@host/db"),
        ("postgresql://ada:s3cr3t-w0rd/with@all@host/db", "postgresql://***@host/db"),
        ("mysql://host/db?user=ada&password=s3cr3t-w0rd&x=1", "mysql://host/db?user=ada&password=***&x=1"),
        ("http://a:s3cr3t-w0rd@one, http://b:s3cr3t-w0rd@two", "http://***@one, http://***@two"),
        ("http://127.0.0.1:5000/#/models/bigr@champion", "http://127.0.0.1:5000/#/models/bigr@champion"),
        ("sqlite:////home/ada@work/mlflow.db", "sqlite:////home/ada@work/mlflow.db"),
        ("models:/bigr@champion: no such version", "models:/bigr@champion: no such version"),
        ("ada@localhost said: nothing", "ada@localhost said: nothing"),
    ],
)
def test_what_stands_before_the_host_is_masked_and_all_else_stays(text: str, expected: str) -> None:
    assert masked(text) == expected


def test_a_password_that_no_uri_may_have_is_masked_where_it_is_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri = "http://ada:s3cr3t w0rd/'x@host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert masked(f"Failed to parse: {uri}/api") == "Failed to parse: http://***@host:5000/api"


@pytest.fixture
def uri() -> Iterator[str]:
    """Of a server with a password that nobody has started."""
    with socket.socket() as bound:  # bound, and not listening: the port stays free
        bound.bind(("127.0.0.1", 0))
        yield f"http://ada:{SECRET}@127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return scratch.make(tmp_path, real=True)


def holders(folder: Path) -> list[Path]:
    """The files below `folder` that have the secret in them."""
    return [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def test_no_command_prints_or_writes_the_password(project: Path, uri: str) -> None:
    environment = scratch.environment(project) | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    named = f"MLflow (http://***@127.0.0.1:{uri.rpartition(':')[2]})"
    said = {}
    for words, status in (
        ("dvc repro dataset", 0),
        ("bigr lineage data/dataset", 0),
        ("bigr lineage --json data/dataset", 0),
        ("bigr lineage models:/bigr@champion", 2),
        ("bigr generate 0 --model models:/bigr@champion", 2),
    ):
        done = subprocess.run(words.split(), cwd=project, env=environment, capture_output=True, text=True)
        said[words] = done.stdout + done.stderr
        assert done.returncode == status, said[words]
        assert SECRET not in said[words], words
        assert "Traceback" not in said[words], words
        assert named in said[words], words
    assert len(said["bigr generate 0 --model models:/bigr@champion"].splitlines()) == 1
    assert holders(project) == []


def test_errors_of_python_callers_show_no_password_nor_do_their_causes(
    project: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import os, bigr\nfrom pathlib import Path\nfrom bigr.pipeline import promotion\n"
        "promotion.candidate = lambda root, params: None\n"
    )
    calls = ("bigr.load('models:/bigr@champion')", "promotion.promote(Path.cwd(), Path('params.yaml'))")
    environment = scratch.environment(project) | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    environment["PYTHONPATH"] = str(project)
    for call in calls:
        done = subprocess.run(
            preloaded.python(code + call), cwd=project, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 1 and "BigrError: MLflow (http://***@127.0.0.1:" in done.stderr, done.stderr
        assert SECRET not in done.stdout + done.stderr


def test_a_flow_runs_page_links_to_the_server_without_the_password(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    text = flow_page.Page("run", Path(), {}, {}).text()
    assert f"(http://{uri.rpartition('@')[2]})" in text
    assert SECRET not in text and "***" not in text


def test_a_flow_hands_its_stages_no_password_that_prefect_could_keep(
    uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    from types import SimpleNamespace

    from flows import pipeline
    from flows.execution import Outcome
    from tests import mini_project

    handed: list[Any] = []

    def run_stage(*parameters: Any, **options: Any) -> Any:
        handed.append(parameters)
        return SimpleNamespace(result=lambda raise_on_failure: Outcome("ran", 1.0))

    said: list[str] = []
    logger = SimpleNamespace(warning=lambda text, *values: said.append(text % values))
    project = mini_project.make(tmp_path / "project")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(pipeline, "flow_run", SimpleNamespace(name="calm-heron", id="run-1"))
    monkeypatch.setattr(pipeline, "run_stage", SimpleNamespace(with_options=lambda **names: run_stage))
    monkeypatch.setattr(pipeline, "create_markdown_artifact", lambda text, **options: said.append(text))
    monkeypatch.setattr(pipeline, "get_run_logger", lambda: logger)
    monkeypatch.chdir(project)
    assert pipeline.pipeline.fn(promote=False).name == "Completed"
    assert len(handed) == len(mini_project.STAGES) and any("MLflow does not answer" in line for line in said)
    assert SECRET not in repr(handed) + repr(said)
    assert holders(project) == []


def test_a_database_that_cannot_be_opened_is_one_line_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgrezql://ada:{SECRET}@127.0.0.1:1/db")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(promotion, "candidate", lambda root, params: None)
    for ask in (lambda: bigr.load("models:/bigr@champion"), lambda: promotion.promote(tmp_path, Path("params.yaml"))):
        with pytest.raises(BigrError, match=r"MLflow \(postgrezql://\*\*\*@127.0.0.1:1/db\)") as refused:
            ask()
        assert "\n" not in str(refused.value) and SECRET not in str(refused.value)


def test_make_ui_names_the_server_without_the_password(uri: str, tmp_path: Path) -> None:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
    for word in (["ui"], ["-n", "ui"]):
        done = subprocess.run(
            ["make", "-o", ".venv/.installed", *word], cwd=scratch.ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert SECRET not in done.stdout + done.stderr
    done = subprocess.run(
        ["make", "-o", ".venv/.installed", "ui"], cwd=scratch.ROOT, env=environment, capture_output=True, text=True
    )
    assert f"http://{uri.rpartition('@')[2]}" in done.stdout
