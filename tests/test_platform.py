"""The services on parts of a platform: Prefect's server and MLflow on Postgres, MLflow's files in an object store."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from bigr import config, tracking
from flows import credentials, guard
from flows.pools import POOLS
from tests import compose, mini_project, postgres, s3_server
from tests.services import Services, free_port, started

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
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    """Postgres as `user:password@host:port`, and a client of the object store, which the environment names."""
    databases = ("prefect", "mlflow", "composed_prefect", "composed_mlflow", "composed_users")
    with s3_server.serving(tmp_path_factory.mktemp("stores")), postgres.serving(*databases) as at:
        yield at, boto3.client("s3")


@pytest.fixture(scope="module")
def platform(stores: tuple[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder, (at, client) = tmp_path_factory.mktemp("platform"), stores
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


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_deployments_of_other_work_pools_are_registered_and_training_follows_on_data(
    platform: Platform, kind: str
) -> None:
    services = platform.services
    file = f"deploy/prefect/{kind}.yaml"
    (services.project / file).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(mini_project.ROOT / file, services.project / file)
    here = services.of(services.project) | {
        "BIGR_IMAGE": "bigr:1",
        "BIGR_NAMESPACE": "research",
        "PROJECT": "/srv/bigr",
    }
    for pool in services.api("/work_pools/filter", {}):
        if pool["name"] in POOLS:  # of the other kind
            services.api(f"/work_pools/{pool['name']}", method="DELETE")
    mini_project.run(services.project, "python", "-m", "flows.pools", kind, **here)
    mini_project.run(services.project, "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", file, **here)
    data, train = (services.api(f"/deployments/name/bigr/{name}") for name in ("data", "train"))
    assert (data["work_pool_name"], train["work_pool_name"]) == POOLS
    assert train["job_variables"]["image"] == "bigr:1"
    assert "PASSWORD" not in json.dumps([data["job_variables"], train["job_variables"]])
    (automation,) = services.api("/automations/related-to/prefect.deployment." + train["id"])
    assert automation["trigger"]["match_related"]["prefect.resource.name"] == "data"
    other = "kubernetes" if kind == "docker" else "docker"
    with pytest.raises(AssertionError, match=f"is of type {kind}, not {other}"):
        mini_project.run(services.project, "python", "-m", "flows.pools", other, **here)


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


# What the containers of deploy/compose.yaml run, as processes


def of_compose(at: str, folder: Path) -> dict[str, dict[str, Any]]:
    """The services of the compose file with addresses of here in the place of the containers' names."""
    ports = {name: str(free_port()) for name in ("mlflow", "prefect", "worker")}
    here = {
        "postgres-1@postgres:5432": at.partition(":")[2],
        "bigr:" + at.partition(":")[2]: at,
        "http://storage:7070": os.environ["AWS_ENDPOINT_URL"],
        "/etc/mlflow.ini": str(folder / "mlflow.ini"),
        "/tmp/prefect": str(folder / "prefect"),
        "0.0.0.0": "127.0.0.1",
        "/mlflow_users": "/composed_users",
    }
    text = json.dumps(compose.interpolated())
    for old, new in here.items():
        text = text.replace(old, new)
    for name in ("mlflow", "prefect"):
        text = text.replace(f'{at}/{name}"', f'{at}/composed_{name}"')
    for name, port in (("mlflow", "5000"), ("prefect", "4200")):
        text = text.replace(f"{name}:{port}", f"127.0.0.1:{ports[name]}").replace(
            f"127.0.0.1:{port}", f"127.0.0.1:{ports[name]}"
        )
        text = text.replace(f'"{port}"', f'"{ports[name]}"')
    text = text.replace("127.0.0.1:8080", f"127.0.0.1:{ports['worker']}")
    described = json.loads(text)
    (folder / "mlflow.ini").write_text(described["configs"]["mlflow"]["content"])
    worker = described["services"]["worker"]["environment"]
    worker |= {
        "PREFECT_WORKER_WEBSERVER_PORT": ports["worker"],
        "PREFECT_HOME": str(folder / "worker"),
        "HOME": str(folder),
    }
    return dict(described["services"])


def test_what_the_compose_file_runs_starts_is_healthy_and_asks_for_its_passwords(
    stores: tuple[str, Any], tmp_path: Path
) -> None:
    project = mini_project.make(tmp_path / "project")
    described = of_compose(stores[0], tmp_path)
    kept = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
    kept["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
    image = kept | {"DO_NOT_TRACK": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}

    def environment(name: str) -> dict[str, str]:
        named = described[name]["environment"]  # a name without a value is passed on where it is set: here it is not
        return image | {key: str(value) for key, value in named.items() if value is not None}

    subprocess.run(described["bucket"]["command"], env=environment("bucket"), cwd=project, check=True, timeout=300)
    assert stores[1].head_bucket(Bucket="bigr")
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for name in ("mlflow", "prefect", "worker"):
            log = tmp_path / f"{name}.log"
            with log.open("w") as output:
                words = [sys.executable, guard.__file__, *described[name]["command"]]
                process = subprocess.Popen(
                    words, env=environment(name), cwd=project, stdin=subprocess.PIPE, stdout=output,
                    stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
            processes.append(process)
            probe, end = described[name]["healthcheck"]["test"], time.monotonic() + 600
            assert probe[0] == "CMD"
            while subprocess.run(probe[1:], env=environment(name), capture_output=True).returncode:
                assert process.poll() is None and time.monotonic() < end, log.read_text()[-5000:]
                time.sleep(1)
        clients = described["worker"]["environment"]
        asked = [
            (f"{clients['PREFECT_API_URL']}/deployments/name/bigr/full", clients["PREFECT_API_AUTH_STRING"]),
            (
                f"{clients['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/experiments/get?experiment_id=0",
                f"{clients['MLFLOW_TRACKING_USERNAME']}:{clients['MLFLOW_TRACKING_PASSWORD']}",
            ),
        ]
        for url, login in asked:
            assert httpx.get(url, timeout=120).status_code == 401
            user, _, password = login.partition(":")
            assert httpx.get(url, auth=(user, "wrong"), timeout=120).status_code == 401
            assert httpx.get(url, auth=(user, password), timeout=120).status_code == 200, url
    finally:
        for process in reversed(processes):
            assert process.stdin
            process.stdin.close()  # the guard then ends all that it started
            process.wait(guard.GRACE_S + 60)  # on a busy machine a worker takes long to end
