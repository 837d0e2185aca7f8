"""A stage in several processes that are killed, stopped, or left alone by what started them."""

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from bigr.runtime.context import Context
from bigr.stages import train_generator
from tests import preloaded, scratch, tiny
from tests.worlds import settings, write_codes

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1800)]

STEPS = 48
CHANGES = {
    "run.checkpoint_every": 4,
    "run.device": "cpu",
    "generator.steps": STEPS,
    "generator.validate_every": 24,
    "generator.learning_rate": 0.01,
}


def project(folder: Path, **changes: object) -> Path:
    """A project whose stage `generator` can start."""
    made = scratch.make_tiny(folder)
    write_codes(made)
    (made / "data" / "text").mkdir()
    (made / "data" / "text" / "none").touch()
    own = {key.replace("__", "."): value for key, value in changes.items()}
    tiny.apply(made / "params.yaml", CHANGES | own)
    return made


@contextmanager
def started(made: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A command in the project, without forks of a common process; what it leaves is killed at the end."""
    process = subprocess.Popen(
        words,
        cwd=made,
        env=scratch.environment(made) | {preloaded.VARIABLE: ""},
        stdout=subprocess.DEVNULL,
        stderr=(made / "said").open("a"),
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for left in stages(made):
            left.kill()
        process.kill()
        process.wait()


def stages(made: Path) -> list[psutil.Process]:
    """All processes of `bigr run` in the project."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(made) and {"run", "generator"} <= set(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def workers(made: Path) -> list[psutil.Process]:
    found = []
    for process in stages(made):
        try:
            if "LOCAL_RANK" in process.environ():
                found.append(process)
        except psutil.Error:
            continue
    return found


def until(happened: Callable[[], object], process: subprocess.Popen[str], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, "the command ended before"
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def checkpoint(made: Path) -> tuple[float, int]:
    """The newest checkpoint: when it was written; (0, 0) where there is none."""
    try:
        found = (made / "checkpoints" / "generator" / "checkpoint.safetensors").stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_mtime, found.st_ino


def continued(made: Path) -> list[int]:
    """The steps from which the stage has continued, by its log."""
    return [int(step) for step in re.findall(r"generator: continuing from step (\d+)", (made / "said").read_text())]


def assert_trained_as_undisturbed(made: Path, folder: Path) -> None:
    """The weights are those of one process that was left alone, up to rounding."""
    write_codes(folder)
    changes = {key.replace(".", "__"): value for key, value in CHANGES.items()}
    train_generator.run(settings(**changes), Context(folder, "f"))
    ours, theirs = (load_file(root / "models" / "generator" / "model.safetensors") for root in (made, folder))
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, rtol=0, atol=3e-4), name


@pytest.mark.parametrize(("kills", "parallel"), [(1, "ddp"), (3, "fsdp")])
def test_killed_processes_are_started_again_and_lose_nothing(tmp_path: Path, kills: int, parallel: str) -> None:
    """kill -9 of a random one of four processes, each time at a random moment after another checkpoint."""
    draws = random.Random(kills)
    made = project(tmp_path, run__processes=4, run__max_restarts=kills, run__parallel=parallel)
    with started(made, "bigr", "run", "generator") as process:
        for number in range(kills):
            last = checkpoint(made)
            until(lambda last=last: checkpoint(made) != last, process)
            time.sleep(draws.random() / 10)
            if not (alive := workers(made)):
                break
            draws.choice(alive).kill()
            until(lambda number=number: len(continued(made)) > number, process)
        assert process.wait(timeout=900) == 0, (made / "said").read_text()
    steps = continued(made)
    print(f"{len(steps)} kills, continued from steps {steps} of {STEPS}")
    assert len(steps) == kills and all(step % 4 == 0 for step in steps)
    assert_trained_as_undisturbed(made, tmp_path / "alone")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_notice_ends_the_stage_with_a_checkpoint_and_its_own_status(tmp_path: Path, processes: int) -> None:
    made = project(tmp_path, run__processes=processes, run__max_restarts=3, generator__steps=100_000)
    with started(made, "bigr", "run", "generator") as process:
        until(lambda: checkpoint(made) != (0, 0), process)
        last = checkpoint(made)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=300) == 75
        assert checkpoint(made) != last
        assert not stages(made)
    assert "the checkpoint is written" in (made / "said").read_text()
    assert not (made / "models" / "generator").exists()


@pytest.mark.parametrize(("number", "processes"), [(signal.SIGTERM, 1), (signal.SIGKILL, 2)])
def test_a_stage_ends_with_the_dvc_that_started_it(tmp_path: Path, number: signal.Signals, processes: int) -> None:
    made = project(tmp_path, run__processes=processes, generator__steps=100_000)
    with started(made, "dvc", "repro", "--single-item", "generator") as process:
        until(lambda: checkpoint(made) != (0, 0), process)
        os.kill(process.pid, number)
        process.wait(timeout=60)
        end = time.monotonic() + 120
        while left := stages(made):
            assert time.monotonic() < end, [stage.cmdline() for stage in left]
            time.sleep(0.1)
    assert "the checkpoint is written" in (made / "said").read_text()
