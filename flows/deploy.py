"""Tell Prefect's server about the work pool and the deployments of prefect.yaml: `python -m flows.deploy`.

Waits for the server first, so that it can be started together with it. Runs that were under way when the services last
stopped are declared crashed: nobody else would, and they would hold the deployment's only place for ever. Harmless when
repeated.
"""

import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.settings import get_current_settings
from prefect.states import Crashed

from flows.execution import command

POOL = "bigr"
PATIENCE_S = 600


def wait_for_server(url: str) -> None:
    """Return once the API at `url` is healthy. Raises `TimeoutError` after ten minutes."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise TimeoutError(f"Prefect's server does not answer on {url}; start it with `make services`")


def bury(client: SyncPrefectClient) -> None:
    """Declare crashed the flow runs whose process is gone; they can be retried from their page."""
    under_way = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING, StateType.CANCELLING])
    for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=under_way))):
        if not _lives(run):
            client.set_flow_run_state(run.id, Crashed(message="stopped together with the services"), force=True)


def _lives(run: FlowRun) -> bool:
    try:
        return "prefect" in " ".join(psutil.Process(int(run.infrastructure_pid or "")).cmdline())
    except (ValueError, psutil.Error):
        return False


def main() -> int:
    """Exit status 0 once everything is registered; otherwise that of `prefect deploy`."""
    url = get_current_settings().api.url
    wait_for_server(str(url))
    with get_client(sync_client=True) as client:
        bury(client)
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"), overwrite=True)
    return subprocess.call([command("prefect"), "--no-prompt", "deploy", "--all"], stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
