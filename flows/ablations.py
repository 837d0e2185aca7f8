"""The flow of the deployment `bigr/ablations`: the study of docs/ablations.md, as `make ablations` does it."""

import sys
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.states import Completed, Failed, State

from flows.execution import run_logged
from flows.pipeline import RETRIES, RETRY_DELAY_S, ended_by, was_killed
from flows.whereabouts import say_retry, say_where


@task(retries=RETRIES, retry_delay_seconds=RETRY_DELAY_S, retry_condition_fn=was_killed)
def study() -> None:
    """Do what is left of the study in this folder. Raises `StageFailed` or `StageKilled`."""
    run_logged("study", Path.cwd(), [sys.executable, "-m", "flows.study"], {}, get_run_logger().info)


@flow(name="bigr", on_running=[say_where], on_crashed=[say_retry])
def ablations() -> State[Any]:
    """Do what is left of the study in this folder, and write docs/ablations.md."""
    result: Any = study(return_state=True).result(raise_on_failure=False)
    if isinstance(result, BaseException):
        return Failed(message=ended_by(result))
    page = Path("docs/ablations.md").read_text(encoding="utf-8")
    create_markdown_artifact(page, key="ablations", description="The paper's tables in miniature")
    return Completed(message="docs/ablations.md has the results")
