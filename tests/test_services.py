"""The deployment `bigr/full` against a real Prefect server and worker, started as `make services` starts them."""

import json
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from bigr.runtime.errors import EXIT_USER_ERROR
from bigr.tracking.executions import process_tag
from flows import credentials
from flows.execution import RETRY
from flows.whereabouts import LABEL
from tests import mini_project
from tests.services import ENDED, PATIENCE_S, Services, rows, started

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    folder = tmp_path_factory.mktemp("services")
    with started(folder, mini_project.make(folder / "project")) as services:
        yield services


def answer(url: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str]]:
    """The status and the headers of the answer to a request that has just these headers."""
    request = urllib.request.Request(url, headers={key.replace("_", "-"): value for key, value in headers.items()})
    request.method = method
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            return response.status, {key.lower(): value for key, value in response.headers.items()}
    except urllib.error.HTTPError as error:
        return error.code, {key.lower(): value for key, value in error.headers.items()}


def start(project: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What `python -m flows.…` says that ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=project, env=environment, capture_output=True, text=True, timeout=200
    )


def test_without_the_password_the_server_tells_and_starts_nothing(services: Services) -> None:
    deployment = services.api("/deployments/name/bigr/full")
    wrong = {"Authorization": "Basic YmlncjpiaWdy"}  # bigr:bigr
    for headers in ({}, wrong):
        assert answer(f"{services.url}/deployments/name/bigr/full", **headers)[0] == 401
        assert answer(f"{services.url}/csrf-token?client=00000000-0000-0000-0000-000000000000", **headers)[0] == 401
        status, _ = answer(f"{services.url}/deployments/{deployment['id']}/create_flow_run", "POST", **headers)
        assert status in (401, 403)
    assert answer(f"{services.url}/deployments/name/bigr/full", **services.authorization)[0] == 200


def test_a_page_of_another_site_may_not_use_the_server_even_with_the_password(services: Services) -> None:
    foreign = {"Origin": "https://elsewhere.example"}
    asks = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization"}
    for url in (f"{services.url}/flow_runs/filter", f"{services.url}/health"):
        status, headers = answer(url, "OPTIONS", **foreign, **asks)
        assert status == 400 and "access-control-allow-origin" not in headers
    status, headers = answer(f"{services.url}/admin/version", **foreign, **services.authorization)
    assert status == 200 and "access-control-allow-origin" not in headers
    assert answer(f"{services.url}/flow_runs/filter", "POST", **foreign, **services.authorization)[0] == 403


def test_only_the_user_can_read_the_passwords_whatever_the_umask(services: Services) -> None:
    folder = services.project / credentials.FOLDER
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {".lock": 0o600, "profiles.toml": 0o600}
    password = services.login.partition(":")[2]
    assert len(password) >= 32
    assert not [process for process in services.processes() if password in " ".join(process.cmdline())]
    assert password not in services.log.read_text()
    assert ".credentials" not in mini_project.run(services.project, "git", "status", "--porcelain")


def test_the_deployment_completes_and_its_page_tells_all(services: Services) -> None:
    run_id, said = services.command()
    run = services.run(run_id)
    assert f"'{run['state_name']}'" in said
    assert run["state_type"] == "COMPLETED" and run["state"]["message"] == "4 stages ran, 0 cached"
    tasks = services.tasks(run, *mini_project.STAGES)
    assert {name: task["state_name"] for name, task in tasks.items()} == dict.fromkeys(mini_project.STAGES, "Ran")
    assert [ref["id"] for ref in tasks["samples"]["task_inputs"]["wait_for"]] == [tasks["shards"]["id"]]
    page = services.page(run)
    for stage in mini_project.STAGES:
        assert any(row.startswith(f"| {stage} | ran |") for row in rows(page))
    guidance = mini_project.guidance(services.project)
    assert f"| guidance | {guidance} |" in page and f"| samples.guidance_scale | {guidance} |" in page
    assert "](data:image/png;base64,iVBOR" in page
    assert f"(http://127.0.0.1:{services.environment['MLFLOW_PORT']})" in page


def test_a_scheduled_run_fires_and_finds_nothing_to_do(services: Services) -> None:
    deployment = services.api("/deployments/name/bigr/full")
    (nightly,) = deployment["schedules"]
    assert nightly["schedule"]["cron"] == "0 3 * * *" and nightly["schedule"]["timezone"] == "UTC"
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"

    with services.schedule("FREQ=SECONDLY;INTERVAL=15;COUNT=8"):
        finished = services.wait_for(services.scheduled)
    assert finished[0]["state_name"] == "Completed"
    assert finished[0]["state"]["message"] == "up to date: 0 stages ran, 4 cached"
    assert sum("| cached |" in row for row in rows(services.page(finished[0]))) == 4
    services.wait_for(lambda: not services.runs("PENDING", "RUNNING"))


