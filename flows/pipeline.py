"""The flow `bigr`: the stages of dvc.yaml, one task each, in their order.

A stage that fails ends the run with its own message; one that a signal killed is tried again from its last checkpoint.
"""

import logging
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import TaskRun
from prefect.exceptions import FailedRun, MissingContextError
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, State
from prefect.tasks import Task

from bigr import config
from bigr.pipeline.check import check_files
from bigr.pipeline.dvcfile import StageSpec, outdated
from bigr.pipeline.dvcfile import stages as described_stages
from bigr.pipeline.images_found import check_images, images_of
from bigr.runtime.errors import BigrError
from bigr.runtime.masking import masked
from flows import gate, workspace
from flows.execution import RETRY, Outcome, StageFailed, StageKilled, execute
from flows.page import Page, record
from flows.whereabouts import say_retry, say_where

RETRIES, RETRY_DELAY_S = 2, 5


def _is_news(record: logging.LogRecord) -> bool:
    """False for Prefect's traceback of a failed state that the flow itself returned."""
    return not (record.exc_info and isinstance(record.exc_info[1], FailedRun))


for _name in ("prefect.flow_runs", "prefect.engine"):
    logging.getLogger(_name).addFilter(_is_news)


def was_killed(_: Task[Any, Any], __: TaskRun, state: State) -> bool:
    """Whether a signal ended the task's stage: another try then continues it."""
    return isinstance(state.result(raise_on_failure=False), StageKilled)


@task(retries=RETRIES, retry_delay_seconds=RETRY_DELAY_S, retry_condition_fn=was_killed)
def run_stage(
    stage: str, folder: str, environment: dict[str, str], force: bool, unchanged: bool = False
) -> State[Outcome]:
    """Bring one stage up to date; the task's state is named Ran or Cached. unchanged: it is up to date already."""
    if unchanged:
        outcome = Outcome("cached", 0.0)
    else:
        outcome = execute(stage, Path(folder), environment, force, get_run_logger().info)
    return Completed(name=outcome.state.capitalize(), message=f"{outcome.seconds:.1f} s", data=outcome)


@task(
    name="promote",
    task_run_name="promote",
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAY_S,
    retry_condition_fn=was_killed,
)
def run_gate(folder: str, environment: dict[str, str]) -> State[gate.GateResult]:
    """Let the model compete for the alias `champion`; the state is Promoted, Champion (already) or NotPromoted."""
    decision = gate.promote(Path(folder), environment, get_run_logger().info)
    return Completed(name=decision.state, message=decision.summary, data=decision)


@flow(name="bigr", on_running=[say_where], on_crashed=[say_retry])
def pipeline(
    stages: list[str] | None = None,
    settings: dict[str, Any] | None = None,
    force: bool = False,
    promote: bool | None = None,
) -> State[Any]:
    """Run the pipeline, or some of its stages.

    stages: those to bring up to date, without what they depend on; all by default.
    settings: values that differ from params.yaml, as {"generator.steps": 2000}. The run then works in a clone of the
        project, and becomes an experiment of DVC under its name.
    force: run each stage even if nothing that it depends on has changed.
    promote: let the model compete for the alias `champion`; by default only without `settings`.
    """
    project = Path.cwd()
    name, run_id = str(flow_run.name), str(flow_run.id)
    overrides = settings or {}
    promote = not overrides if promote is None else promote
    try:
        values = workspace.merge(config.read(project / "params.yaml"), overrides)
        graph = described_stages(project, values)
        chosen = choose(graph, stages)
        valid = config.validate(values)
        check_files(project, valid, chosen)
        check_images(project, valid, images_of(project, valid, chosen), chosen)
        folder = project / workspace.FOLDER / run_id if overrides else project
        if overrides:
            workspace.clone(project, folder, overrides)
    except BigrError as error:
        return _failed(str(error))
    page = Page(name, folder, overrides, competes=promote or not overrides)
    try:
        environment = {"BIGR_EXECUTION": run_id, "BIGR_EXECUTION_NAME": name}  # the parent run of the stages' runs
        message = _run(graph, chosen, page, environment, force)
        if not message and promote and gate.applies(graph, chosen) and not _is_decided(page, project):
            message = _promote(page, environment)
    finally:
        _publish(page, project, run_id)
    if message:
        if overrides and "failed" in page.stages.values():  # the clone of a killed run stays, with its checkpoints
            workspace.remove(folder)
        return _failed(message)
    if overrides:
        try:
            workspace.keep(project, folder, workspace.experiment_name(project, name, run_id), chosen)
            workspace.remove(folder)
        except BigrError as error:
            return _failed(f"the results, in {folder}, could not be saved as an experiment: {error}")
    ran = sum(end.state == "ran" for end in page.stages.values() if isinstance(end, Outcome))
    count = f"{ran} stage{'' if ran == 1 else 's'} ran, {len(chosen) - ran} cached"
    if page.gate:
        return Completed(message=f"{count}; {page.gate.summary}")
    return Completed(message=count if ran else f"up to date: {count}")


