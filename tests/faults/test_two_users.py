"""Two users in one project at the same time: the second is refused with one line or waits, and nothing is lost."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import scratch
from tests.faults.stages import results

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(900)]

STAGE = "generator"
REPRO = ("dvc", "repro", "--single-item", "--force", "--no-run-cache", STAGE)
TRIES = 4


def test_two_runs_of_a_stage_at_once_lose_nothing(
    trained: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    project = scratch.copy(trained, tmp_path / "shared")
    expected = results(project, STAGE)
    refused = 0
    for attempt in range(TRIES):
        first = begin(project)
        time.sleep(0.5 * attempt)  # at the same moment, and later
        second = begin(project)
        ends = [process.communicate()[1] for process in (first, second)]
        codes = [process.returncode for process in (first, second)]
        assert 0 in codes, ends
        for code, said in zip(codes, ends, strict=True):
            assert "Traceback" not in said
            assert code == 0 or "lock" in said, said
        refused += codes.count(0) == 1
        assert results(project, STAGE) == expected
    record_property("measured", f"two runs at once: {TRIES} tries, {refused} refused with one line, 0 lost")


def begin(project: Path) -> "subprocess.Popen[str]":
    environment = scratch.environment(project)
    return subprocess.Popen(
        REPRO, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
