"""A stage executed by DVC on behalf of the flow: what it reports, how its end is told, what it leaves behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bigr import config
from bigr.pipeline.dvcfile import stages
from bigr.runtime.errors import BigrError
from flows import guard
from flows.execution import Outcome, StageFailed, StageKilled, execute, started_in
from tests import mini_project

ENVIRONMENT = {"BIGR_EXECUTION_NAME": "calm-heron"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mini_project.make(tmp_path_factory.mktemp("execution") / "project")


def run(project: Path, stage: str, *, force: bool = False, **environment: str) -> tuple[Outcome, list[str]]:
    lines: list[str] = []
    return execute(stage, project, {**ENVIRONMENT, **environment}, force, lines.append), lines


def set_fraction(project: Path, value: float) -> None:
    path = project / "params.yaml"
    text = path.read_text()
    start = text.index("val_fraction: ")
    path.write_text(text[:start] + f"val_fraction: {value} " + text[text.index("#", start) :])


def test_importing_the_flow_imports_no_torch() -> None:
    code = "import sys, flows.pipeline, flows.deploy; sys.exit('torch' in sys.modules or 'dvc' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=mini_project.ROOT, check=True)


def test_stages_are_taken_in_the_pipelines_order_and_an_unknown_one_is_named(project: Path) -> None:
    from flows.pipeline import choose

    graph = stages(project, config.read(project / "params.yaml"))
    assert choose(graph, None) == choose(graph, []) == mini_project.STAGES
    assert choose(graph, ["evaluation", "dataset"]) == ["dataset", "evaluation"]
    with pytest.raises(
        BigrError, match="stages: sample: no such stage; there are dataset, shards, samples, evaluation"
    ):
        choose(graph, ["dataset", "sample"])


def test_a_stage_runs_once_and_is_cached_after(project: Path) -> None:
    first, lines = run(project, "dataset")
    assert first.state == "ran" and first.seconds > 0
    assert "12:00:00 dataset of execution calm-heron" in lines
    assert run(project, "dataset")[0].state == "cached"
    assert run(project, "dataset", force=True)[0].state == "ran"


def test_a_password_in_what_a_stage_prints_is_masked(project: Path) -> None:
    said = run(project, "dataset", force=True, BIGR_EXECUTION_NAME="http://ada:secret@mlflow.example")[1]
    assert "12:00:00 dataset of execution http://***@mlflow.example" in said
    assert "secret" not in "".join(said)


def test_only_the_stage_asked_for_runs(project: Path) -> None:
    run(project, "dataset")
    run(project, "shards")
    assert not (project / "outputs").exists()


def test_a_failing_stage_fails_with_its_own_words(project: Path) -> None:
    run(project, "dataset")
    set_fraction(project, mini_project.BAD_FRACTION)
    try:
        with pytest.raises(StageFailed) as failure:
            run(project, "shards")
    finally:
        set_fraction(project, 0.1)
    assert str(failure.value) == f"shards: {mini_project.COMPLAINT}"


def test_a_refusal_of_dvc_is_passed_on(project: Path) -> None:
    with pytest.raises(StageFailed, match=r"nonsense: .*nonsense"):
        run(project, "nonsense")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_stage_is_told_from_a_failing_one(project: Path, tmp_path: Path, number: signal.Signals) -> None:
    run(project, "dataset")
    marker = tmp_path / "kill"
    marker.write_text(str(int(number)))
    with pytest.raises(StageKilled, match=f"shards: killed by {number.name}"):
        run(project, "shards", force=True, MINI_PROJECT_KILL=str(marker))


def test_a_stage_dies_with_a_flow_run_that_is_killed(project: Path, tmp_path: Path) -> None:
    run(project, "dataset")
    hold, pid = tmp_path / "hold", tmp_path / "hold.pid"
    hold.touch()
    code = (
        "from pathlib import Path; from flows.execution import execute;"
        f"execute('shards', Path({str(project)!r}), {{'MINI_PROJECT_HOLD': {str(hold)!r}}}, True, print)"
    )
    flow_run = subprocess.Popen([sys.executable, "-c", code], cwd=mini_project.ROOT, stdout=subprocess.DEVNULL)
    stage = mini_project.holder(pid)
    above = [process for process in stage.parents() if process.pid not in (flow_run.pid, os.getpid())]
    mine = [process for process in above if process in psutil.Process(flow_run.pid).children(recursive=True)]
    assert len(mine) >= 2  # the guard and DVC, and a shell or not
    flow_run.send_signal(signal.SIGKILL)
    flow_run.wait()
    _, alive = psutil.wait_procs([stage, *mine], timeout=20)
    assert not alive
    hold.unlink()
    assert run(project, "shards", force=True)[0].state == "ran"  # and no lock of DVC's is left


DEAF = (
    "import os, signal, sys, time; from pathlib import Path; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(60)"
)
SAVES = (
    "import signal, sys, time; from pathlib import Path; work = Path(sys.argv[1]);"
    "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(6), work.write_text('saved'), sys.exit(75)));"
    "print('started', flush=True); time.sleep(60)"
)


def deaf_and_guarded(number: Path) -> tuple["subprocess.Popen[bytes]", psutil.Process]:
    """An impatient guard, and a process below its command that heeds no request to end."""
    command = f"import subprocess, sys; subprocess.call([sys.executable, '-c', {DEAF!r}, {str(number)!r}])"
    impatient = "from flows import guard; guard.GRACE_S = 3; guard.main()"
    words = [sys.executable, "-c", impatient, sys.executable, "-c", command]
    guarded = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True, cwd=mini_project.ROOT)
    return guarded, mini_project.holder(number)


def test_what_does_not_heed_the_request_to_end_is_killed_though_its_parent_has_ended(tmp_path: Path) -> None:
    guarded, process = deaf_and_guarded(tmp_path / "pid")
    assert guarded.stdin is not None
    guarded.stdin.close()  # as when the flow run dies
    _, alive = psutil.wait_procs([process], timeout=30)
    for survivor in alive:
        survivor.kill()
    assert not alive
    guarded.wait(10)


def test_a_stage_that_is_asked_to_end_has_time_to_write_a_checkpoint(tmp_path: Path) -> None:
    work = tmp_path / "checkpoint"
    command = f"import subprocess, sys; subprocess.call([sys.executable, '-c', {SAVES!r}, {str(work)!r}])"
    with started_in(tmp_path, [sys.executable, "-c", command], {}) as process:
        assert process.stdout is not None and process.stdout.readline() == "started\n"
    assert work.read_text() == "saved"


def test_what_was_asked_to_end_is_killed_though_the_flow_run_is_killed_meanwhile(tmp_path: Path) -> None:
    """Prefect kills a cancelled flow run that waits longer than 30 seconds for its stage."""
    guarded, process = deaf_and_guarded(tmp_path / "pid")
    os.killpg(guarded.pid, signal.SIGTERM)  # as `end_session` does
    time.sleep(1)
    assert guarded.poll() is None and guarded.stdin is not None
    guarded.stdin.close()  # the flow run is killed
    _, alive = psutil.wait_procs([process], timeout=20)
    assert not alive
    guarded.wait(10)


def test_processes_with_sessions_of_their_own_are_killed_with_what_started_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchrun starts them."""
    monkeypatch.setattr(guard, "GRACE_S", 1.0)
    number = tmp_path / "pid"
    start = f"subprocess.call([sys.executable, '-c', {DEAF!r}, {str(number)!r}], start_new_session=True)"
    command = f"import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); {start}"
    with started_in(tmp_path, [sys.executable, "-c", command], {}):
        process = mini_project.holder(number)
    _, alive = psutil.wait_procs([process], timeout=5)
    assert not alive


def test_an_interrupted_flow_run_ends_its_stage(project: Path, tmp_path: Path) -> None:
    run(project, "dataset")
    hold = tmp_path / "hold"
    hold.touch()

    def stop(line: str) -> None:
        if line.startswith("12:00:00"):
            raise KeyboardInterrupt

    started = time.time()
    with pytest.raises(KeyboardInterrupt):
        execute("shards", project, {"MINI_PROJECT_HOLD": str(hold)}, True, stop)
    left = [p for p in psutil.Process().children(recursive=True) if p.create_time() >= started - 1]
    assert not left
