"""The services on parts of a platform: Prefect's server and MLflow on Postgres, MLflow's files in an object store."""

import os
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bigr import config, tracking
from flows import credentials
from tests import mini_project, postgres, s3_server
from tests.services import Services, started

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(postgres.MISSING), reason=postgres.MISSING),
]
boto3 = pytest.importorskip("boto3")
pytest.importorskip("moto.server")
pytest.importorskip("psycopg2")

BUCKET = "bucket"


@dataclass(frozen=True)
class Platform:
    """Services, the server of Postgres as `user:password@host:port`, and a client of the object store."""

    services: Services
    at: str
    s3: Any

    def asked(self, database: str, question: str) -> str:
        """What `psql` answers."""
        assert postgres.PROGRAMS
        words = [postgres.PROGRAMS / "psql", "-At", "-c", question, f"postgresql://{self.at}/{database}"]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()

    def login(self) -> dict[str, str]:
        """The environment of a machine that records through MLflow's server, and knows nothing of the object store."""
        server = f"http://127.0.0.1:{self.services.environment['MLFLOW_PORT']}"
        return {"MLFLOW_TRACKING_URI": server, **credentials.mlflow_login(self.services.project)}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("platform")
    with s3_server.serving(folder), postgres.serving("prefect", "mlflow") as at:
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        where = {
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{at}/prefect",
            "MLFLOW_BACKEND_STORE_URI": f"postgresql://{at}/mlflow",
            "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/mlflow",
        }
        names = ("prefect", "worker", "mlflow")
        with started(folder, mini_project.make(folder / "project"), names=names, **where) as services:
            yield Platform(services, at, client)


def test_runs_are_in_postgres_and_no_database_is_in_the_folder(platform: Platform) -> None:
    run = platform.services.watch()
    assert run["state_name"] == "Completed", run["state"]
    assert platform.asked("prefect", f"select name from flow_run where id = '{run['id']}'") == run["name"]
    assert not list((platform.services.project / ".prefect").glob("*.db"))
    assert not (platform.services.project / "mlflow.db").exists()


def test_a_stage_records_through_the_server_to_postgres_and_the_object_store(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = platform.services
    health = f"{platform.login()['MLFLOW_TRACKING_URI']}/health"
    services.wait_for(lambda: urllib.request.urlopen(health, timeout=5).status == 200)
    weights = os.urandom(1000)
    (tmp_path / "models/bigr").mkdir(parents=True)
    (tmp_path / "models/bigr/model.safetensors").write_bytes(weights)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {**platform.login(), "BIGR_EXECUTION": "platform"}.items():
        monkeypatch.setenv(name, value)
    tracker = tracking.Tracker(tmp_path, "transcoder", config.load(mini_project.ROOT / "params.yaml"), {}, "")
    tracker.metrics({"loss": 0.5})
    assert tracker.finish("FINISHED", {"models/bigr": "c0de.dir"})
    assert platform.asked("mlflow", "select value from latest_metrics where key = 'loss'") == "0.5"
    stored = platform.s3.list_objects_v2(Bucket=BUCKET, Prefix="mlflow/")["Contents"]
    (key,) = [one["Key"] for one in stored if one["Key"].endswith("/models/bigr/model.safetensors")]
    assert platform.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == weights


def test_no_password_of_a_database_is_in_a_log_or_on_a_command_line(platform: Platform) -> None:
    password = platform.at.partition(":")[2].partition("@")[0]
    assert password not in platform.services.log.read_text()
    for process in platform.services.processes():
        assert password not in " ".join(process.cmdline())


def test_a_dump_of_the_databases_restores_every_run(platform: Platform, tmp_path: Path) -> None:
    assert postgres.PROGRAMS
    for database, table in (("prefect", "flow_run"), ("mlflow", "runs")):
        question = f"select count(*) from {table}"
        before = platform.asked(database, question)
        assert before != "0"
        address, dump = f"postgresql://{platform.at}/{database}", tmp_path / f"{database}.dump"
        programs = postgres.PROGRAMS
        subprocess.run([programs / "pg_dump", "--format=custom", f"--file={dump}", address], check=True)
        subprocess.run([programs / "psql", "-q", "-c", f"create database restored_{database}", address], check=True)
        restore = f"--dbname=postgresql://{platform.at}/restored_{database}"
        subprocess.run([programs / "pg_restore", "--no-owner", restore, dump], check=True)
        assert platform.asked(f"restored_{database}", question) == before