def _failed(message: str) -> State[Any]:
    """The state of a failed run. The message is logged and sent before the run ends, so that `--watch` shows it."""
    try:
        get_run_logger().error(message)
    except MissingContextError:  # called as a function, outside a run
        return Failed(message=message)
    for handler in logging.getLogger("prefect.flow_runs").handlers:
        handler.flush()
    return Failed(message=message)


def choose(graph: dict[str, StageSpec], stages: list[str] | None) -> list[str]:
    """The named stages, all by default, in the pipeline's order. Raises `BigrError` for an unknown one."""
    if unknown := sorted(set(stages or []) - set(graph)):
        raise BigrError(f"stages: {', '.join(unknown)}: no such stage; there are {', '.join(graph)}")
    return [stage for stage in graph if not stages or stage in stages]


def _run(graph: dict[str, StageSpec], chosen: list[str], page: Page, environment: dict[str, str], force: bool) -> str:
    """Run the stages one after the other. Returns the message of the first that fails, else an empty string."""
    done: dict[str, State[Any]] = {}
    fresh = set() if force else unchanged(page.workspace, chosen)
    for stage in chosen:
        makers = [other for other in done if _feeds(graph[other], graph[stage])]
        if not fresh.issuperset(makers):  # DVC may have checked out other inputs, though nothing ran
            fresh.discard(stage)
        named = run_stage.with_options(name=stage, task_run_name=stage)
        made_by = [done[maker] for maker in makers]
        folder = str(page.workspace)
        state = named(stage, folder, environment, force, stage in fresh, wait_for=made_by, return_state=True)
        result: Any = state.result(raise_on_failure=False)
        if isinstance(result, Outcome):
            page.stages[stage], done[stage] = result, state
            continue
        page.stages[stage] = "killed" if isinstance(result, StageKilled) else "failed"
        return ended_by(result)
    return ""


def unchanged(workspace: Path, stages: list[str]) -> set[str]:
    """Those of `stages` that are as dvc.lock has them, asked once: `dvc repro` takes a second or two for each stage.

    None where DVC cannot tell: `dvc repro` then says why.
    """
    try:
        return set(stages) - set(outdated(workspace, stages))
    except BigrError:
        return set()


def ended_by(result: Any) -> str:
    """The message of a run that a killed or failed task has ended. Raises any other exception."""
    if isinstance(result, StageKilled):
        return f"{result}; {RETRY}"
    if isinstance(result, StageFailed):
        return str(result)
    raise result


def _is_decided(page: Page, project: Path) -> bool:
    """Whether nothing ran and the gate has judged the model before."""
    if any(end.state == "ran" for end in page.stages.values() if isinstance(end, Outcome)):
        return False
    try:
        return gate.has_judged(project, page.workspace)
    except Exception as error:  # a run with nothing to do does not need MLflow
        get_run_logger().warning(
            "MLflow does not answer; nothing ran, so the gate is not asked: %s", masked(str(error))
        )
        return True


def _promote(page: Page, environment: dict[str, str]) -> str:
    """Let the model compete. Returns the message of a failure, else an empty string."""
    state = run_gate(str(page.workspace), environment, return_state=True)
    result: Any = state.result(raise_on_failure=False)
    if isinstance(result, gate.GateResult):
        page.gate = result
        return ""
    return ended_by(result)


def _feeds(maker: StageSpec, reader: StageSpec) -> bool:
    return any(Path(dep).is_relative_to(out) for dep in reader.deps for out in maker.outs)


def _publish(page: Page, project: Path, run_id: str) -> None:
    """Add the page to the run's artifacts. A failure of MLflow or Prefect here is only a warning."""
    try:
        page.record = record(project, run_id)
    except Exception as error:
        get_run_logger().warning("MLflow does not answer; the page has no link to this run: %s", masked(str(error)))
    try:
        about = "Stages, metrics, samples, records, settings"
        create_markdown_artifact(page.text(), key="pipeline", description=about)
    except Exception as error:
        get_run_logger().warning("the run's page could not be written: %s", masked(str(error)))
