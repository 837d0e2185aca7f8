"""The page of `dvc plots show`, in Chromium: it draws its curves without a network, from what training writes."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from bigr.training.loop import write_curves
from tests import browser, scratch

pytestmark = pytest.mark.browser

DRAWN_AGAIN = """async () => (await vegaEmbed(document.createElement("div"), spec)).view.scale("y").domain()"""
"""The y axis of the last curves on the page."""


def test_curves_are_drawn_offline_and_a_missing_value_is_not_drawn_as_zero(tmp_path: Path) -> None:
    project = scratch.make(tmp_path, real=False)
    described = YAML(typ="safe").load(project / "dvc.yaml")
    plots = [plot for plot in described["plots"] if isinstance(plot, dict) and "outputs/curves/" in str(plot)]
    YAML().dump({"plots": plots}, project / "dvc.yaml")
    for stage in ("tokenizer", "generator", "transcoder"):
        before = {"step": 0, "val_loss": 0.6, "val_psnr": 20.0}
        rows = [{**before, "step": step, "train_loss": 0.5} for step in (10, 20)]
        write_curves(project / f"outputs/curves/{stage}.csv", [before, *rows])
    scratch.run(project, "dvc", "plots", "show")

    with browser.page() as page:
        page.set_content((project / "dvc_plots/index.html").read_text())
        page.locator("canvas").nth(len(plots) - 1).wait_for()
        assert page.locator("canvas").count() == len(plots)
        low, high = page.evaluate(DRAWN_AGAIN)
    assert 0.4 < low < high < 0.7
