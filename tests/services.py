"""Prefect's server and a worker, started as `make services` starts them, for tests that drive a deployment."""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

from flows import credentials, guard

PATIENCE_S = 300
ENDED = ("COMPLETED", "FAILED", "CRASHED")


class Services:
    """Prefect's server and a worker, and what a user does with them in the folder `project`."""

    def __init__(self, folder: Path, project: Path, python: Path, names: Sequence[str], **environment: str) -> None:
        self.project, self.python, self.names = project, str(python), names
        self.kill, self.hold, self.log = folder / "kill", folder / "hold", folder / "services.log"
        ports = [free_port(), free_port()]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "BIGR_", "DVC_"))}
        self.terminal = kept | {"PATH": os.pathsep.join([str(python.parent), os.environ["PATH"]])}
        self.environment = {
            **self.terminal,
            "DO_NOT_TRACK": "1",
            "OMP_NUM_THREADS": "1",
            "PREFECT_PORT": str(ports[0]),
            "MLFLOW_PORT": str(ports[1]),
            "PREFECT_SERVER_DATABASE_TIMEOUT": "60",  # of a lock, where the machine has much else to do
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
            "MINI_PROJECT_KILL": str(self.kill),
            "MINI_PROJECT_HOLD": str(self.hold),
            **environment,
        }
        self.url = f"http://127.0.0.1:{self.environment['PREFECT_PORT']}/api"
        self.launch()

    def launch(self) -> None:
        """Start what `make services` starts: those of `names`."""
        with self.log.open("w") as log:
            self.process = subprocess.Popen(  # guarded: a test run that is killed leaves no server behind
                [self.python, guard.__file__, self.python, "-m", "flows.services", *self.names],
                cwd=self.project,
                env=self.environment,
                start_new_session=True,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                umask=0o022,
            )

    @property
    def login(self) -> str:
        """The user and password that the server asks for, as a user finds them."""
        profiles = tomllib.loads((self.project / credentials.PROFILES).read_text())
        return str(profiles["profiles"][profiles["active"]]["PREFECT_API_AUTH_STRING"])

    def of(self, project: Path) -> dict[str, str]:
        """The environment of a terminal in `project`: the services' own finds them, another is told where they are."""
        told = {"PREFECT_API_URL": self.url, "PREFECT_API_AUTH_STRING": self.login}
        return self.terminal | ({} if project == self.project else told)

    def wait_until_up(self) -> None:
        """Return once the worker waits for runs."""
        self.wait_for(lambda: re.search(r"Worker 'bigr@\S+' started!", self.log.read_text()))

    def processes(self) -> list[psutil.Process]:
        """Honcho first, then all that it started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self) -> list[psutil.Process]:
        """Do what Ctrl-C does; the processes that survive it."""
        tree = self.processes() if self.process.poll() is None else []
        if tree:
            tree[0].send_signal(signal.SIGINT)
        return psutil.wait_procs(tree, timeout=60)[1]

    def wait_for(self, condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
        """The first result of `condition` that is true."""
        end = time.monotonic() + patience_s
        while not (result := condition()):
            if time.monotonic() > end or self.process.poll() is not None:
                raise AssertionError(self.log.read_text()[-10_000:])
            time.sleep(0.7)  # every question costs the server time
        return result

    def api(self, path: str, body: Any = None, method: str = "") -> Any:
        """Ask the server, again while its database is busy (503), as Prefect's client does; `body` makes it a POST."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json", **self.authorization}
        request = urllib.request.Request(f"{self.url}{path}", data, headers)
        request.method = method or ("GET" if body is None else "POST")
        if request.method != "GET":
            token = self.api("/csrf-token?client=00000000-0000-0000-0000-000000000000")
            request.add_header("Prefect-Csrf-Client", token["client"])
            request.add_header("Prefect-Csrf-Token", token["token"])
        for patience in (1, 2, 4, 8, 16, 0):
            try:
                with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:
                if error.code != 503 or not patience:
                    raise
                time.sleep(patience)

    @property
    def authorization(self) -> dict[str, str]:
        """The header of a request that has the password."""
        return {"Authorization": f"Basic {base64.b64encode(self.login.encode()).decode()}"}

    def deploy(self, project: Path) -> None:
        """Make the deployment that of `project`."""
        subprocess.run([self.python, "-m", "flows.deploy"], cwd=project, env=self.of(project), check=True)

    def command(self, **parameters: Any) -> tuple[str, str]:
        """Run the deployment to its end as README says: the flow run's id, and all that the command says."""
        words = ["prefect", "deployment", "run", "bigr/full", "--watch", "--params", json.dumps(parameters)]
        done = subprocess.run(words, cwd=self.project, env=self.terminal, capture_output=True, text=True, timeout=400)
        said = done.stdout + done.stderr
        found = re.search(r"UUID: (\S+)", said)
        assert found, said
        return found[1], said

    def start(self, **parameters: Any) -> str:
        """Start a run of the deployment: its id. It asks the server as the command does, without loading Prefect."""
        deployment = self.api("/deployments/name/bigr/full")
        asked = {"state": {"type": "SCHEDULED"}, "parameters": parameters}
        return str(self.api(f"/deployments/{deployment['id']}/create_flow_run", asked)["id"])

    def watch(self, **parameters: Any) -> dict[str, Any]:
        """Run the deployment to its end; the flow run as the server knows it."""
        run_id = self.start(**parameters)
        self.wait_for(lambda: self.run(run_id)["state_type"] in ENDED)
        return self.run(run_id)

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

    @contextmanager
    def schedule(self, rule: str, seconds: float = 8, deployment: str = "bigr/full") -> Iterator[None]:
        """Give the deployment a schedule of its own: an iCalendar rule, from `seconds` from now on."""
        known = self.api(f"/deployments/name/{deployment}")
        soon = datetime.now(UTC) + timedelta(seconds=seconds)
        own = {"rrule": f"DTSTART:{soon:%Y%m%dT%H%M%S}Z\nRRULE:{rule}"}
        (schedule,) = self.api(
            f"/deployments/{known['id']}/schedules", [{"schedule": own, "active": True, "slug": "test"}]
        )
        try:
            yield
        finally:
            self.api(f"/deployments/{known['id']}/schedules/{schedule['id']}", method="DELETE")

    def scheduled(self) -> list[dict[str, Any]]:
        """The ended flow runs that a schedule started, in the order of their start."""
        return sorted((run for run in self.runs(*ENDED) if run["auto_scheduled"]), key=lambda run: run["start_time"])


@contextmanager
def started(
    folder: Path,
    project: Path,
    python: Path = Path(sys.executable),
    names: Sequence[str] = ("prefect", "worker"),
    **environment: str,
) -> Iterator[Services]:
    """Services for `project`, their own files in `folder`, up and running; stopped after.

    python: the interpreter of the environment that they run in; environment: added to theirs.
    """
    services = Services(folder, project, python, names, **environment)
    try:
        services.wait_until_up()
        yield services
    finally:
        for process in services.stop():
            process.kill()


def rows(page: str) -> list[str]:
    """The rows of the tables of a page."""
    return [line for line in page.splitlines() if line.startswith("|")]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
