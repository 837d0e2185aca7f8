"""kill −9 of `dvc repro` at random moments in every stage: a second run ends with the bytes of one left alone."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import scratch
from tests.faults.stages import STAGES, again, results

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1800)]

TRIES = 3
"""Kills of each stage."""


def test_a_pipeline_that_is_killed_in_every_stage_ends_with_the_same_files(
    trained: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    project = scratch.copy(trained, tmp_path / "killed")
    draws = random.Random(0)
    killed, lost = 0, 0
    for stage in STAGES:
        start = time.monotonic()
        again(project, stage)
        length = time.monotonic() - start
        expected = results(project, stage)
        for _ in range(TRIES):
            killed += killed_within(project, stage, draws.uniform(0.05, 0.9) * length)
            done = scratch.run(project, "dvc", "repro", "--single-item", "--no-run-cache", stage)
            assert results(project, stage) is not None, done
            lost += results(project, stage) != expected
    record_property("measured", f"kill -9 of dvc repro: {killed} kills in {len(STAGES)} stages, {lost} lost")
    assert killed >= 2 * len(STAGES)
    assert lost == 0


def killed_within(project: Path, stage: str, seconds: float) -> bool:
    """Run the stage anew, and kill it and all that it started after `seconds`; False where it had ended before."""
    process = subprocess.Popen(
        ("dvc", "repro", "--single-item", "--force", "--no-run-cache", stage),
        cwd=project,
        env=scratch.environment(project),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False
