"""Register the work pool and the deployments of prefect.yaml with Prefect's server: `python -m flows.deploy`.

Waits for the server first, so that both can be started together. Runs that were under way on this machine when the
services last stopped are marked as crashed: otherwise they would hold the deployment's only slot. Other work pools and
deployments on the server stay as they are, and a schedule stays on or off. BIGR_ALERT_URL is registered too
(`flows/alert.py`). It can be repeated.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings, temporary_settings
from prefect.states import Crashed

from bigr import config
from bigr.runtime.errors import EXIT_USER_ERROR, BigrError
from bigr.runtime.masking import masked
from bigr.tracking.executions import is_dead
from flows import alert
from flows.execution import RETRY, command
from flows.page import mlflow_url
from flows.whereabouts import LABEL

POOL, FLOW = "bigr", "bigr"
PATIENCE_S = 600
BUSY = (408, 429, 500, 502, 503, 504)
"""The status codes of a server, or of a proxy before it, that is starting, overloaded, or without its database."""


@contextmanager
def connected(patience_s: float = PATIENCE_S) -> Iterator[SyncPrefectClient]:
    """A client of the server that Prefect's settings name, once that answers.

    Waits for a server that does not answer, and logs the reason. Raises `BigrError` where the settings name none, where
    it does not answer in time, refuses the password, or is not Prefect's.
    """
    if not get_current_settings().api.url:
        raise BigrError("There is no Prefect server: start one with `make services`, or set PREFECT_API_URL")
    end, logged = time.monotonic() + patience_s, ""
    while silence := _silence():
        if time.monotonic() > end:
            raise BigrError(f"{silence}; start it with `make services`, or set PREFECT_API_URL")
        if silence != logged:
            _say(f"{silence}; waiting")
            logged = silence
        time.sleep(0.5)
    with get_client(sync_client=True) as client:
        yield client


def _silence() -> str:
    """Why the server does not answer yet; empty where it answers. Raises `BigrError` where it never will."""
    brief: dict[str, Any] = {"timeout": 10}  # a server that is starting may never answer
    remedy = "PREFECT_API_URL must be the address of an API, as http://127.0.0.1:4200/api"
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client(httpx_settings=brief, sync_client=True) as client,
    ):
        server = f"Prefect's server on {_address(client)}"
        try:
            client.read_work_pools(limit=1)
            return ""
        except PrefectHTTPStatusError as error:
            status = error.response.status_code
            if status in BUSY:
                return f"{server} does not answer yet (status {status})"
            if status in (401, 403):
                remedy = "set PREFECT_API_AUTH_STRING (user:password) or PREFECT_API_KEY to what it takes"
            raise BigrError(f"{server} answers with status {status}; {remedy}") from None
        except httpx.TransportError as error:
            reason = masked(" ".join(str(error).split())) or type(error).__name__
            if isinstance(error, httpx.UnsupportedProtocol) or "SSL" in reason:
                raise BigrError(f"{server} cannot be asked ({reason}); {remedy}") from None
            return f"{server} does not answer ({reason})"
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            raise BigrError(f"What answers on {_address(client)} is not Prefect's server; {remedy}") from None


def _address(client: SyncPrefectClient) -> str:
    return str(client.api_url.copy_with(userinfo=b""))


def deployments(client: SyncPrefectClient) -> Iterator[DeploymentResponse]:
    """The deployments of prefect.yaml that the server has."""
    for described in config.read(Path("prefect.yaml"))["deployments"]:
        try:
            yield client.read_deployment_by_name(f"{FLOW}/{described['name']}")
        except ObjectNotFound:
            continue


def mark_crashed(client: SyncPrefectClient, known: list[UUID]) -> None:
    """Mark as crashed the runs of the deployments `known` whose process was on this machine and has ended.

    They can be retried from their page. A run without the label of `flows/whereabouts.py`, or of another machine, is
    left alone.
    """
    if not known:
        return
    under_way = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
    of_ours = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=known), state=FlowRunFilterState(type=under_way)
    )
    for run in client.read_flow_runs(flow_run_filter=of_ours):
        if (process := run.labels.get(LABEL)) and is_dead(str(process)):
            client.set_flow_run_state(
                run.id, Crashed(message=f"stopped together with the services; {RETRY}"), force=True
            )


def ensure_pool(client: SyncPrefectClient) -> None:
    """Create the work pool where it is missing. Raises `BigrError` where another kind of pool has its name."""
    try:
        pool = client.read_work_pool(POOL)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        return
    if pool.type != "process":
        raise BigrError(
            f"The work pool {POOL} on {_address(client)} must be of type process, got {pool.type}; rename it"
        )


def switched(client: SyncPrefectClient) -> dict[tuple[UUID, str], bool]:
    """Whether each schedule (deployment and slug) is on; one without a slug is left out."""
    return {
        (deployment.id, schedule.slug): bool(schedule.active)
        for deployment in deployments(client)
        for schedule in deployment.schedules
        if schedule.slug
    }


def switch(client: SyncPrefectClient, on: dict[tuple[UUID, str], bool]) -> None:
    """Switch schedules (deployment and slug) on or off; those that `on` does not name stay as they are."""
    for deployment in deployments(client):
        for schedule in deployment.schedules:
            active = on.get((deployment.id, schedule.slug or ""), schedule.active)
            if active != schedule.active:
                client.update_deployment_schedule(deployment.id, schedule.id, active=active)


def main() -> int:
    """Exit status 0 once everything is registered, 2 for an error of the user's, else that of `prefect deploy`."""
    try:
        with connected() as client:
            mark_crashed(client, [deployment.id for deployment in deployments(client)])
            ensure_pool(client)
            alert.register(client, FLOW)
            before = switched(client)
            words = [command("prefect"), "--no-prompt", "deploy", "--all"]
            # Its output advises another way to start a worker, and is shown only where it fails.
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            if done.returncode:
                _say(done.stdout)
            switch(client, before)  # prefect.yaml has a schedule's initial state only
            if not done.returncode:
                pages = f"Prefect {_address(client).removesuffix('/').removesuffix('/api')}, MLflow {mlflow_url()}"
                _say(f"{pages}; in a second terminal: prefect deployment run {FLOW}/full --watch")
    except BigrError as error:
        _say(str(error))
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return done.returncode


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
