"""MLflow's pages, in Chromium: two executions of the pipeline compare by settings, figures and pictures."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from bigr import config
from bigr.tracking import Tracker
from bigr.tracking.store import RUN_LIST, Store
from tests import browser, mlflow_pages
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


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with the records of two executions in the default store."""
    root = tmp_path_factory.mktemp("project")
    (root / "outputs").mkdir()
    settings = config.load(ROOT / "params.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for name, (scale, agreement, colour) in EXECUTIONS.items():
            patch.setenv("BIGR_EXECUTION", name)
            patch.setenv("BIGR_EXECUTION_NAME", name)
            samples = settings.samples.model_copy(update={"guidance_scale": scale})
            changed = settings.model_copy(update={"samples": samples})
            grid = root / "outputs" / "samples.png"
            Image.new("RGB", (64, 32), colour).save(grid)
            tracker = Tracker(root, "samples", changed, {}, "", ["pictures"])
            tracker.picture("samples", grid)
            tracker.finish("FINISHED")
            tracker = Tracker(root, "evaluation", changed, {}, "", ["metrics"])
            tracker.metrics({"samples.label_agreement": agreement})
            tracker.finish("FINISHED")
        yield root


@pytest.fixture(scope="module")
def server(project: Path) -> Iterator[str]:
    """The address of an MLflow server over the project's store."""
    with mlflow_pages.serve(project) as address:
        yield address


def test_the_runs_of_a_study_are_charted_side_by_side(project: Path, server: str) -> None:
    store = Store(project)
    for name in ("careful", "bold"):
        (run,) = store.runs(bigr__execution=name, bigr__kind="pipeline")
        store.client.set_tag(run.info.run_id, "bigr.study", "ablations")
    with browser.page() as page:
        page.set_default_timeout(60_000)
        bars = mlflow_pages.open_charts(page, server, store, mlflow_pages.STUDY, "label_agreement")
        bars.nth(1).wait_for()
        page.get_by_text("samples.label_agreement", exact=True).first.wait_for()
        for name in EXECUTIONS:
            page.get_by_text(name, exact=True).first.wait_for()
        assert bars.count() == len(EXECUTIONS)
        page.screenshot(path=project / "charts.png")


def test_two_executions_compare_by_settings_figures_and_pictures(project: Path, server: str) -> None:
    store = Store(project)
    ids = [store.runs(bigr__execution=name)[0].info.run_id for name in EXECUTIONS]
    with browser.page() as page:
        page.set_default_timeout(60_000)
        page.goto(f"{server}/#/experiments/{store.experiment}/runs?{RUN_LIST}")
        for text in (*EXECUTIONS, "Model training", "samples.label_agreement", "0.97", "0.99"):
            page.get_by_text(text, exact=True).first.wait_for()
        page.screenshot(path=project / "runs.png")

        mlflow_pages.open_comparison(page, server, store, ids)
        axes = page.locator("g.parcoords")
        for axis in ("samples.guidance_scale", "samples.label_agreement"):
            axes.get_by_text(axis, exact=True).first.wait_for()
        for text in ("samples.guidance_scale", "samples.label_agreement", "0.97", "0.99", *EXECUTIONS):
            page.get_by_text(text, exact=True).first.wait_for()
        pictures = mlflow_pages.open_pictures(page, "samples.png")
        pictures.nth(1).wait_for()
        colours = [pictures.nth(i).evaluate(COLOUR) for i in range(2)]
        pictures.first.scroll_into_view_if_needed()
        page.screenshot(path=project / "compared.png")
    assert colours == [list(colour) for _, _, colour in EXECUTIONS.values()]
