"""What happened is in MLflow: a run per executed stage under one per execution; where MLflow is down, work goes on."""

import contextlib
import getpass
import json
import os
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bigr import config, tracking
from bigr.pipeline import registration
from bigr.pipeline.lineage.runs import Runs
from bigr.pipeline.stage_table import STAGES
from bigr.tracking import executions, mailbox
from bigr.tracking.mailbox import Mailbox
from bigr.tracking.store import RUN_LIST, Store, code_digest, home, location, uploading
from tests.scratch import ROOT

SETTINGS = config.load(ROOT / "params.yaml")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with one store for all tests of this module."""
    root = tmp_path_factory.mktemp("tracked")
    (root / "outputs").mkdir()
    Image.new("RGB", (8, 8), "red").save(root / "outputs/samples.png")
    (root / "models/bigr").mkdir(parents=True)
    (root / "models/bigr/config.json").write_text("{}")
    return root


@pytest.fixture(autouse=True)
def own_execution(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test is an execution of its own, in the default store."""
    monkeypatch.setenv("BIGR_EXECUTION", request.node.name)
    monkeypatch.setenv("BIGR_EXECUTION_NAME", f"test {request.node.name}")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(mailbox, "_GATHER_S", 0.05)
    monkeypatch.setattr(mailbox, "_PAUSE_S", 0.05)


def execute(project: Path, stage: str, status: str = "FINISHED", **outputs: str) -> None:
    """A stage that reports a curve, a figure and a picture, and reads and writes what it is told."""
    tracker = tracking.Tracker(project, stage, SETTINGS, {"data/codes": "c0de.dir"}, "", STAGES[stage].shares)
    for step in (10, 20, 30):
        tracker.metrics({"loss": 1 / step}, step=step)
    tracker.metrics({"label agreement (%)": 97.5, "loss": 0.01})
    tracker.picture("samples", project / "outputs/samples.png")
    tracker.picture("progress", project / "outputs/samples.png", step=10)
    tracker.finish(status, {path.replace("__", "/"): md5 for path, md5 in outputs.items()})


def runs(project: Path, execution: str) -> tuple[Any, list[Any]]:
    """The parent run of an execution and its stages' runs, the newest first."""
    store = Store(project)
    (parent,) = store.runs(bigr__execution=execution)
    return parent, store.runs(mlflow__parentRunId=parent.info.run_id)


def files(project: Path, run: Any, folder: str) -> list[str]:
    """The files of a run in one folder."""
    return [file.path for file in Store(project).client.list_artifacts(run.info.run_id, folder)]


def test_a_stage_is_a_run_with_settings_curves_figures_pictures_and_hashes(
    project: Path, request: pytest.FixtureRequest
) -> None:
    execute(project, "transcoder", models__bigr="b1g4.dir")
    parent, (run,) = runs(project, request.node.name)
    assert (run.info.run_name, run.info.status) == ("transcoder", "FINISHED")
    assert run.data.params["transcoder.steps"] == str(SETTINGS.transcoder.steps)
    assert run.data.params["seed"] == "0"
    assert run.data.params["run.precision"] == "float32"
    assert not [key for key in run.data.params if key.startswith("generator.")]
    curve = Store(project).client.get_metric_history(run.info.run_id, "loss")
    points = [(point.step, point.value) for point in sorted(curve, key=lambda point: point.timestamp)]
    assert points == [(10, 1 / 10), (20, 1 / 20), (30, 1 / 30), (30, 0.01)]
    assert run.data.metrics == {"loss": 0.01, "label agreement ___": 97.5}
    assert files(project, run, "pictures") == ["pictures/samples.png"]
    assert any(path.startswith("images/progress+step+10+") for path in files(project, run, "images"))
    assert files(project, run, "models/bigr") == ["models/bigr/config.json"]
    assert run.data.tags["dvc.dep.data/codes"] == "c0de.dir"
    assert run.data.tags["dvc.out.models/bigr"] == "b1g4.dir"
    assert (project / "mlflow.db").is_file()
    assert (project / "mlartifacts").is_dir()
    assert parent.info.run_name == f"test {request.node.name}"


def test_the_stages_of_one_execution_share_a_parent_with_all_settings_and_the_results(
    project: Path, request: pytest.FixtureRequest
) -> None:
    execute(project, "samples")
    execute(project, "evaluation")
    parent, stages = runs(project, request.node.name)
    assert [run.info.run_name for run in stages] == ["evaluation", "samples"]
    assert parent.info.status == "FINISHED"
    assert parent.data.params["generator.heads"] == "4"
    assert parent.data.params["run.workers"] == "2"
    assert parent.data.metrics["label agreement ___"] == 97.5
    assert files(project, parent, "") == ["samples.png"]


