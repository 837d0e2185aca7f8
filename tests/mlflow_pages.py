"""MLflow's pages for comparing runs, opened in Chromium: for the tests, and for the pictures of docs/comparing.md.

`python -m tests.mlflow_pages PROJECT FOLDER` takes those pictures of a project in which `make ablations` has run.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bigr.tracking.store import DEFAULTS, Store
from tests import browser

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

STUDY = "tags.`bigr.study` = 'ablations'"
"""The filter that selects the runs of the study."""


@contextmanager
def serve(project: Path) -> Iterator[str]:
    """The address of an MLflow server over the project's store: that of `make ui`, but it asks for no password."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    command += ["--backend-store-uri", "sqlite:///mlflow.db"]
    environment = {**os.environ, **DEFAULTS, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # as in the Procfile
    with (project / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=project, env=environment, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5)
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError((project / "server.log").read_text()) from None
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def open_charts(page: "Page", server: str, store: Store, condition: str, charts: str) -> "Locator":
    """The run table's charts of the runs that meet `condition`, one for each metric whose name `charts` (a regular
    expression) finds; returns their bars."""
    query = urllib.parse.urlencode(
        {"workflowType": "machine_learning", "searchFilter": condition, "compareRunsMode": "CHART"}
    )
    page.goto(f"{server}/#/experiments/{store.experiment}/runs?{query}")
    page.get_by_placeholder("Search metric charts").fill(charts)
    bars = page.locator(".barlayer .point path")
    bars.first.wait_for()
    close_assistant(page)
    return bars


def open_comparison(page: "Page", server: str, store: Store, runs: Sequence[str]) -> None:
    """The page that compares the runs of these ids, its parallel coordinates drawn."""
    quoted = ",".join(f'"{run}"' for run in runs)
    page.goto(f'{server}/#/compare-runs?runs=[{quoted}]&experiments=["{store.experiment}"]')
    page.locator("g.parcoords").first.wait_for()
    close_assistant(page)


def open_pictures(page: "Page", name: str) -> "Locator":
    """On the page that compares runs, the picture `name` of each, side by side."""
    page.get_by_text(name, exact=True).first.dispatch_event("click")
    pictures = page.locator('img[src^="blob:"]').filter(visible=True)
    pictures.first.wait_for()
    return pictures


def close_assistant(page: "Page") -> None:
    """Close the panel that MLflow opens beside the page on a first visit, if it does."""
    panel = page.get_by_text("MLflow Assistant").first
    button = panel.locator("xpath=following::button[3]")
    if panel.is_visible() and button.count():
        button.click()
        page.wait_for_timeout(500)


def main() -> None:
    """Take the pictures of docs/comparing.md."""
    project, folder = Path(sys.argv[1]), Path(sys.argv[2])
    store = Store(project)
    ids = {str(run.info.run_name): str(run.info.run_id) for run in store.search(STUDY)}
    with serve(project) as server, browser.page(1500, 950) as page:
        page.set_default_timeout(240_000)
        open_charts(page, server, store, STUDY, "samples.fd_classifier|samples.label_agreement|probe.best_top1")
        page.wait_for_timeout(5000)
        page.screenshot(path=folder / "mlflow-charts.png")
        open_comparison(page, server, store, list(ids.values()))
        page.wait_for_timeout(3000)
        page.screenshot(path=folder / "mlflow-parallel.png")
        few = [ids[name] for name in sorted(ids)][:3]
        open_comparison(page, server, store, few)
        pictures = open_pictures(page, "samples.png")
        pictures.nth(len(few) - 1).wait_for()
        pictures.first.scroll_into_view_if_needed()
        page.wait_for_timeout(1000)
        page.screenshot(path=folder / "mlflow-samples.png")


if __name__ == "__main__":
    main()
