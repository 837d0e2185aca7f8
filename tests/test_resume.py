"""A killed `dvc repro` takes its training up again, and ends with the bytes of one that was left alone."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import preloaded, scratch, tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 60
CHANGES = {"generator.steps": STEPS, "generator.validate_every": STEPS, "run.checkpoint_every": 1}
REPRO = ("dvc", "repro", "generator")


def test_repro_after_kill_9_continues_and_ends_with_the_weights_of_one_that_was_left_alone(
    trained: Path, tmp_path: Path
) -> None:
    straight, killed = (scratch.copy(trained, tmp_path / name) for name in ("straight", "killed"))
    for project in (straight, killed):
        tiny.apply(project / "params.yaml", CHANGES)

    assert "continuing from step" not in repro(straight)
    kill_while_training(killed)
    assert not (killed / "models" / "generator").exists()
    found = re.search(rf"generator: continuing from step (\d+) of {STEPS}", repro(killed))
    assert found and 1 <= int(found[1]) < STEPS
    assert not (killed / "checkpoints" / "generator" / "checkpoint.safetensors").exists()
    for name in ("config.json", "model.safetensors"):
        ends = [(project / "models" / "generator" / name).read_bytes() for project in (straight, killed)]
        assert ends[0] == ends[1], name


def repro(project: Path) -> str:
    """All that a `dvc repro` of the generator says."""
    environment = scratch.environment(project)
    done = subprocess.run(
        REPRO, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def kill_while_training(project: Path) -> None:
    """Start `dvc repro`, and kill it and all that it started once a checkpoint is there."""
    process = subprocess.Popen(
        REPRO,
        cwd=project,
        env=scratch.environment(project) | {preloaded.VARIABLE: ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        while not (project / "checkpoints" / "generator" / "checkpoint.safetensors").exists():
            assert process.poll() is None, "the training ended before it could be killed"
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