def test_code_is_one_file_of_a_run_and_no_tags(project: Path, request: pytest.FixtureRequest) -> None:
    code = {f"bigr/{number}.py": str(number) * 32 for number in range(3)}
    tracking.Tracker(project, "codes", SETTINGS, {"data/shards": "s.dir", **code}).finish("FINISHED")
    _, (run,) = runs(project, request.node.name)
    assert [key for key in run.data.tags if key.startswith("dvc.dep.")] == ["dvc.dep.data/shards"]
    assert run.data.tags["bigr.code"] == code_digest(code) != code_digest({**code, "bigr/0.py": "9" * 32})
    (recorded,) = Runs(project).get(run.info.run_id)
    assert Runs(project).code(recorded) == code


def test_a_run_says_whose_it_is_what_it_does_and_how_good_the_model_is(
    project: Path, request: pytest.FixtureRequest
) -> None:
    tracker = tracking.Tracker(project, "evaluation", SETTINGS, {}, "Measures", STAGES["evaluation"].shares)
    tracker.metrics({"samples.label_agreement": 0.98765, "probe.best_top1": 0.75, "probe.best_layer": 5})
    tracker.finish("FINISHED")
    parent, (run,) = runs(project, request.node.name)
    assert run.data.tags["mlflow.note.content"] == "Measures"
    assert "label_agreement 0.9877, probe_top1 0.75" in parent.data.tags["mlflow.note.content"]
    assert {run.info.user_id, parent.info.user_id} == {getpass.getuser()}


