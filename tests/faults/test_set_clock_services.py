"""Prefect's server, a worker and a night, while the system's clock is set back or forward by an hour."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from tests import mini_project
from tests.faults import set_clock
from tests.faults.set_clock import HOUR, Clock
from tests.services import ENDED, Services, started

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.faults,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(set_clock.MISSING), reason=set_clock.MISSING),
]

LOOK_S = 20
"""In this time the server looks for runs that are due, late, or without a place."""


@pytest.fixture(scope="module")
def clocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Services, Clock]]:
    folder = tmp_path_factory.mktemp("clocked")
    project = mini_project.make(folder / "project")
    clock = Clock(folder / "clock", project)
    with started(folder, project, **clock.environment) as services:
        yield services, clock


def held(services: Services) -> tuple[str, psutil.Process]:
    """A run whose stage waits: its id, and the stage's process."""
    pid = services.hold.with_suffix(".pid")
    pid.unlink(missing_ok=True)
    services.hold.touch()
    run_id = services.start(stages=["dataset", "shards"], force=True)
    return run_id, mini_project.holder(pid)


def ended(services: Services, run_id: str) -> dict[str, Any]:
    services.wait_for(lambda: services.run(run_id)["state_type"] in ENDED)
    return services.run(run_id)


def test_a_run_goes_on_though_the_clock_goes_back_and_the_worker_starts_again(
    clocked: tuple[Services, Clock], record_property: Callable[[str, object], None]
) -> None:
    services, clock = clocked
    run_id, stage = held(services)
    clock.set(-HOUR)
    mini_project.run(
        services.project, "python", "-m", "flows.deploy", **services.of(services.project), **clock.environment
    )
    time.sleep(LOOK_S)
    assert stage.is_running() and services.run(run_id)["state_type"] == "RUNNING"
    services.hold.unlink()
    run = ended(services, run_id)
    assert run["state"]["message"] == "2 stages ran, 0 cached"
    assert services.watch(stages=["dataset", "shards"])["state"]["message"] == "up to date: 0 stages ran, 2 cached"
    record_property("measured", "clock back by an hour in a flow run: 1 try, 0 lost")


def test_a_night_is_run_once_though_its_hour_comes_twice(
    clocked: tuple[Services, Clock], record_property: Callable[[str, object], None]
) -> None:
    services, clock = clocked
    clock.set(0)
    before = len(services.scheduled())
    planned = time.time() + 8
    with services.schedule("FREQ=SECONDLY;COUNT=1"):
        services.wait_for(lambda: len(services.scheduled()) > before)
        clock.set(round(planned - time.time()) - 5)  # and the moment comes again
        time.sleep(2 * LOOK_S)
        assert not services.runs("SCHEDULED", "PENDING", "RUNNING")
        assert len(services.scheduled()) == before + 1
    clock.set(0)
    planned = time.time() + HOUR / 2
    with services.schedule("FREQ=SECONDLY;COUNT=1", seconds=HOUR / 2):
        services.wait_for(lambda: services.runs("SCHEDULED"))
        clock.set(HOUR)
        services.wait_for(lambda: len(services.scheduled()) > before + 1)
        clock.set(round(planned - time.time()) - 5)
        time.sleep(2 * LOOK_S)
        assert not services.runs("SCHEDULED", "PENDING", "RUNNING")
        assert len(services.scheduled()) == before + 2
    record_property("measured", "clock set over a night's start: 2 nights, each run once")


def test_a_clock_that_goes_forward_by_an_hour_ends_a_run_with_one_line_at_most(
    clocked: tuple[Services, Clock], record_property: Callable[[str, object], None]
) -> None:
    """Prefect's lease of the run's place ends by the clock: docs/reliability.md."""
    services, clock = clocked
    clock.set(0)
    run_id, stage = held(services)
    clock.set(HOUR)
    start = time.monotonic()
    while time.monotonic() - start < 300 and services.run(run_id)["state_type"] == "RUNNING":
        time.sleep(2)
    took = time.monotonic() - start
    services.hold.unlink()
    run = ended(services, run_id)
    psutil.wait_procs([stage], 60)
    assert not stage.is_running()
    again = services.watch(stages=["dataset", "shards"])
    assert again["state_name"] == "Completed", again["state"]["message"]
    record_property("measured", f"clock forward by an hour in a flow run: {run['state']} after {took:.0f} s")
    assert "\n" not in run["state"]["message"]