def test_overrides_become_an_experiment_and_leave_the_project_alone(services: Services) -> None:
    params = (services.project / "params.yaml").read_bytes()
    run = services.watch(settings={"samples.guidance_scale": 2.5}, stages=["samples", "evaluation"])
    assert run["state"]["message"] == "2 stages ran, 0 cached"
    assert "| samples.guidance_scale | **2.5** |" in services.page(run)
    assert (services.project / "params.yaml").read_bytes() == params
    assert json.loads((services.project / "outputs/metrics.json").read_text()) == {
        "guidance": mini_project.guidance(services.project)
    }
    shown = mini_project.run(services.project, "dvc", "exp", "show", "--csv")
    (row,) = [line for line in shown.splitlines() if line.startswith(f"{run['name']},")]
    assert ",2.5," in row


def test_a_bad_setting_fails_the_run_at_once_with_its_own_message(services: Services) -> None:
    run = services.watch(settings={"shards.val_fraction": mini_project.BAD_FRACTION})
    assert run["state_name"] == "Failed"
    assert run["state"]["message"] == f"shards: {mini_project.COMPLAINT}"
    tasks = services.tasks(run, "dataset", "shards")
    assert tasks["shards"]["run_count"] == 1 and "samples" not in tasks
    page = services.page(run)
    assert "| shards | failed |" in page and "## Samples" not in page


def test_an_unknown_setting_fails_before_anything_runs(services: Services) -> None:
    run_id, said = services.command(settings={"generator.stepz": 3})
    sentence = "settings: generator.stepz is not a setting; did you mean generator.steps?"
    assert services.run(run_id)["state"]["message"] == sentence
    assert sentence in " ".join(said.split()) and "Traceback" not in said
    logs = services.api("/logs/filter", {"logs": {"flow_run_id": {"any_": [run_id]}}})
    assert not [log for log in logs if "Traceback" in log["message"]]


def test_a_killed_stage_is_tried_again(services: Services) -> None:
    services.kill.write_text(str(int(signal.SIGKILL)))
    run = services.watch(stages=["shards", "dataset"], force=True)
    assert run["state_name"] == "Completed"
    assert services.tasks(run, "shards")["shards"]["run_count"] == 2


def test_a_run_that_is_killed_leaves_the_project_alone_and_continues_when_retried(services: Services) -> None:
    params = (services.project / "params.yaml").read_bytes()
    status = mini_project.run(services.project, "git", "status", "--porcelain")
    services.hold.touch()
    run_id = services.start(settings={"shards.images_per_shard": 7})
    stage = mini_project.holder(services.hold.with_suffix(".pid"))
    guard = next(process for process in stage.parents() if "guard.py" in " ".join(process.cmdline()))
    engine = guard.parent()
    assert engine is not None
    engine.kill()
    _, alive = psutil.wait_procs([stage, guard], timeout=30)
    assert not alive
    last_word = "flow_runs.worker - Check whether the flow run exceeded"  # before it, the worker may report once more
    services.wait_for(lambda: last_word in services.log.read_text())
    services.wait_for(lambda: services.run(run_id)["state"]["message"].endswith(RETRY))
    assert services.run(run_id)["state_name"] == "Crashed"
    assert "prefect config set" not in services.log.read_text()  # the server's advice, which is wrong here
    assert (services.project / "params.yaml").read_bytes() == params
    assert mini_project.run(services.project, "git", "status", "--porcelain") == status

    services.hold.unlink()
    services.api(f"/flow_runs/{run_id}/set_state", {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}})
    services.wait_for(lambda: services.run(run_id)["state_type"] in ENDED)
    run = services.run(run_id)
    assert run["state_name"] == "Completed", run["state"]
    assert "| shards | ran |" in services.page(run)
    assert f"\n{run['name']}," in mini_project.run(services.project, "dvc", "exp", "show", "--csv")


def test_a_run_that_is_cancelled_ends_its_stage_and_a_later_one_continues(services: Services) -> None:
    pid = services.hold.with_suffix(".pid")
    pid.unlink(missing_ok=True)
    services.hold.touch()
    run_id = services.start(stages=["dataset", "shards"], force=True)
    stage = mini_project.holder(pid)
    mine = [stage, *stage.parents()[:2]]  # DVC, and a shell or the guard
    mini_project.run(services.project, "prefect", "flow-run", "cancel", run_id, **services.environment)
    _, alive = psutil.wait_procs(mine, timeout=60)
    assert not alive
    services.wait_for(lambda: services.run(run_id)["state_type"] == "CANCELLED")
    assert mini_project.run(services.project, "git", "status", "--porcelain") == "?? dvc.lock\n"

    services.hold.unlink()
    assert services.watch(stages=["dataset", "shards"], force=True)["state"]["message"] == "2 stages ran, 0 cached"


def is_on(services: Services) -> bool:
    """Whether the nightly schedule is."""
    (nightly,) = services.api("/deployments/name/bigr/full")["schedules"]
    assert nightly["slug"] == "nightly"
    return bool(nightly["active"])


def switch(services: Services, word: str) -> None:
    """What `make nightly SWITCH=word` does."""
    done = start(services.project, "flows.nightly", word, **services.terminal)
    assert done.returncode == 0 and word in done.stdout, done.stderr


def test_the_nightly_run_waits_to_be_switched_on_and_a_restart_leaves_it_as_it_is(services: Services) -> None:
    assert not is_on(services)
    switch(services, "on")
    services.deploy(services.project)
    assert is_on(services)


