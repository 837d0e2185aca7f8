"""The deployment `bigr/full` against a real Prefect server and worker, started as `make services` starts them."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests import mini_project, tiny
from tests.services import ENDED, Services, copy_of_this_project, rows, started

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    folder = tmp_path_factory.mktemp("services")
    with started(folder, mini_project.make(folder / "project")) as services:
        yield services


def test_the_deployment_completes_and_its_page_tells_all(services: Services) -> None:
    run = services.watch()
    assert run["state_type"] == "COMPLETED" and run["state"]["message"] == "4 stages ran, 0 cached"
    tasks = services.tasks(run, *mini_project.STAGES)
    assert {name: task["state_name"] for name, task in tasks.items()} == dict.fromkeys(mini_project.STAGES, "Ran")
    assert [ref["id"] for ref in tasks["samples"]["task_inputs"]["wait_for"]] == [tasks["shards"]["id"]]
    page = services.page(run)
    for stage in mini_project.STAGES:
        assert any(row.startswith(f"| {stage} | ran |") for row in rows(page))
    guidance = mini_project.guidance(services.project)
    assert f"| guidance | {guidance} |" in page and f"| samples.guidance_scale | {guidance} |" in page
    assert "](data:image/png;base64,iVBOR" in page
    assert f"(http://127.0.0.1:{services.environment['MLFLOW_PORT']})" in page


def test_a_scheduled_run_fires_and_finds_nothing_to_do(services: Services) -> None:
    deployment = services.api("/deployments/name/bigr/full")
    (nightly,) = deployment["schedules"]
    assert nightly["schedule"]["cron"] == "0 3 * * *" and nightly["schedule"]["timezone"] == "UTC" and nightly["active"]
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"

    with services.schedule("FREQ=SECONDLY;INTERVAL=15;COUNT=8"):
        finished = services.wait_for(services.scheduled)
    assert finished[0]["state_name"] == "Completed"
    assert finished[0]["state"]["message"] == "up to date: 0 stages ran, 4 cached"
    assert sum("| cached |" in row for row in rows(services.page(finished[0]))) == 4
    services.wait_for(lambda: not services.runs("PENDING", "RUNNING"))


def test_overrides_become_an_experiment_and_leave_the_project_alone(services: Services) -> None:
    params = (services.project / "params.yaml").read_bytes()
    run = services.watch(settings={"samples.guidance_scale": 2.5}, stages=["samples", "evaluation"])
    assert run["state"]["message"] == "2 stages ran, 0 cached"
    assert "| samples.guidance_scale | **2.5** |" in services.page(run)
    assert (services.project / "params.yaml").read_bytes() == params
    assert json.loads((services.project / "outputs/metrics.json").read_text()) == {
        "guidance": mini_project.guidance(services.project)
    }
    shown = mini_project.run(services.project, "dvc", "exp", "show", "--csv")
    (row,) = [line for line in shown.splitlines() if line.startswith(f"{run['name']},")]
    assert ",2.5," in row


def test_a_bad_setting_fails_the_run_at_once_with_its_own_message(services: Services) -> None:
    run = services.watch(settings={"shards.val_fraction": mini_project.BAD_FRACTION})
    assert run["state_name"] == "Failed"
    assert run["state"]["message"] == f"shards: {mini_project.COMPLAINT}"
    tasks = services.tasks(run, "digits", "shards")
    assert tasks["shards"]["run_count"] == 1 and "samples" not in tasks
    page = services.page(run)
    assert "| shards | failed |" in page and "## Samples" not in page


def test_an_unknown_setting_fails_before_anything_runs(services: Services) -> None:
    run = services.watch(settings={"generator.stepz": 3})
    assert run["state"]["message"] == "settings: generator.stepz is not a setting; did you mean generator.steps?"


def test_a_killed_stage_is_tried_again(services: Services) -> None:
    services.kill.write_text(str(int(signal.SIGKILL)))
    run = services.watch(stages=["shards", "digits"], force=True)
    assert run["state_name"] == "Completed"
    assert services.tasks(run, "shards")["shards"]["run_count"] == 2


def test_a_run_that_is_killed_leaves_the_project_alone_and_continues_when_retried(services: Services) -> None:
    params = (services.project / "params.yaml").read_bytes()
    services.hold.touch()
    run_id, _ = services.start(settings={"shards.images_per_shard": 7})
    stage = mini_project.holder(services.hold.with_suffix(".pid"))
    guard = next(process for process in stage.parents() if "guard.py" in " ".join(process.cmdline()))
    engine = guard.parent()
    assert engine is not None
    engine.kill()
    _, alive = psutil.wait_procs([stage, guard], timeout=30)
    assert not alive
    last_word = "flow_runs.worker - Check whether the flow run exceeded"  # before it, the worker may report once more
    services.wait_for(lambda: last_word in services.log.read_text())
    assert services.run(run_id)["state_name"] == "Crashed"
    assert (services.project / "params.yaml").read_bytes() == params
    assert mini_project.run(services.project, "git", "status", "--porcelain") == "?? dvc.lock\n"

    services.hold.unlink()
    services.api(f"/flow_runs/{run_id}/set_state", {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}})
    services.wait_for(lambda: services.run(run_id)["state_type"] in ENDED)
    run = services.run(run_id)
    assert run["state_name"] == "Completed", run["state"]
    assert "| shards | ran |" in services.page(run)
    assert f"\n{run['name']}," in mini_project.run(services.project, "dvc", "exp", "show", "--csv")


def test_a_run_that_is_cancelled_ends_its_stage_and_a_later_one_continues(services: Services) -> None:
    pid = services.hold.with_suffix(".pid")
    pid.unlink(missing_ok=True)
    services.hold.touch()
    run_id, _ = services.start(stages=["digits", "shards"], force=True)
    stage = mini_project.holder(pid)
    mine = [stage, *stage.parents()[:2]]  # DVC, and a shell or the guard
    mini_project.run(services.project, "prefect", "flow-run", "cancel", run_id, **services.environment)
    _, alive = psutil.wait_procs(mine, timeout=60)
    assert not alive
    services.wait_for(lambda: services.run(run_id)["state_type"] == "CANCELLED")
    assert mini_project.run(services.project, "git", "status", "--porcelain") == "?? dvc.lock\n"

    services.hold.unlink()
    assert services.watch(stages=["digits", "shards"], force=True)["state"]["message"] == "2 stages ran, 0 cached"


def test_the_real_pipeline_runs_through_the_deployment(services: Services, tmp_path: Path) -> None:
    project = copy_of_this_project(tmp_path / "bigr")
    services.deploy(project)
    run = services.watch(project=project, settings=tiny.OVERRIDES)
    assert run["state_name"] == "Completed", run["state"]
    decided = "8 stages ran, 0 cached; version 1 is not promoted, there is no champion: samples.label_agreement is "
    assert run["state"]["message"].startswith(decided)
    assert "## Promotion" in services.page(run)
    page = services.page(run)
    assert "label_agreement" in page and "](data:image/png;base64,iVBOR" in page and "/#/experiments/" in page
    shown = mini_project.run(project, "dvc", "exp", "show", "--csv")
    assert f"\n{run['name']}," in shown
    assert mini_project.run(project, "git", "status", "--porcelain") == ""


def test_services_stop_with_all_that_runs_and_the_next_start_is_not_held_up(services: Services) -> None:
    services.deploy(services.project)
    pid = services.hold.with_suffix(".pid")
    pid.unlink(missing_ok=True)
    services.hold.touch()
    run_id, _ = services.start(stages=["digits", "shards"], force=True)
    mini_project.holder(pid)
    said = [" ".join(process.cmdline()) for process in services.processes()]
    assert all(any(words in line for line in said) for words in ("prefect server", "prefect worker", "step.py"))
    assert services.stop() == []

    services.hold.unlink()
    services.launch()
    services.wait_until_up()
    assert services.run(run_id)["state_name"] == "Crashed"
    assert services.watch(stages=["digits", "shards"])["state_name"] == "Completed"
