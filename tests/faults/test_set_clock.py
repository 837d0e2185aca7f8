"""The system's clock is set back or forward by an hour while a stage, a flow run or a night is at work."""

import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bigr.tracking.store import Store
from flows.freshness import unchanged
from tests import scratch, tiny
from tests.faults import set_clock
from tests.faults.set_clock import HOUR, Clock
from tests.faults.stages import STAGES, results

pytestmark = [
    pytest.mark.slow,
    pytest.mark.faults,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(set_clock.MISSING), reason=set_clock.MISSING),
]

REPRO = ("dvc", "repro", "--single-item", "--force", "--no-run-cache")
STEPS = 120


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path / "clock")


@pytest.fixture(scope="module")
def longer(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, whose training takes long enough to set the clock meanwhile."""
    project = scratch.copy(trained, tmp_path_factory.mktemp("clock") / "copy")
    tiny.apply(project / "params.yaml", {"generator.steps": STEPS, "run.checkpoint_every": 5})
    scratch.run(project, *REPRO, "generator")
    return project


@contextmanager
def begun(project: Path, clock: Clock, *words: str) -> Iterator["subprocess.Popen[str]"]:
    """A command that sees the clock, and writes all that it says to the file `said`; it and its stages are ended."""
    with (project / "said").open("w") as said:
        process = subprocess.Popen(
            words,
            cwd=project,
            env=scratch.environment(project) | clock.environment,
            stdout=said,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def until(happened: Callable[[], object], process: "subprocess.Popen[str]", seconds: float = 300) -> None:
    """Return once `happened()` is true, at the latest when the command has ended."""
    end = time.monotonic() + seconds
    while not happened() and process.poll() is None:
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def checkpoint(project: Path) -> int:
    """The number of the file of the newest checkpoint; 0 where there is none."""
    try:
        return (project / "checkpoints" / "generator" / "checkpoint.safetensors").stat().st_ino
    except FileNotFoundError:
        return 0


def runs_of(project: Path, patch: pytest.MonkeyPatch) -> list[tuple[str, int, int, str]]:
    """MLflow's runs in the project: name, start, end and state."""
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    runs = Store(project).search("attributes.start_time > 0")
    return [(run.info.run_name, run.info.start_time, run.info.end_time, run.info.status) for run in runs]


def test_a_clock_that_is_set_in_mid_run_changes_neither_results_nor_decisions(
    longer: Path,
    clock: Clock,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project = scratch.copy(longer, tmp_path / "set")
    expected = {stage: results(project, stage) for stage in ("shards", "generator")}
    lost, tries = 0, 0
    for stage in expected:
        for seconds in (-HOUR, HOUR):
            clock.set(0)
            with begun(project, clock, *REPRO, stage) as process:
                happened = checkpoint if stage == "generator" else _packs
                until(lambda happened=happened: happened(project), process)
                assert process.poll() is None, "the clock was set too late"
                clock.set(seconds)
                assert process.wait(300) == 0, (project / "said").read_text()
            tries += 1
            lost += results(project, stage) != expected[stage]
            said = (project / "said").read_text()
            assert not re.search(r"(?<![\de])-\d+[.:]?\d* ?(s|left|step)", said), said
            assert stage in unchanged(project, STAGES), "asked with the machine's clock"
            again = scratch.run(project, "dvc", "repro", "--single-item", stage, **clock.environment)
            assert "Running stage" not in again
    runs = runs_of(project, monkeypatch)
    record_property("measured", f"clock set by an hour in a stage: {tries} tries, {lost} lost")
    assert lost == 0
    assert len(runs) == 2 * tries and {state for *_, state in runs} == {"FINISHED"}
    assert all(start <= end for _, start, end, _ in runs)


def _packs(project: Path) -> bool:
    return any((project / "data").glob(".shards.*"))


def test_a_training_continues_from_its_newest_checkpoint_though_the_clock_went_back(
    longer: Path, clock: Clock, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    project = scratch.copy(longer, tmp_path / "killed")
    expected = results(project, "generator")
    steps = []
    for seconds in (-HOUR, HOUR):
        clock.set(0)
        with begun(project, clock, *REPRO, "generator") as process:
            until(lambda: checkpoint(project), process)
            clock.set(seconds)
            for _ in range(2):
                last = checkpoint(project)
                until(lambda last=last: checkpoint(project) != last, process)
        assert process.returncode == -signal.SIGKILL
        with begun(project, clock, *REPRO[:3], "--no-run-cache", "generator") as process:
            assert process.wait(300) == 0
        said = (project / "said").read_text()
        steps += [int(step) for step in re.findall(r"continuing from step (\d+)", said)]
        assert results(project, "generator") == expected
    record_property("measured", f"clock set, then kill -9: {len(steps)} tries, continued from steps {steps}, 0 lost")
    assert len(steps) == 2 and all(step >= 15 for step in steps)


def test_an_execution_is_the_same_after_the_clock_was_set(
    longer: Path, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One parent run holds the stages before and after."""
    project = scratch.copy(longer, tmp_path / "execution")
    words = ("dvc", "repro", "--force", "--no-run-cache", "generator", "transcoder", "--single-item")
    with begun(project, clock, *words) as process:
        until(lambda: checkpoint(project), process)
        clock.set(-HOUR)
        assert process.wait(300) == 0, (project / "said").read_text()
    names = sorted(name if name in STAGES else "parent" for name, *_ in runs_of(project, monkeypatch))
    assert names == ["generator", "parent", "transcoder"]


def test_a_live_process_is_not_taken_for_dead_after_the_clock_was_set(clock: Clock) -> None:
    code = (
        "import sys; from bigr.tracking.executions import is_dead, process_tag; tag = process_tag();"
        "sys.stdout.write(tag + '\\n'); sys.stdout.flush(); sys.stdin.readline(); sys.exit(is_dead(tag))"
    )
    for seconds in (-HOUR, HOUR):
        clock.set(0)
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=os.environ | clock.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout and process.stdout.readline()
        clock.set(seconds)
        process.communicate("\n")
        assert process.returncode == 0


def test_a_second_run_is_refused_as_soon_though_the_clock_is_set(longer: Path, clock: Clock, tmp_path: Path) -> None:
    project = scratch.copy(longer, tmp_path / "locked")
    expected = results(project, "generator")
    with begun(project, clock, *REPRO, "generator") as process:
        until(lambda: checkpoint(project), process)
        clock.set(-HOUR)
        start = time.monotonic()
        second = subprocess.run(
            (*REPRO, "generator"),
            cwd=project,
            env=scratch.environment(project) | clock.environment,
            capture_output=True,
            text=True,
        )
        took = time.monotonic() - start
        assert process.wait(300) == 0
    assert second.returncode and "lock" in second.stderr and "Traceback" not in second.stderr
    assert took < 120
    assert results(project, "generator") == expected


def test_an_image_that_is_replaced_by_one_with_an_older_time_is_noticed(trained: Path, tmp_path: Path) -> None:
    """The same size, written after the clock went back."""
    project = scratch.copy(trained, tmp_path / "replaced")
    assert "shards" in unchanged(project, STAGES)
    image = next((project / "pictures" / "train").rglob("*.png"))
    content, before = image.read_bytes(), image.stat()
    image.write_bytes(content[:-20] + bytes(8) + content[-12:])
    os.utime(image, ns=(before.st_atime_ns - HOUR * 10**9, before.st_mtime_ns - HOUR * 10**9))
    assert image.stat().st_size == before.st_size
    assert "shards" not in unchanged(project, STAGES)
    assert "shards" in scratch.run(project, "dvc", "status")


BAR = """
import time
from bigr.runtime.progress import Progress

with Progress("work", 30) as progress:
    for step in range(30):
        time.sleep(0.1)
        progress.advance()
"""


@pytest.mark.parametrize("seconds", [-HOUR, HOUR])
def test_a_bar_goes_on_and_counts_no_hour(clock: Clock, seconds: int) -> None:
    above, below = pty.openpty()
    termios.tcsetwinsize(below, (24, 100))
    with subprocess.Popen([sys.executable, "-c", BAR], env=os.environ | clock.environment, stderr=below) as process:
        os.close(below)
        shown, was_set = b"", False
        try:
            while part := os.read(above, 10_000):
                shown += part
                if not was_set and re.search(rb"[1-9]/30", shown):
                    was_set = True
                    clock.set(seconds)
        except OSError:  # its end
            pass
        os.close(above)
    assert process.returncode == 0 and was_set
    states = shown.decode().split("\r")
    done = [int(found[1]) for state in states if (found := re.search(r"(\d+)/30", state))]
    assert sum(9 < number < 30 for number in done) >= 3, states
    assert not re.search(r"-\d|59:|\d:\d\d:\d\d", shown.decode()), states