def test_a_restart_declares_crashed_what_ended_on_this_machine_and_keeps_what_was_set_by_hand(
    services: Services,
) -> None:
    full, ablations = (services.api(f"/deployments/name/bigr/{name}") for name in ("full", "ablations"))
    other = services.api(
        "/deployments/", {"name": "of someone else", "flow_id": full["flow_id"], "work_pool_name": "bigr"}
    )
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = f"{socket.gethostname()}:{gone.pid}:1.00"

    def run(deployment: dict[str, Any], state: str, process: str | None) -> str:
        made = services.api(
            "/flow_runs/",
            {
                "flow_id": full["flow_id"],
                "deployment_id": deployment["id"],
                "state": {"type": state},
                "labels": {LABEL: process} if process else {},
            },
        )
        services.api(f"/flow_runs/{made['id']}", {"infrastructure_pid": str(gone.pid)}, "PATCH")
        return str(made["id"])

    dead = [run(full, "RUNNING", here), run(full, "CANCELLING", here), run(ablations, "RUNNING", here)]
    kept = [
        run(full, "RUNNING", here.replace(socket.gethostname(), "another-machine")),
        run(full, "RUNNING", process_tag()),
        run(full, "RUNNING", None),
        run(full, "PENDING", None),
        run(other, "RUNNING", here),
    ]
    before = [services.run(run_id)["state"] for run_id in kept]
    services.api("/work_pools/bigr", {"concurrency_limit": 7, "description": "set by hand"}, "PATCH")
    switch(services, "off")
    services.deploy(services.project)
    assert not is_on(services)
    pool = services.api("/work_pools/bigr")
    assert (pool["concurrency_limit"], pool["description"]) == (7, "set by hand")
    services.api("/work_pools/bigr", {"concurrency_limit": None}, "PATCH")
    assert [services.run(run_id)["state_type"] for run_id in dead] == ["CRASHED"] * 3
    assert "press Retry" in services.run(dead[0])["state"]["message"]
    assert [services.run(run_id)["state"] for run_id in kept] == before
    for run_id in kept:
        services.api(f"/flow_runs/{run_id}", method="DELETE")
    services.api(f"/deployments/{other['id']}", method="DELETE")


def test_a_server_elsewhere_gets_a_worker_and_none_is_started_beside_it(services: Services, tmp_path: Path) -> None:
    project = mini_project.make(tmp_path / "project")
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.services", "prefect", "worker"],
            cwd=project,
            env=services.of(project),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        services.wait_for(lambda: re.search(r"Worker 'bigr@\S+' started!", log.read_text()))
        tree = psutil.Process(process.pid).children(recursive=True)
        lines = [" ".join(one.cmdline()) for one in tree]
        assert any("prefect worker start" in line for line in lines)
        assert not any("server" in line for line in lines)
        assert str(project) in str(services.api("/deployments/name/bigr/full")["pull_steps"])
        assert not (project / credentials.PROFILES).exists()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        services.deploy(services.project)
    refused = start(project, "flows.deploy", **services.of(project) | {"PREFECT_API_AUTH_STRING": "bigr:wrong"})
    assert refused.returncode == EXIT_USER_ERROR
    assert "PREFECT_API_AUTH_STRING" in refused.stderr and "Traceback" not in refused.stderr


def test_the_password_of_the_server_here_is_not_told_to_one_elsewhere(services: Services) -> None:
    heard: list[str | None] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.headers["Authorization"])
            self.send_response(403)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/api"
    with subprocess.Popen(
        [sys.executable, "-m", "flows.services", "worker"],
        cwd=services.project,
        env=services.terminal | {"PREFECT_API_URL": url},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            services.wait_for(lambda: heard)
        finally:
            process.send_signal(signal.SIGINT)
    server.shutdown()
    assert set(heard) == {None}


def test_a_port_that_is_taken_or_none_is_said_in_one_line(services: Services, tmp_path: Path) -> None:
    taken = services.environment["PREFECT_PORT"]
    for port, what in ((taken, f"{taken} is taken"), ("4200x", "PREFECT_PORT must be a port")):
        done = start(services.project, "flows.services", "prefect", **services.terminal | {"PREFECT_PORT": port})
        assert done.returncode == EXIT_USER_ERROR
        assert what in done.stderr and done.stderr.count("\n") == 1


def test_services_stop_with_all_that_runs_and_the_next_start_is_not_held_up(services: Services) -> None:
    pid = services.hold.with_suffix(".pid")
    pid.unlink(missing_ok=True)
    services.hold.touch()
    run_id = services.start(stages=["dataset", "shards"], force=True)
    mini_project.holder(pid)
    said = [" ".join(process.cmdline()) for process in services.processes()]
    assert all(any(words in line for line in said) for words in ("prefect server", "prefect worker", "step.py"))
    assert services.stop() == []

    services.hold.unlink()
    services.launch()
    services.wait_until_up()
    assert services.run(run_id)["state_name"] == "Crashed"
    assert services.watch(stages=["dataset", "shards"])["state_name"] == "Completed"
