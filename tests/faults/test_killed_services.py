"""`kill -9` of the services while a flow run trains: the worker, both servers, and Postgres under them."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import postgres, scratch, tiny
from tests.faults.stages import results
from tests.faults.supervised import Platform, left, platform, until
from tests.services import ENDED

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.faults,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(postgres.MISSING), reason=postgres.MISSING),
]
pytest.importorskip("psycopg2")

STAGE = "generator"
PATIENCE_S = 900


@pytest.fixture(scope="module")
def ready(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Platform, dict[str, Any]]]:
    """The platform, and the hashes of a flow run that nothing disturbed."""
    with platform(trained, tmp_path_factory.mktemp("killed")) as made:
        tiny.apply(made.project / "params.yaml", {"generator.steps": 100})
        assert ended(made, made.worker.start(stages=[STAGE], force=True))["state_name"] == "Completed"
        expected = results(made.project, STAGE)
        assert expected
        yield made, expected


def ended(made: Platform, run_id: str) -> dict[str, Any]:
    """The flow run, once it has ended."""
    made.worker.wait_for(lambda: made.worker.run(run_id)["state_type"] in ENDED, PATIENCE_S)
    return made.worker.run(run_id)


def begins(made: Platform, run_id: str) -> bool:
    return bool(made.worker.run(run_id)["state_type"] == "RUNNING")


def starts_the_stage(made: Platform, run_id: str) -> bool:
    return bool(left(made.project))


def trains(made: Platform, run_id: str) -> bool:
    return (made.project / "checkpoints" / STAGE / "checkpoint.safetensors").exists()


MOMENTS = ((begins, 0), (starts_the_stage, 5), (trains, 15))
"""When the service is killed, and after how many seconds it is started again."""


@pytest.mark.parametrize("service", ["prefect", "mlflow", "postgres", "worker"])
def test_a_service_that_is_killed_costs_no_result(
    ready: tuple[Platform, dict[str, Any]], service: str, record_property: Callable[[str, object], None]
) -> None:
    made, expected = ready
    worker, ends, lost = made.worker, [], 0
    for moment, pause in MOMENTS:
        run_id = worker.start(stages=[STAGE], force=True)
        until(lambda moment=moment, run_id=run_id: moment(made, run_id), PATIENCE_S)
        made.kill(service)
        time.sleep(pause)
        made.start(service)
        run = ended(made, run_id)
        ends.append(run["state_name"])
        print(service, moment.__name__, run["state_name"], run["state"]["message"])
        until(lambda: not left(made.project), 60)
        scratch.run(made.project, "dvc", "status", STAGE)  # nobody holds DVC's lock
        if run["state_name"] != "Completed":
            said = run["state"]["message"]
            assert said and "\n" not in said and "Traceback" not in said
            again = ended(made, worker.start(stages=[STAGE], force=True))  # not from DVC's cache of runs
            assert again["state_name"] == "Completed", again["state"]["message"]
        lost += results(made.project, STAGE) != expected
    record_property("measured", f"kill -9 of {service}: {len(ends)} tries, {ends}, {lost} lost")
    assert lost == 0
    if service in ("mlflow", "postgres"):
        assert ends == ["Completed"] * len(MOMENTS), "a training does not need its records"
