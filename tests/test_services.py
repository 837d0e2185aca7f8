"""The deployment `bigr/full` against a real Prefect server and worker, started as `make services` starts them."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows import guard
from tests import mini_project, tiny

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(600)]

PATIENCE_S = 300
ENDED = ("COMPLETED", "FAILED", "CRASHED")


class Services:
    """Prefect's server and a worker, and what a user does with them in the folder `project`."""

    def __init__(self, folder: Path) -> None:
        self.project = mini_project.make(folder / "project")
        self.kill, self.hold, self.log = folder / "kill", folder / "hold", folder / "services.log"
        ports = [_free_port(), _free_port()]
        self.url = f"http://127.0.0.1:{ports[0]}/api"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "BIGR_", "DVC_"))}
        self.environment = {
            **kept,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "DO_NOT_TRACK": "1",
            "OMP_NUM_THREADS": "1",
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": self.url,
            "PREFECT_PORT": str(ports[0]),
            "MLFLOW_PORT": str(ports[1]),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
            "MINI_PROJECT_KILL": str(self.kill),
            "MINI_PROJECT_HOLD": str(self.hold),
        }
        self.launch()

    def launch(self) -> None:
        """Start what `make services` starts, but for MLflow."""
        with self.log.open("w") as log:
            self.process = subprocess.Popen(  # guarded: a test run that is killed leaves no server behind
                [sys.executable, guard.__file__, "honcho", "start", "prefect", "worker"],
                cwd=self.project,
                env=self.environment,
                start_new_session=True,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_until_up(self) -> None:
        """Return once the worker waits for runs."""
        self.wait_for(lambda: "Worker 'bigr' started!" in self.log.read_text())

    def processes(self) -> list[psutil.Process]:
        """Honcho first, then all that it started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self) -> list[psutil.Process]:
        """Do what Ctrl-C does; the processes that survive it."""
        tree = self.processes() if self.process.poll() is None else []
        if tree:
            tree[0].send_signal(signal.SIGINT)
        return psutil.wait_procs(tree, timeout=60)[1]

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        """The first result of `condition` that is true."""
        end = time.monotonic() + PATIENCE_S
        while not (result := condition()):
            if time.monotonic() > end or self.process.poll() is not None:
                raise AssertionError(self.log.read_text()[-10_000:])
            time.sleep(0.3)
        return result

    def api(self, path: str, body: Any = None, method: str = "") -> Any:
        """Ask the server, again while its database is busy (503), as Prefect's client does; `body` makes it a POST."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, {"content-type": "application/json"})
        request.method = method or ("GET" if body is None else "POST")
        for patience in (1, 2, 4, 8, 16, 0):
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:
                if error.code != 503 or not patience:
                    raise
                time.sleep(patience)

    def deploy(self, project: Path) -> None:
        """Make the deployment that of `project`."""
        subprocess.run([sys.executable, "-m", "flows.deploy"], cwd=project, env=self.environment, check=True)

    def start(self, *options: str, project: Path | None = None, **parameters: Any) -> tuple[str, str]:
        """The flow run's id, and all that `prefect deployment run bigr/full` says."""
        words = ["prefect", "deployment", "run", "bigr/full", *options, "--params", json.dumps(parameters)]
        folder = project or self.project
        done = subprocess.run(words, cwd=folder, env=self.environment, capture_output=True, text=True, timeout=400)
        said = done.stdout + done.stderr
        found = re.search(r"UUID: (\S+)", said)
        assert found, said
        return found[1], said

    def watch(self, project: Path | None = None, **parameters: Any) -> dict[str, Any]:
        """Run the deployment to its end; the flow run as the server knows it."""
        run_id, said = self.start("--watch", project=project, **parameters)
        run = self.run(run_id)
        assert f"'{run['state_name']}'" in said, said
        return run

    def run(self, run_id: str) -> dict[str, Any]:
        """The flow run as the server knows it."""
        return self.api(f"/flow_runs/{run_id}")

    def runs(self, *states: str) -> list[dict[str, Any]]:
        """Flow runs in states of these types."""
        return self.api("/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": states}}}})

    def page(self, run: dict[str, Any]) -> str:
        """The text of the run's page."""
        found = self.api("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
        assert [artifact["key"] for artifact in found] == ["pipeline"]
        return found[0]["data"]

    def tasks(self, run: dict[str, Any], *names: str) -> dict[str, dict[str, Any]]:
        """Task runs by name, once the server has heard of the end of those named: it hears of tasks by and by."""

        def tasks() -> dict[str, dict[str, Any]] | None:
            found = self.api("/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
            ended = {task["name"]: task for task in found if task["state_type"] in ENDED}
            return ended if set(names) <= set(ended) else None

        return dict(self.wait_for(tasks))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    started = Services(tmp_path_factory.mktemp("services"))
    try:
        started.wait_until_up()
        yield started
    finally:
        for process in started.stop():
            process.kill()


def _rows(page: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith("|")]


def test_the_deployment_completes_and_its_page_tells_all(services: Services) -> None:
    run = services.watch()
    assert run["state_type"] == "COMPLETED" and run["state"]["message"] == "4 stages ran, 0 cached"
    tasks = services.tasks(run, *mini_project.STAGES)
    assert {name: task["state_name"] for name, task in tasks.items()} == dict.fromkeys(mini_project.STAGES, "Ran")
    assert [ref["id"] for ref in tasks["samples"]["task_inputs"]["wait_for"]] == [tasks["shards"]["id"]]
    page = services.page(run)
    for stage in mini_project.STAGES:
        assert any(row.startswith(f"| {stage} | ran |") for row in _rows(page))
    assert "| guidance | 1.5 |" in page and "| samples.guidance_scale | 1.5 |" in page
    assert "](data:image/png;base64,iVBOR" in page
    assert f"(http://127.0.0.1:{services.environment['MLFLOW_PORT']})" in page


def test_a_scheduled_run_fires_and_finds_nothing_to_do(services: Services) -> None:
    deployment = services.api("/deployments/name/bigr/full")
    (nightly,) = deployment["schedules"]
    assert nightly["schedule"]["cron"] == "0 3 * * *" and nightly["schedule"]["timezone"] == "UTC" and nightly["active"]
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"

    soon = datetime.now(UTC) + timedelta(seconds=8)
    often = {"rrule": f"DTSTART:{soon:%Y%m%dT%H%M%S}Z\nRRULE:FREQ=SECONDLY;INTERVAL=15;COUNT=8"}
    (schedule,) = services.api(
        f"/deployments/{deployment['id']}/schedules", [{"schedule": often, "active": True, "slug": "often"}]
    )
    try:
        finished = services.wait_for(lambda: [run for run in services.runs(*ENDED) if run["auto_scheduled"]])
    finally:
        services.api(f"/deployments/{deployment['id']}/schedules/{schedule['id']}", method="DELETE")
    assert finished[0]["state_name"] == "Completed"
    assert finished[0]["state"]["message"] == "0 stages ran, 4 cached"
    assert sum("| cached |" in row for row in _rows(services.page(finished[0]))) == 4
    services.wait_for(lambda: not services.runs("PENDING", "RUNNING"))


def test_overrides_become_an_experiment_and_leave_the_project_alone(services: Services) -> None:
    params = (services.project / "params.yaml").read_bytes()
    run = services.watch(settings={"samples.guidance_scale": 2.5}, stages=["samples", "evaluation"])
    assert run["state"]["message"] == "2 stages ran, 0 cached"
    assert "| samples.guidance_scale | **2.5** |" in services.page(run)
    assert (services.project / "params.yaml").read_bytes() == params
    assert json.loads((services.project / "outputs/metrics.json").read_text()) == {"guidance": 1.5}
    shown = mini_project.run(services.project, "dvc", "exp", "show", "--csv")
    (row,) = [line for line in shown.splitlines() if line.startswith(f"{run['name']},")]
    assert ",2.5," in row


def test_a_bad_setting_fails_the_run_at_once_with_its_own_message(services: Services) -> None:
    run = services.watch(settings={"shards.val_fraction": mini_project.BAD_FRACTION})
    assert run["state_name"] == "Failed"
    assert run["state"]["message"] == f"shards: {mini_project.COMPLAINT}"
    tasks = services.tasks(run, "digits", "shards")
    assert tasks["shards"]["run_count"] == 1 and "samples" not in tasks
    page = services.page(run)
    assert "| shards | failed |" in page and "## Samples" not in page


def test_an_unknown_setting_fails_before_anything_runs(services: Services) -> None:
    run = services.watch(settings={"generator.stepz": 3})
    assert run["state"]["message"] == "settings: generator.stepz is not a setting; did you mean generator.steps?"


def test_a_killed_stage_is_tried_again(services: Services) -> None:
    services.kill.write_text(str(int(signal.SIGKILL)))
    run = services.watch(stages=["shards", "digits"], force=True)
    assert run["state_name"] == "Completed"
    assert services.tasks(run, "shards")["shards"]["run_count"] == 2


def test_a_run_that_is_killed_leaves_the_project_alone_and_continues_when_retried(services: Services) -> None:
    params = (services.project / "params.yaml").read_bytes()
    services.hold.touch()
    run_id, _ = services.start(settings={"shards.images_per_shard": 7})
    stage = mini_project.holder(services.hold.with_suffix(".pid"))
    guard = next(process for process in stage.parents() if "guard.py" in " ".join(process.cmdline()))
    engine = guard.parent()
    assert engine is not None
    engine.kill()
    _, alive = psutil.wait_procs([stage, guard], timeout=30)
    assert not alive
    last_word = "flow_runs.worker - Check whether the flow run exceeded"  # before it, the worker may report once more
    services.wait_for(lambda: last_word in services.log.read_text())
    assert services.run(run_id)["state_name"] == "Crashed"
    assert (services.project / "params.yaml").read_bytes() == params
    assert mini_project.run(services.project, "git", "status", "--porcelain") == "?? dvc.lock\n"

    services.hold.unlink()
    services.api(f"/flow_runs/{run_id}/set_state", {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}})
    services.wait_for(lambda: services.run(run_id)["state_type"] in ENDED)
    run = services.run(run_id)
    assert run["state_name"] == "Completed", run["state"]
    assert "| shards | ran |" in services.page(run)
    assert f"\n{run['name']}," in mini_project.run(services.project, "dvc", "exp", "show", "--csv")


def test_the_real_pipeline_runs_through_the_deployment(services: Services, tmp_path: Path) -> None:
    project = tmp_path / "bigr"
    tracked = mini_project.run(mini_project.ROOT, "git", "ls-files", "-z").split("\0")
    for name in filter(None, tracked):
        if (mini_project.ROOT / name).is_file():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(mini_project.ROOT / name, project / name)
    (project / "dvc.lock").unlink(missing_ok=True)
    mini_project.commit(project)
    services.deploy(project)
    run = services.watch(project=project, settings=tiny.OVERRIDES)
    assert run["state_name"] == "Completed", run["state"]
    assert run["state"]["message"] == "8 stages ran, 0 cached"
    page = services.page(run)
    assert "label_agreement" in page and "](data:image/png;base64,iVBOR" in page and "/#/experiments/" in page
    shown = mini_project.run(project, "dvc", "exp", "show", "--csv")
    assert f"\n{run['name']}," in shown
    assert mini_project.run(project, "git", "status", "--porcelain") == ""


def test_services_stop_with_all_that_runs_and_the_next_start_is_not_held_up(services: Services) -> None:
    services.deploy(services.project)
    pid = services.hold.with_suffix(".pid")
    pid.unlink(missing_ok=True)
    services.hold.touch()
    run_id, _ = services.start(stages=["digits", "shards"], force=True)
    mini_project.holder(pid)
    said = [" ".join(process.cmdline()) for process in services.processes()]
    assert all(any(words in line for line in said) for words in ("prefect server", "prefect worker", "step.py"))
    assert services.stop() == []

    services.hold.unlink()
    services.launch()
    services.wait_until_up()
    assert services.run(run_id)["state_name"] == "Crashed"
    assert services.watch(stages=["digits", "shards"])["state_name"] == "Completed"
