"""The page of a flow run: what a reader looks for comes first; and a log without what nobody needs."""

import json
import logging
import sys
from pathlib import Path

import pytest
from prefect.exceptions import FailedRun

from flows import pipeline
from flows.execution import RETRY, Outcome, StageFailed, StageKilled
from flows.page import Page


def test_the_page_ends_with_every_metric_and_the_settings_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/metrics.json").write_text(json.dumps({"samples": {"fid": 5.0}}))
    page = Page("calm-heron", tmp_path, {"seed": 3}, {"evaluation": Outcome("ran", 1.0)})
    titles = [part.split("\n")[0] for part in page.text().split("\n## ")[1:]]
    assert titles == ["Records in MLflow", "Stages", "Metrics", "Settings that differ from params.yaml"]
    assert "| samples.fid | 5 |" in page.text() and "| seed | **3** |" in page.text()


@pytest.mark.parametrize("task", ["generator", "promote"])
def test_a_killed_task_says_how_to_go_on_and_one_that_failed_says_why(task: str) -> None:
    killed = StageKilled(f"{task}: killed by SIGKILL")
    assert pipeline.ended_by(killed) == f"{task}: killed by SIGKILL; {RETRY}"
    assert pipeline.ended_by(StageFailed(f"{task}: no image")) == f"{task}: no image"


def test_a_run_that_failed_by_its_own_message_logs_no_traceback() -> None:
    assert pipeline.pipeline.name == "bigr"
    said = logging.getLogger("prefect.flow_runs")
    for error, shown in ((FailedRun("settings: seed is x"), 0), (ValueError("a mistake in the code"), 1)):
        records: list[logging.LogRecord] = []
        handler = logging.Handler()
        handler.emit = records.append  # type: ignore[method-assign]
        said.addHandler(handler)
        try:
            raise error
        except Exception:
            said.error("Engine execution exited with unexpected exception", exc_info=sys.exc_info())
        finally:
            said.removeHandler(handler)
        assert len(records) == shown