def test_the_machine_is_measured_while_a_stage_runs(
    project: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.02")
    tracker = tracking.Tracker(project, "codes", SETTINGS, {})
    deadline = time.monotonic() + 120
    while not (tracker._run and Store(project).client.get_run(tracker._run).data.metrics):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    tracker.finish("FINISHED")
    _, (run,) = runs(project, request.node.name)
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 0


def test_mlflows_list_of_runs_opens_with_the_headline_metrics_as_columns(project: Path) -> None:
    execute(project, "shards")
    tags = Store(project).client.get_experiment(Store(project).experiment).tags
    key = dict(urllib.parse.parse_qsl(RUN_LIST))["viewStateShareKey"]
    columns = json.loads(tags[f"mlflow.sharedViewState.{key}"])["selectedColumns"]
    assert "metrics.`samples.label_agreement`" in columns


def test_inputs_of_any_name_are_recorded(project: Path, request: pytest.FixtureRequest) -> None:
    inputs = {"my images (2)/": "a.dir", "../weights/vgg=16.safetensors": "b", "/mnt/ü.pth": "c"}
    tracking.Tracker(project, "shards", SETTINGS, inputs).finish("FINISHED")
    _, (run,) = runs(project, request.node.name)
    tags = {key: value for key, value in run.data.tags.items() if key.startswith("dvc.dep.")}
    assert tags == {
        "dvc.dep.my images _2_": "a.dir",
        "dvc.dep.../weights/vgg_16.safetensors": "b",
        "dvc.dep./mnt/ü.pth": "c",
    }


def found(project: Path, condition: str) -> list[str]:
    """The names of the runs that MLflow's filter finds."""
    return sorted(str(run.info.run_name) for run in Store(project).search(condition))


def test_runs_are_found_by_the_data_and_models_that_they_read(project: Path, request: pytest.FixtureRequest) -> None:
    shards, weights = "5" * 32 + ".dir", "7" * 32 + ".dir"
    parent_name = f"test {request.node.name}"
    inputs = {"data/shards": shards, "bigr/stages/train_tokenizer.py": "c" * 32}
    tracking.Tracker(project, "tokenizer", SETTINGS, inputs).finish("FINISHED")
    inputs = {"data/shards": shards, "models/tokenizer": weights, "outputs/samples.npz": "9" * 32}
    tracking.Tracker(project, "evaluation", SETTINGS, inputs).finish("FINISHED")

    assert found(project, f"dataset.digest = '{shards}'") == ["evaluation", parent_name, "tokenizer"]
    assert found(project, f"datasets.name = 'models/tokenizer' and dataset.digest = '{weights}'") == ["evaluation"]
    assert found(project, f"dataset.digest = '{'c' * 32}'") == []  # code is not data
    by_context = f"dataset.digest = '{shards}' and dataset.context = "
    assert "tokenizer" in found(project, f"{by_context}'training'")
    assert found(project, f"{by_context}'evaluation'") == ["evaluation"]

    parent, (evaluation, tokenizer) = runs(project, request.node.name)
    read = {i.dataset.name: i.dataset.digest for i in evaluation.inputs.dataset_inputs}
    assert read == {"data/shards": shards, "models/tokenizer": weights, "outputs/samples.npz": "9" * 32}
    assert [i.dataset.name for i in tokenizer.inputs.dataset_inputs] == ["data/shards"]
    (above,) = parent.inputs.dataset_inputs  # what the pipeline read, not what it made on the way
    assert (above.dataset.name, above.dataset.digest) == ("data/shards", shards)
    assert json.loads(above.dataset.source)["uri"] == "data/shards"


def test_a_raw_folder_of_any_name_is_found_by_its_hash_also_from_the_execution(
    project: Path, request: pytest.FixtureRequest
) -> None:
    raw, long = "3" * 32 + ".dir", "x" * 600
    tracking.Tracker(project, "shards", SETTINGS, {"my images (2)/": raw, f"/{long}/vgg.pth": "4" * 32}).finish(
        "FINISHED"
    )
    names = ["shards", f"test {request.node.name}"]
    assert found(project, f"dataset.name = 'my images (2)' and dataset.digest = '{raw}'") == names
    assert found(project, f"dataset.digest = '{'4' * 32}'") == names
    _, (run,) = runs(project, request.node.name)
    assert run.info.status == "FINISHED"


def test_the_commit_is_recorded(tmp_path: Path) -> None:
    for words in ("init -q", "-c user.name=a -c user.email=b commit -q --allow-empty -m first"):
        subprocess.run(["git", *words.split()], cwd=tmp_path, check=True)
    tags = executions.git_tags(tmp_path)
    assert len(tags["mlflow.source.git.commit"]) == 40
    assert tags["git.dirty"] == "false"
    (tmp_path / "file").write_text("")
    subprocess.run(["git", "add", "file"], cwd=tmp_path, check=True)
    assert executions.git_tags(tmp_path)["git.dirty"] == "true"
    assert executions.git_tags(tmp_path / "file") == {}


def test_the_writer_of_an_output_is_found_by_its_hash(project: Path) -> None:
    execute(project, "shards", data__shards="5ha4d5.dir")
    writer = tracking.find_writer(project, "data/shards", "5ha4d5.dir")
    assert writer is not None
    assert Store(project).client.get_run(writer).info.run_name == "shards"
    assert tracking.find_writer(project, "data/shards", "other.dir") is None
    assert tracking.find_writer(project, "data/codes", "5ha4d5.dir") is None


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_a_stage_that_ends_badly_and_its_execution_say_so(
    project: Path, status: str, request: pytest.FixtureRequest
) -> None:
    execute(project, "codes", status)
    parent, (run,) = runs(project, request.node.name)
    assert (run.info.status, parent.info.status) == (status, status)


def test_an_execution_that_goes_on_after_a_failure_finishes(project: Path, request: pytest.FixtureRequest) -> None:
    execute(project, "codes", "FAILED")
    execute(project, "codes")
    parent, stages = runs(project, request.node.name)
    assert [run.info.status for run in stages] == ["FINISHED", "FAILED"]
    assert parent.info.status == "FINISHED"


def test_a_run_whose_process_vanished_is_marked_killed_by_the_next(
    project: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("BIGR_EXECUTION", "vanished")
    vanish = (
        "import os, sys, time\nfrom pathlib import Path\nfrom bigr import config\nfrom bigr.tracking import Tracker\n"
    )
    vanish += f"settings = config.load(Path({str(ROOT / 'params.yaml')!r}))\n"
    vanish += f"tracker = Tracker(Path({str(project)!r}), 'generator', settings, {{}})\n"
    vanish += "while not tracker._run: time.sleep(0.05)\nos._exit(9)\n"
    assert subprocess.run([sys.executable, "-c", vanish], cwd=ROOT).returncode == 9
    parent, (run,) = runs(project, "vanished")
    assert (run.info.status, parent.info.status) == ("RUNNING", "RUNNING")

    monkeypatch.setenv("BIGR_EXECUTION", "the next")
    execute(project, "generator")
    parent, (run,) = runs(project, "vanished")
    assert (run.info.status, parent.info.status) == ("KILLED", "KILLED")
    parent, (run,) = runs(project, "the next")
    assert (run.info.status, parent.info.status) == ("FINISHED", "FINISHED")


def test_a_live_process_is_not_taken_for_dead() -> None:
    assert not executions.is_dead(executions.process_tag())
    assert not executions.is_dead("another-machine:1:0.00")
    host, pid, _ = executions.process_tag().rsplit(":", 2)
    assert executions.is_dead(f"{host}:{pid}:1.00")


def test_a_run_does_not_end_before_its_start_though_the_clock_went_back(
    project: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    tracker = tracking.Tracker(project, "generator", SETTINGS, {})
    while not tracker._run:
        time.sleep(0.05)
    earlier = time.time() - 3600
    monkeypatch.setattr(time, "time", lambda: earlier)
    tracker.finish("FINISHED")
    parent, stages = runs(project, request.node.name)
    for run in (parent, *stages):
        assert run.info.end_time == run.info.start_time


def test_an_execution_is_the_dvc_process_above(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("BIGR_EXECUTION", "BIGR_EXECUTION_NAME", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    dvc = tmp_path / "dvc"
    ask = "from bigr.tracking import executions; e = executions.current(); print(e.id, '|', e.name, '|', e.command)"
    dvc.write_text(
        "import subprocess, sys\n"
        f"for _ in range(2): subprocess.run(['/bin/sh', '-c', ': ; exec \"$0\" -c \"$1\"', sys.executable, {ask!r}])\n"
    )
    done = subprocess.run([sys.executable, str(dvc), "repro"], cwd=ROOT, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == second
    assert f":{sys.executable}" not in first
    assert first.endswith("dvc repro")
    assert executions.current().id == executions.process_tag()


def test_records_of_an_experiments_folder_go_to_its_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert home(tmp_path / ".dvc/tmp/exps/one") == tmp_path
    assert location(tmp_path / ".dvc/tmp/exps/one") == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert location(tmp_path) == "http://127.0.0.1:5000"


def test_a_database_named_relatively_is_the_projects_wherever_a_stage_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / ".dvc/tmp/flows/one"
    clone.mkdir(parents=True)
    monkeypatch.chdir(clone)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///records.db")
    assert location(clone) == location(tmp_path) == f"sqlite:///{tmp_path}/records.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/elsewhere/records.db")
    assert location(clone) == f"sqlite:///{tmp_path}/elsewhere/records.db"


def test_a_training_that_resumes_reports_the_rows_of_its_past_and_its_final_figures_stay_last(
    project: Path, request: pytest.FixtureRequest
) -> None:
    tracker = tracking.Tracker(project, "generator", SETTINGS, {})
    for step in (60, 0, 20, 40, 80):
        tracker.metrics({"val_loss": 1 / (step + 1)}, step=step)
    tracker.metrics({"val_loss": 0.5})
    tracker.metrics({"val_loss": 0.25}, step=40)
    execution = tracker.finish("FINISHED")
    _, (run,) = runs(project, request.node.name)
    assert execution == run.data.tags["mlflow.parentRunId"]
    assert run.data.metrics == {"val_loss": 0.5}
    curve = Store(project).client.get_metric_history(run.info.run_id, "val_loss")
    assert sorted(point.step for point in curve) == [0, 20, 40, 40, 60, 80, 80]


def test_a_stage_goes_on_where_tracking_is_down_and_says_so_once(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody listens on port 9
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    execute(project, "generator")
    said = [record.getMessage() for record in caplog.records]
    assert len([line for line in said if "does not answer; work goes on" in line]) == 1
    assert said[-1].startswith("MLflow (http://127.0.0.1:9): ")
    assert said[-1].endswith("records did not reach it")


def test_a_server_that_stores_a_model_for_longer_than_it_may_take_to_answer_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

    class Slow(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(3)
            with contextlib.suppress(OSError):
                self.send_response(200)
                self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    place = HttpArtifactRepository(f"http://127.0.0.1:{server.server_port}/api/2.0/mlflow-artifacts/artifacts/1")
    with pytest.raises(MlflowException, match="timeout"):
        place.log_artifacts(str(tmp_path))
    with uploading(tmp_path):
        place.log_artifacts(str(tmp_path))
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "1"
    server.shutdown()


@pytest.mark.parametrize(("own", "seconds"), [(None, 2060), ("300", 300)])
def test_a_large_model_has_time_by_its_size_or_as_long_as_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None, seconds: int
) -> None:
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(10_000_000_000)
    if own:
        monkeypatch.setenv("MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT", own)
    with uploading(tmp_path):
        assert int(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]) == seconds


def test_a_model_is_not_registered_where_tracking_is_down_and_its_server_is_not_waited_for(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    execution = tracking.Tracker(project, "evaluation", SETTINGS, {}).finish("FINISHED")
    assert execution == ""
    monkeypatch.setattr(registration, "Store", lambda root: pytest.fail("MLflow was asked again"))
    registration.register_finished(project, SETTINGS, {"models/bigr": "1.dir"}, execution)
    assert "not registered" in caplog.text and "`bigr promote` will try again" in caplog.text


class Receiver:
    """Takes points and calls, or refuses them."""

    def __init__(self) -> None:
        self.points: list[list[int]] = []
        self.failure: Exception | None = None
        self.tried = threading.Event()

    def deliver(self, points: list[int]) -> None:
        """What a mailbox calls."""
        self.tried.set()
        if self.failure is not None:
            raise self.failure
        self.points.append(points)

    def refuse(self, failure: Exception) -> None:
        """Fail from now on."""
        self.tried.clear()
        self.failure = failure


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """One receiver, which answers."""
    yield Receiver()


def post(receiver: Receiver) -> Mailbox:
    """A mailbox to the receiver that takes ValueError for final."""
    return Mailbox("it", receiver.deliver, lambda error: isinstance(error, ValueError))


def test_points_arrive_in_order_and_together(receiver: Receiver) -> None:
    box, order = post(receiver), []
    for i in range(2500):
        box.point(i)
    box.call(lambda: order.append(len(receiver.points)))
    box.point(2500)
    box.close(lambda: order.append(len(receiver.points)))
    assert [point for points in receiver.points for point in points] == list(range(2501))
    assert max(map(len, receiver.points)) <= 1000
    assert order == [len(receiver.points) - 1, len(receiver.points)]


def test_points_posted_while_the_receiver_is_down_arrive_when_it_answers_again(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.refuse(ConnectionError("refused"))
    box = post(receiver)
    box.point(1)
    assert receiver.tried.wait(10)
    box.point(2)
    receiver.failure = None
    box.close(lambda: None)
    assert [point for points in receiver.points for point in points] == [1, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "it does not answer; work goes on, and its records wait: refused",
        "it answers again",
    ]


def test_closing_gives_up_on_a_receiver_that_stays_down(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    receiver.refuse(ConnectionError("refused"))
    box = post(receiver)
    box.point(1)
    box.close(lambda: None)
    assert caplog.records[-1].getMessage() == "it: 2 records did not reach it"


def test_a_refused_record_is_dropped_and_named_and_the_rest_arrives(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.refuse(ValueError("no such metric"))
    box = post(receiver)
    box.point(1)
    assert receiver.tried.wait(10)
    box.call(lambda: setattr(receiver, "failure", None))
    box.point(2)
    box.close(lambda: None)
    assert receiver.points == [[2]]
    assert caplog.records[0].getMessage() == "it refused a record: no such metric"


def test_posting_does_not_wait_for_a_receiver_that_hangs(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(mailbox, "_LIMIT", 100)
    box = post(receiver)
    box.call(lambda: release.wait(60) and None)
    while box._queue and not release.is_set() and len(box._queue) < 100:
        box.point(0)
    box.point(1)  # one more than there is room for
    assert box._lost == 1
    release.set()
    box.close(lambda: None)
    time.sleep(0)
    assert sum(map(len, receiver.points)) == 99


def test_pictures_that_wait_are_bounded_by_their_bytes_and_what_is_dropped_is_said_once(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mailbox, "_LIMIT_BYTES", 100)
    receiver.refuse(ConnectionError("refused"))
    box, drawn = post(receiver), []
    box.point(0)
    assert receiver.tried.wait(10)
    for number in range(5):
        box.call(lambda number=number: drawn.append(number), 40)  # type: ignore[misc]
    box.point(1)  # takes no such room
    receiver.failure = None
    end = time.monotonic() + 10
    while box._queue and time.monotonic() < end:
        time.sleep(0.01)
    box.call(lambda: drawn.append(5), 40)
    box.close(lambda: None)
    assert drawn == [0, 1, 5] and box._bytes == 0
    said = [record.getMessage() for record in caplog.records]
    assert said.count("it: the queue of records is full; further ones are dropped") == 1
    assert said[-1] == "it: 3 records did not reach it"
