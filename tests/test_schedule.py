"""Scheduled runs on a real Prefect server: the alert when one fails, and a night that finds the last one at work."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests import mini_project
from tests.services import Services, started

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(900)]

Heard = list[dict[str, Any]]


@pytest.fixture(scope="module")
def heard() -> Iterator[tuple[str, Heard]]:
    """The address of a webhook on loopback, and what it has been told."""
    told: Heard = []

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            told.append({"path": self.path, "type": self.headers["Content-Type"], **json.loads(body)})
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Webhook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook/secret", told
    server.shutdown()


@pytest.fixture(scope="module")
def services(heard: tuple[str, Heard], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    folder = tmp_path_factory.mktemp("schedule")
    with started(folder, mini_project.make(folder / "project"), BIGR_ALERT_URL=heard[0]) as services:
        yield services


def test_a_night_that_finds_the_last_run_at_work_waits_for_it_and_never_runs_beside_it(services: Services) -> None:
    services.hold.touch()
    pid = services.hold.with_suffix(".pid")
    with services.schedule("FREQ=SECONDLY;INTERVAL=20;COUNT=2"):
        mini_project.holder(pid)
        (waiting,) = services.wait_for(
            lambda: [run for run in services.runs("SCHEDULED") if run["state_name"] == "AwaitingConcurrencySlot"]
        )
        assert len(services.runs("PENDING", "RUNNING")) == 1
        services.hold.unlink()
        first, second = services.wait_for(lambda: services.scheduled() if len(services.scheduled()) == 2 else None)
    assert second["id"] == waiting["id"]
    assert first["end_time"] <= second["start_time"]
    assert all("auto-scheduled" in run["tags"] for run in (first, second)), "by this the alert knows them"
    assert (first["state_type"], second["state_type"]) == ("COMPLETED", "COMPLETED")
    assert second["state"]["message"] == "up to date: 0 stages ran, 4 cached"


def test_a_scheduled_run_that_fails_is_told_to_the_webhook_and_one_started_by_hand_is_not(
    services: Services, heard: tuple[str, Heard]
) -> None:
    assert heard[1] == []
    bad = {"settings": {"shards.val_fraction": mini_project.BAD_FRACTION}}
    assert services.watch(**bad)["state_name"] == "Failed"
    # Not by a schedule that is minutes old: Prefect's triggers would first wait for an event of its planning.
    deployment = services.api("/deployments/name/bigr/full")
    asked = {"state": {"type": "SCHEDULED"}, "parameters": bad, "tags": ["auto-scheduled"]}
    run = services.api(f"/deployments/{deployment['id']}/create_flow_run", asked)
    services.wait_for(lambda: heard[1])
    assert services.run(run["id"])["state_name"] == "Failed"
    (told,) = heard[1]
    assert (told["path"], told["type"]) == ("/hook/secret", "application/json")
    for part in ("bigr/full", run["name"], "Failed", mini_project.COMPLAINT, f"/runs/flow-run/{run['id']}"):
        assert part in told["text"]


def test_the_webhook_is_a_secret_and_one_set_to_nothing_is_told_no_more(services: Services, heard: Any) -> None:
    assert "/hook/secret" not in services.log.read_text()
    assert "/hook/secret" not in json.dumps(services.api("/block_documents/filter", {}))
    services.deploy(services.project)
    assert len(services.api("/automations/filter", {})) == 1, "a deploy without the variable leaves it"
    mini_project.run(
        services.project, "python", "-m", "flows.deploy", **services.of(services.project), BIGR_ALERT_URL=""
    )
    assert services.api("/automations/filter", {}) == []


@pytest.mark.parametrize("url", ["hooks.example/x", "file:///etc/passwd"])
def test_a_webhook_that_is_no_address_is_told_in_one_line(services: Services, url: str) -> None:
    with pytest.raises(AssertionError, match="BIGR_ALERT_URL must be") as raised:
        mini_project.run(
            services.project, "python", "-m", "flows.deploy", **services.of(services.project), BIGR_ALERT_URL=url
        )
    assert "Traceback" not in str(raised.value)
