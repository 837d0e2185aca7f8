"""A full disk in every stage: the stage fails with one line that says so, and runs once there is room."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bigr.runtime.errors import EXIT_USER_ERROR
from tests import scratch
from tests.faults.stages import STAGES, again, results

pytestmark = [
    pytest.mark.slow,
    pytest.mark.faults,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root"),
]

ROOM_MIB = 400

PAST_THE_CHECK = """
from bigr.pipeline import runner
runner.check_stages = lambda *_: None
from bigr.cli.program import main
main()
"""


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of `ROOM_MIB` in memory, for the length of the block."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM_MIB}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_found_before_a_stage_begins(trained: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        project = scratch.copy(trained, disk / "full")
        with filled(disk):
            done = subprocess.run(
                ("bigr", "run", "samples"),
                cwd=project,
                env=scratch.environment(project),
                capture_output=True,
                text=True,
            )
    assert done.returncode == 2
    assert "so many images need" in done.stderr and "Traceback" not in done.stderr


def test_a_disk_that_fills_in_any_stage_is_one_error_and_a_second_run_succeeds(
    trained: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    failed, lost = 0, 0
    with small_disk(tmp_path / "disk") as disk:
        project = scratch.copy(trained, disk / "full")
        for stage in STAGES:
            again(project, stage)
            expected = results(project, stage)
            for output in expected or {}:  # else the new ones take the place of the old ones
                subprocess.run(["rm", "-rf", str(project / output)], check=True)
            with filled(disk):
                said = run_anew(project, stage)
            assert said is None or "full" in said or "No space left on device" in said, f"{stage}: {said}"
            failed += said is not None
            again(project, stage)
            lost += results(project, stage) != expected
    record_property("measured", f"full disk: {failed} of {len(STAGES)} stages failed, {lost} lost")
    assert failed >= len(STAGES) - 2, "dataset and text write next to nothing, the others must have failed"
    assert lost == 0


def run_anew(project: Path, stage: str) -> str | None:
    """The line with which `bigr run` ends, past the check that finds a full disk first; None where the stage ran."""
    done = subprocess.run(
        (sys.executable, "-c", PAST_THE_CHECK, "run", stage),
        cwd=project,
        env=scratch.environment(project),
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr, f"{stage}:\n{done.stderr}"
    assert done.returncode in (0, EXIT_USER_ERROR), done.stderr
    return done.stderr.splitlines()[-1] if done.returncode else None


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Fill the disk to the last byte for the length of the block."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        try:
            while True:
                file.write(bytes(2**16))
                file.flush()
        except OSError:
            pass
    try:
        yield
    finally:
        ballast.unlink()
