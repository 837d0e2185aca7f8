"""The flow of the deployment `bigr/ablations`: the study of docs/ablations.md, a task for each trained model.

What `make ablations` does, with Prefect's page for watching it: a job that a signal killed is tried again, and each run
is an experiment of DVC and a run in MLflow. `flows/study.py` does the work.
"""

from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import wait
from prefect.states import Completed, Failed, State
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from bigr.pipeline.study.tables import runs
from bigr.runtime.errors import BigrError
from flows.execution import StageFailed, StageKilled
from flows.pipeline import RETRIES, RETRY_DELAY_S, was_killed
from flows.study import LANES, Study
from flows.whereabouts import say_retry, say_where

BESIDE_EACH_OTHER: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=LANES)


@flow(name="bigr", task_runner=BESIDE_EACH_OTHER, on_running=[say_where], on_crashed=[say_retry])
def ablations() -> State[Any]:
    """Do what is left of the study in this folder, and write docs/ablations.md."""
    log = get_run_logger()
    try:
        study = Study(Path.cwd(), runs())
    except BigrError as error:
        return Failed(message=str(error))
    jobs = {job.name: job for job in study.open_jobs()}

    # The study holds locks, which no task can be given as an argument: its name says which job it is to do.
    @task(
        task_run_name="{job}",
        retries=RETRIES,
        retry_delay_seconds=RETRY_DELAY_S,
        retry_condition_fn=was_killed,
        cache_policy=NO_CACHE,
    )
    def train_and_sample(job: str) -> None:
        own = get_run_logger()
        study.run_job(jobs[job], own.info, own.debug)

    under_way = [train_and_sample.submit(name) for name in jobs]
    wait(under_way)
    for future in under_way:
        result = future.result(raise_on_failure=False)
        if isinstance(result, StageFailed | StageKilled | BigrError):
            return Failed(message=f"{result}; what is done stays done")
        if isinstance(result, BaseException):
            raise result
    try:
        study.publish()
    except (BigrError, StageFailed, StageKilled) as error:
        return Failed(message=f"{error}; what is done stays done")
    page = (study.project / "docs" / "ablations.md").read_text(encoding="utf-8")
    create_markdown_artifact(page, key="ablations", description="The paper's tables in miniature")
    log.info("docs/ablations.md says what was found")
    return Completed(message=f"{sum(len(job.runs) for job in jobs.values())} runs")
