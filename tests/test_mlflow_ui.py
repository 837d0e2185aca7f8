"""MLflow's pages, in Chromium: two executions of the pipeline compare by settings, figures and pictures."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from bigr import config
from bigr.tracking import Tracker
from bigr.tracking.store import DEFAULTS, Store
from tests import browser
from tests.scratch import ROOT

pytestmark = [pytest.mark.server, pytest.mark.browser, pytest.mark.timeout(600)]

EXECUTIONS = {"careful": (1.5, 0.97, (200, 30, 30)), "bold": (3.0, 0.99, (30, 30, 200))}
"""Name → guidance scale, label agreement, colour of the samples."""

COLOUR = """async (image) => {
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const brush = canvas.getContext("2d");
    brush.drawImage(image, 0, 0);
    return [...brush.getImageData(8, 8, 1, 1).data].slice(0, 3);
}"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the records of two executions in the default store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "outputs").mkdir()
    settings = config.load(ROOT / "params.yaml")
    for name, (scale, agreement, colour) in EXECUTIONS.items():
        monkeypatch.setenv("BIGR_EXECUTION", name)
        monkeypatch.setenv("BIGR_EXECUTION_NAME", name)
        samples = settings.samples.model_copy(update={"guidance_scale": scale})
        changed = settings.model_copy(update={"samples": samples})
        grid = tmp_path / "outputs" / "samples.png"
        Image.new("RGB", (64, 32), colour).save(grid)
        tracker = Tracker(tmp_path, "samples", changed, {})
        tracker.picture("samples", grid)
        tracker.finish("FINISHED")
        tracker = Tracker(tmp_path, "evaluation", changed, {})
        tracker.metrics({"samples.label_agreement": agreement})
        tracker.finish("FINISHED")
    return tmp_path


@pytest.fixture
def server(project: Path) -> Iterator[str]:
    """The address of an MLflow server over the project's store, started as `make ui` does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1"]
    command += ["--backend-store-uri", "sqlite:///mlflow.db"]
    with (project / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=project, env={**os.environ, **DEFAULTS}, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
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


def test_two_executions_compare_by_settings_figures_and_pictures(project: Path, server: str) -> None:
    store = Store(project)
    ids = [store.runs(bigr__execution=name)[0].info.run_id for name in EXECUTIONS]
    with browser.page() as page:
        page.set_default_timeout(60_000)
        page.goto(f"{server}/#/experiments/{store.experiment}/runs?workflowType=machine_learning")
        for name in EXECUTIONS:
            page.get_by_text(name, exact=True).first.wait_for()
        page.screenshot(path=project / "runs.png")

        quoted = ",".join(f'"{run}"' for run in ids)
        page.goto(f'{server}/#/compare-runs?runs=[{quoted}]&experiments=["{store.experiment}"]')
        for text in ("samples.guidance_scale", "samples.label_agreement", "0.97", "0.99", *EXECUTIONS):
            page.get_by_text(text, exact=True).first.wait_for()
        page.get_by_text("samples.png", exact=True).first.dispatch_event("click")
        pictures = page.locator('img[src^="blob:"]').filter(visible=True)
        pictures.nth(1).wait_for()
        colours = [pictures.nth(i).evaluate(COLOUR) for i in range(2)]
        pictures.first.scroll_into_view_if_needed()
        page.screenshot(path=project / "compared.png")
    assert colours == [list(colour) for _, _, colour in EXECUTIONS.values()]
