"""Tell Prefect's server about the work pool and the deployments of prefect.yaml: `python -m flows.deploy`.

Waits for the server first, so that it can be started together with it; harmless when repeated.
"""

import subprocess
import sys
import time
import urllib.error
import urllib.request

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import get_current_settings

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


def main() -> int:
    """Exit status 0 once everything is registered; otherwise that of `prefect deploy`."""
    url = get_current_settings().api.url
    wait_for_server(str(url))
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"), overwrite=True)
    return subprocess.call([command("prefect"), "--no-prompt", "deploy", "--all"], stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
