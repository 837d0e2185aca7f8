"""The passwords of the services: where they are kept, for whom, and that MLflow asks for its own."""

import configparser
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path

import psutil
import pytest

from bigr.runtime.errors import BigrError
from flows import credentials, services
from tests import mini_project

URL = "http://127.0.0.1:4200/api"


def modes(project: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in (project / credentials.FOLDER).iterdir()}


def test_passwords_are_made_once_and_only_the_user_can_read_them(tmp_path: Path) -> None:
    (tmp_path / credentials.FOLDER).mkdir(mode=0o755)
    before = os.umask(0)
    try:
        first, _ = credentials.prefect(tmp_path, URL), credentials.mlflow(tmp_path)
    finally:
        os.umask(before)
    assert modes(tmp_path) == {0o600} and stat.S_IMODE((tmp_path / credentials.FOLDER).stat().st_mode) == 0o700
    moved = credentials.prefect(tmp_path, "http://127.0.0.1:4300/api")
    assert moved == first | {"PREFECT_API_URL": "http://127.0.0.1:4300/api"}
    ini = (tmp_path / credentials.MLFLOW).read_text()
    credentials.mlflow(tmp_path)
    assert (tmp_path / credentials.MLFLOW).read_text() == ini


def test_two_projects_have_different_passwords(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one, two = (credentials.prefect(tmp_path / name, URL)["PREFECT_API_AUTH_STRING"] for name in ("one", "two"))
    assert one != two and len(one) > 32


def test_profiles_of_the_user_stay_and_keep_the_word(tmp_path: Path) -> None:
    (tmp_path / credentials.FOLDER).mkdir()
    path = tmp_path / credentials.PROFILES
    path.write_text('active = "at work"\n[profiles."at work"]\nPREFECT_API_URL = "https://prefect.example/api"\n')
    credentials.prefect(tmp_path, URL)
    said = path.read_text()
    assert 'active = "at work"' in said and "https://prefect.example/api" in said and URL in said


def test_a_file_of_profiles_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / credentials.FOLDER).mkdir()
    (tmp_path / credentials.PROFILES).write_text("active = \n")
    with pytest.raises(BigrError, match=r"profiles\.toml"):
        credentials.prefect(tmp_path, URL)


def test_a_new_password_of_mlflow_is_not_held_up_by_the_old_users(tmp_path: Path) -> None:
    credentials.mlflow(tmp_path)
    users = tmp_path / credentials.MLFLOW_USERS
    users.write_text("who knows the old one")
    (tmp_path / credentials.MLFLOW).unlink()
    credentials.mlflow(tmp_path)
    assert not users.read_text()


def test_a_tracking_server_elsewhere_leaves_mlflow_out_and_needs_no_password(tmp_path: Path) -> None:
    there = {"MLFLOW_TRACKING_URI": "https://mlflow.example"}
    assert services.prepare(tmp_path, ["mlflow"], there)[0] == []
    assert not (tmp_path / credentials.FOLDER).exists()
    assert services.prepare(tmp_path, ["mlflow"], {"MLFLOW_PORT": str(free_port())})[0] == ["mlflow"]


def test_where_mlflows_database_is_elsewhere_stages_record_through_the_server_here(tmp_path: Path) -> None:
    port = str(free_port())
    there = {"MLFLOW_BACKEND_STORE_URI": "postgresql://ada:secret@db.example/mlflow", "MLFLOW_PORT": port}
    chosen, added = services.prepare(tmp_path, ["worker", "mlflow"], there | {"PREFECT_API_URL": URL})
    ini = configparser.ConfigParser(interpolation=None)
    ini.read(tmp_path / credentials.MLFLOW)
    assert chosen == ["worker", "mlflow"] and added["MLFLOW_TRACKING_URI"] == f"http://127.0.0.1:{port}"
    assert added["MLFLOW_TRACKING_PASSWORD"] == ini["mlflow"]["admin_password"]
    _, alone = services.prepare(tmp_path, ["mlflow"], {"MLFLOW_PORT": port})
    assert "MLFLOW_TRACKING_URI" not in alone


def test_a_start_that_is_refused_leaves_the_address_of_the_running_server(tmp_path: Path) -> None:
    credentials.prefect(tmp_path, URL)
    kept = (tmp_path / credentials.PROFILES).read_bytes()
    ports = {"PREFECT_PORT": str(free_port()), "MLFLOW_PORT": str(free_port())}
    with socket.create_server(("127.0.0.1", int(ports["MLFLOW_PORT"]))), pytest.raises(BigrError, match="is taken"):
        services.prepare(tmp_path, services.SERVICES, ports)
    (tmp_path / services.PID).parent.mkdir()
    with subprocess.Popen(["honcho", "60"], executable="/bin/sleep") as process:
        (tmp_path / services.PID).write_text(f"{process.pid}\n")
        with pytest.raises(BigrError, match="run already"):
            services.prepare(tmp_path, services.SERVICES, ports)
        process.kill()
    assert (tmp_path / credentials.PROFILES).read_bytes() == kept
    services.prepare(tmp_path, services.SERVICES, ports)  # whatever has the number now
    assert ports["PREFECT_PORT"] in (tmp_path / credentials.PROFILES).read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def status(url: str, login: str = "", **headers: str) -> int:
    if login:
        headers["Authorization"] = f"Basic {b64encode(login.encode()).decode()}"
    data = b"{}" if "Origin" in headers else None
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.server
@pytest.mark.slow
def test_mlflows_pages_ask_for_the_password_and_ctrl_c_ends_them(tmp_path: Path) -> None:
    project = mini_project.make(tmp_path / "project")
    port = free_port()
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.services", "mlflow"],
            cwd=project,
            env={k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
            | {"MLFLOW_PORT": str(port), "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db?name=known-to-the-user"},
            stdout=log,
            stderr=subprocess.STDOUT,
            umask=0o022,
        )
    said, url = (tmp_path / "log").read_text, f"http://127.0.0.1:{port}"
    runs = f"{url}/ajax-api/2.0/mlflow/experiments/search?max_results=1"
    try:
        end = time.monotonic() + 240
        while "Application startup complete" not in said():
            assert process.poll() is None and time.monotonic() < end, said()
            time.sleep(0.5)
        ini = configparser.ConfigParser()
        ini.read(project / credentials.MLFLOW)
        login = f"{ini['mlflow']['admin_username']}:{ini['mlflow']['admin_password']}"
        assert [status(url), status(runs), status(runs, "bigr:wrong")] == [401] * 3
        assert [status(url, login), status(runs, login)] == [200] * 2
        search = f"{url}/api/2.0/mlflow/experiments/search"
        sent = {"Content-Type": "application/json"}
        for site in ("https://elsewhere.example", "http://127.0.0.1:1", f"http://localhost:{port}", "null"):
            assert status(search, login, Origin=site, **sent) == 403, site
            assert status(f"{url}/v1/traces", login, Origin=site, **sent) == 403, site
        assert status(search, login, Origin=url, **sent) == 400  # how many it is to find is not said
        assert status(url, login, Host="elsewhere.example") == 403
        assert modes(project) == {0o600}
        tree = psutil.Process(process.pid).children(recursive=True)
        for secret in (ini["mlflow"]["admin_password"], "known-to-the-user"):
            assert tree and not [one for one in tree if secret in " ".join(one.cmdline())]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert not psutil.wait_procs(tree, timeout=30)[1]
