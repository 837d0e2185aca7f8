"""The registry and what it serves: no pickle, nothing twice, and the images that the stage `samples` draws."""

import base64
import http.client
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

import bigr
from bigr.interop.standardisation import FeatureStatistics, save_statistics
from bigr.runtime.context import Context
from bigr.runtime.errors import BigrError
from bigr.runtime.files import write_json
from bigr.stages import draw_samples
from bigr.tracking.registry import scoring_server
from bigr.tracking.registry.package import params_of
from bigr.tracking.registry.served import ADJUSTABLE
from bigr.tracking.registry.served_record import ServedRecord
from bigr.tracking.registry.versions import CHALLENGER, CHAMPION, NAME, Candidate, Registry, Version
from bigr.tracking.store import DEFAULTS, Store
from tests import worlds

CLASSES, COUNT = 3, 9
FIGURES = {
    "samples": {"fd_classifier": 5.0, "label_agreement": 0.9},
    "probe": {"best_top1": 0.8, "worst": float("nan")},
}
HASHES = {
    "models/tokenizer": "1.dir",
    "models/bigr": "2.dir",
    "data/shards": "3.dir",
    "outputs/metrics.json": "4",
}
MEASURING = {"bigr/evaluation/representation/linear_probe.py": "5"}


def settings(**changes: Any) -> Any:
    own = {"count": COUNT, "batch_size": 4, "iterations": 4, "diffusion_steps": 4, "guidance_scale": 2.0}
    sampler = {f"samples__{name}": value for name, value in own.items()}
    return worlds.settings(**sampler | {"serving__max_images": 10} | changes)


def make_project(root: Path) -> Candidate:
    """A project with models, samples and figures, as a pipeline leaves it."""
    worlds.write_models(root, classes=CLASSES)
    write_json(root / "data/shards/index.json", {"image_size": 8, "classes": ["a", "b", "c"], "splits": {}})
    draw_samples.run(settings(), Context(root))
    features = torch.randn(9, 2, 32, generator=torch.Generator().manual_seed(0))
    statistics = replace(FeatureStatistics.of(features), best_layer=2)
    save_statistics(root / "models/features", statistics, root / "models/bigr")
    write_json(root / "outputs/metrics.json", FIGURES)
    write_json(root / "outputs/protocol.json", {"extractor": {"name": "classifier", "hash": "6"}})
    return Candidate(root, settings(), HASHES, MEASURING)


@pytest.fixture(scope="module")
def candidate(tmp_path_factory: pytest.TempPathFactory) -> Candidate:
    return make_project(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def registry(candidate: Candidate) -> Iterator[Registry]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "BIGR_EXECUTION"):
            patch.delenv(name, raising=False)
        yield Registry(Store(candidate.root))


@pytest.fixture(scope="module")
def run_id(registry: Registry) -> str:
    return str(registry.client.create_run(registry.store.experiment, run_name="pipeline").info.run_id)


@pytest.fixture(scope="module")
def version(registry: Registry, candidate: Candidate, run_id: str) -> Version:
    return registry.register(candidate, run_id)


@pytest.fixture(scope="module")
def package(registry: Registry, version: Version, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return registry.fetch(version, tmp_path_factory.mktemp("package"))


def decoded(pngs: list[str]) -> np.ndarray:
    """PNG files in base64 → uint8 [n, H, W, 3]."""
    files = [base64.b64decode(png, validate=True) for png in pngs]
    assert all(file.startswith(b"\x89PNG") for file in files)
    return np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])


def drawn(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """The images and the labels that the stage `samples` wrote."""
    with np.load(root / "outputs/samples.npz") as file:
        return file["arr_0"], file["arr_1"]


def test_a_version_is_weights_code_signature_and_example_and_no_pickle(package: Path) -> None:
    files = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.is_file()}
    weights = {
        f"artifacts/{name}/{file}" for name in ("tokenizer", "bigr") for file in ("config.json", "model.safetensors")
    }
    assert weights | {"served.py", "MLmodel", "requirements.txt", "input_example.json", "samples.png"} <= files
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".pth", ".bin"))]
    assert json.loads((package / "input_example.json").read_text()) == [0, 1]
    from mlflow.models import Model

    signature = Model.load(str(package)).signature
    (labels,) = signature.inputs.to_dict()
    assert labels["name"] == "labels" and labels["tensor-spec"]["shape"] == (-1,)
    params = {param["name"]: param["default"] for param in signature.params.to_dict()}
    assert params == {"seed": 0, "iterations": 4, "diffusion_steps": 4, "guidance_scale": 2.0, "preset": None}


def test_requirements_can_be_installed_from_any_index(package: Path) -> None:
    lines = (package / "requirements.txt").read_text().split()
    assert "+" not in "".join(lines) and all("==" in line for line in lines)
    assert {"torch", "safetensors", "mlflow"} <= {line.split("==")[0] for line in lines}


def test_a_version_names_hashes_figures_and_the_run_that_made_it(
    registry: Registry, version: Version, candidate: Candidate, run_id: str
) -> None:
    found = registry.client.get_model_version(NAME, str(version.number))
    assert {key.removeprefix("dvc."): value for key, value in found.tags.items() if key.startswith("dvc.")} == HASHES
    assert found.run_id == run_id
    assert "label_agreement 0.9, probe_top1 0.8" in found.description
    expected = {"samples.fd_classifier": 5.0, "samples.label_agreement": 0.9, "probe.best_top1": 0.8}
    assert registry.metrics(version, candidate.protocol) == expected
    logged = registry.client.get_logged_model(version.model_id)
    assert (logged.status, logged.source_run_id) == ("READY", run_id)
    assert logged.params["samples.guidance_scale"] == "2.0"
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": NAME, "version": version.number}]
    assert registry.client.get_model_version_by_alias(NAME, CHALLENGER).version == found.version
    assert registry.champion() is None


def test_the_same_model_is_registered_once_and_another_sampler_is_another_version(
    registry: Registry, version: Version, candidate: Candidate, run_id: str
) -> None:
    again = replace(candidate, hashes=HASHES | {"outputs/metrics.json": "of a second evaluation"})
    assert registry.register(again, run_id).number == version.number
    other = replace(candidate, settings=settings(samples__guidance_scale=3.0))
    second = registry.register(other, run_id)
    assert second.number == version.number + 1
    assert registry.client.get_model_version_by_alias(NAME, CHALLENGER).version == second.number
    other = replace(candidate, hashes=HASHES | {"models/bigr": "another.dir"})
    assert registry.register(other, run_id).number == version.number + 2


@pytest.mark.parametrize(
    "changes",
    [
        {"editing__guidance_scale": 7.0},
        {"editing__feather": 2.0},
        {"samples__temperature": 0.5},
        {"samples__batch_size": 2},
        {"serving__max_images": 9},
        {"seed": 1},
        {"run__precision": "bfloat16"},
        {"run__compile": "off"},
        {"generator__use_labels": False, "samples__guidance_scale": 1.0},
    ],
    ids=str,
)
def test_whatever_the_package_serves_with_makes_another_version(candidate: Candidate, changes: dict[str, Any]) -> None:
    served = [ServedRecord.of(chosen, ["a", "b", "c"]) for chosen in (candidate.settings, settings(**changes))]
    assert served[0] != served[1]
    assert replace(candidate, settings=settings(**changes)).identity != candidate.identity


def test_a_record_is_read_as_it_was_written_and_one_of_an_earlier_version_as_well() -> None:
    record = ServedRecord.of(settings(), ["a", "b", "c"])
    written = json.loads(json.dumps(record.write()))
    assert ServedRecord.read(written) == record
    earlier = {name: value for name, value in written.items() if name not in ("editing", "max_images", "compile")}
    read = ServedRecord.read(earlier)
    assert read.images == replace(record.images, editing=None) and read.max_images >= COUNT


def test_a_version_with_a_schedule_of_diffusion_steps_takes_one_number_or_two() -> None:
    from mlflow.models.utils import _enforce_params_schema

    scheduled = settings(samples__diffusion_steps=[8, 3])
    record = ServedRecord.of(scheduled, ["a", "b", "c"])
    assert ServedRecord.read(json.loads(json.dumps(record.write()))) == record
    for given, asked in (({}, [8, 3]), ({"diffusion_steps": [4]}, 4), ({"diffusion_steps": [4, 2]}, [4, 2])):
        params = _enforce_params_schema(given, params_of(scheduled))
        assert ADJUSTABLE["diffusion_steps"](params["diffusion_steps"]) == asked


@pytest.mark.parametrize(
    ("change", "message"),
    [({"classes": None}, "classes is missing"), ({"samples": {"iterations": 4, "swirl": 1}}, "lacks: swirl")],
)
def test_a_record_that_cannot_be_read_is_one_line(change: dict[str, Any], message: str) -> None:
    written = ServedRecord.of(settings(), ["a", "b", "c"]).write() | change
    with pytest.raises(BigrError, match=message):
        ServedRecord.read({name: value for name, value in written.items() if value is not None})


def test_other_names_of_the_classes_are_another_version(candidate: Candidate, tmp_path: Path) -> None:
    write_json(tmp_path / "data/shards/index.json", {"image_size": 8, "classes": ["a", "b", "x"], "splits": {}})
    assert replace(candidate, root=tmp_path).identity != candidate.identity


@pytest.mark.parametrize(
    "changes",
    [{"tokenizer__steps": 6}, {"run__workers": 1}, {"samples__count": COUNT + 1}, {"evaluation__reference": "val"}],
    ids=str,
)
def test_what_is_not_served_with_makes_no_other_version(candidate: Candidate, changes: dict[str, Any]) -> None:
    assert replace(candidate, settings=settings(**changes)).identity == candidate.identity


def test_what_was_measured_of_a_models_features_makes_no_other_version(
    registry: Registry, version: Version, candidate: Candidate
) -> None:
    measured = replace(candidate, hashes={**HASHES, "models/features": "9.dir"})
    assert registry.find(measured) == version


@pytest.mark.parametrize(
    "changes",
    [
        {"hashes": HASHES | {"data/shards": "new.dir"}},
        {"measuring": {"bigr/evaluation/representation/linear_probe.py": "new"}},
        {"settings": settings(evaluation__reference="val")},
        {"settings": settings(samples__count=COUNT + 1)},
    ],
    ids=["images", "code", "reference", "count"],
)
def test_metrics_of_another_protocol_are_not_those_of_this_one(
    registry: Registry, version: Version, candidate: Candidate, changes: dict[str, Any]
) -> None:
    other = replace(candidate, **changes)
    assert other.protocol != candidate.protocol
    assert registry.metrics(version, other.protocol) is None


def test_another_extractor_is_another_protocol(candidate: Candidate, tmp_path: Path) -> None:
    write_json(tmp_path / "outputs/protocol.json", {"extractor": {"name": "classifier", "hash": "7"}})
    assert replace(candidate, root=tmp_path).protocol != candidate.protocol


def test_a_version_that_someone_else_registered_is_named(registry: Registry, version: Version, run_id: str) -> None:
    source = registry.client.get_logged_model(version.model_id).artifact_location
    foreign = registry.client.create_model_version(NAME, source=source, run_id=run_id)
    registry.client.set_registered_model_alias(NAME, CHAMPION, foreign.version)
    try:
        with pytest.raises(BigrError, match=f"version {foreign.version} of bigr .* not registered by this project"):
            registry.champion()
    finally:
        registry.client.delete_registered_model_alias(NAME, CHAMPION)


def test_a_package_that_cannot_be_stored_leaves_no_version(
    registry: Registry, version: Version, candidate: Candidate, run_id: str, tmp_path: Path
) -> None:
    before = len(registry.client.search_model_versions(f"name = '{NAME}'"))
    (tmp_path / "data").symlink_to(candidate.root / "data")
    (tmp_path / "outputs").symlink_to(candidate.root / "outputs")
    with pytest.raises(Exception, match="models"):
        registry.register(replace(candidate, root=tmp_path, hashes=HASHES | {"models/bigr": "gone.dir"}), run_id)
    assert len(registry.client.search_model_versions(f"name = '{NAME}'")) == before


@pytest.fixture(scope="module")
def served(package: Path) -> Any:
    from mlflow.pyfunc import load_model

    return load_model(str(package))


def test_served_images_are_those_of_the_stage_samples(served: Any, candidate: Candidate) -> None:
    images, labels = drawn(candidate.root)
    assert np.array_equal(decoded(served.predict(labels, params={"seed": 0})), images)


def test_the_same_seed_gives_the_same_images_and_another_seed_others(served: Any) -> None:
    first, again, other = (decoded(served.predict(np.array([2, 1]), params={"seed": seed})) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_parameters_change_the_images(served: Any) -> None:
    plain = decoded(served.predict(np.array([2, 1])))
    for params in ({"guidance_scale": 9.0}, {"iterations": 16}, {"diffusion_steps": 16}):
        assert not np.array_equal(decoded(served.predict(np.array([2, 1]), params=params)), plain)


@pytest.mark.parametrize(
    ("labels", "params", "message"),
    [
        ([0, 3], {}, "labels must be whole numbers from 0 to 2, the model's classes, got 3"),
        ([-1], {}, "labels must be .* from 0 to 2, .* got -1"),
        ([10**30], {}, "labels must be .* from 0 to 2, .* got 1000"),
        ([3.5], {}, "labels must be .* got 3.5"),
        ([1.0], {}, "labels must be .* got 1.0"),
        ([True], {}, "labels must be .* got True"),
        (["three"], {}, "labels must be .* got 'three'"),
        (["1"], {}, "labels must be .* got '1'"),
        ([None], {}, "labels must be .* got None"),
        ([[0, 1]], {}, "labels must be a flat list of 1 to 10 numbers"),
        ([], {}, "labels must be a flat list of 1 to 10 numbers"),
        ([0] * 11, {}, "labels must be a flat list of 1 to 10 numbers, got 11"),
        ([0], {"seed": -1}, "seed must be a whole number from 0 to 9.*, got -1"),
        ([0], {"seed": 10**30}, "seed must be .* got 1000"),
        ([0], {"guidance_scale": float("nan")}, "guidance_scale must be .* got nan"),
        ([0], {"iterations": 17}, "iterations must be a whole number from 1 to 16, got 17"),
        ([0], {"diffusion_steps": 1}, "diffusion_steps must be a whole number from 2 to 16, got 1"),
        ([0], {"guidance_scale": -0.5}, "guidance_scale must be a number, 0 or more, got -0.5"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    served: Any, labels: list[Any], params: dict[str, Any], message: str
) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=message) as refused:
        served.predict(np.array(labels, dtype=object), params=params)
    assert refused.value.get_http_status_code() == 400


def ask(address: str, body: Any) -> tuple[int, Any]:
    """The status and the JSON that the server answers with."""
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.fixture
def server(registry: Registry, version: Version, candidate: Candidate, tmp_path: Path) -> Iterator[str]:
    """The address of the champion, served as docs/registry.md says."""
    registry.promote(version)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {**os.environ, **DEFAULTS, "MLFLOW_TRACKING_URI": registry.store.uri, "OMP_NUM_THREADS": "1"}
    log = tmp_path / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "bigr", "serve", "--port", port],
            env=environment,
            stdout=file,
            stderr=file,
            cwd=candidate.root,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5)
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(log.read_text()) from None
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.server
def test_the_champion_answers_labels_with_the_images_of_the_pipeline_and_wrong_ones_with_400(
    server: str, candidate: Candidate
) -> None:
    images, labels = drawn(candidate.root)
    status, answer = ask(server, {"inputs": labels.tolist(), "params": {"seed": 0}})
    assert (status, list(answer)) == (200, ["predictions"])
    assert np.array_equal(decoded(answer["predictions"]), images)
    for labels, shown in (
        ([0, 7], "7"),
        ([3.5], "3.5"),
        ([True], "True"),
        (["three"], "'three'"),
        ([10**30], "1000"),
    ):
        status, answer = ask(server, {"inputs": labels})
        assert status == 400, labels
        assert answer["message"].startswith("labels must be whole numbers from 0 to 2"), answer
        assert f"got {shown}" in answer["message"] and "\n" not in answer["message"]
    for several in ([], [[0, 1]], [0] * 11, 1):
        status, answer = ask(server, {"inputs": several})
        assert status == 400, several
        assert answer["message"].startswith("labels must be a flat list of 1 to 10 numbers"), answer
    for params in ({"seed": "x"}, {"seed": -1}, {"iterations": 17}, {"iterations": 2.5}, {"guidance_scale": -1.0}):
        status, answer = ask(server, {"inputs": [0], "params": params})
        assert status == 400 and next(iter(params)) in answer["message"], params
    for wrong, sentence in (
        ({}, 'the request must be an object with one list of labels, as {"inputs": [3, 7]}'),
        ([0], 'the request must be an object with one list of labels, as {"inputs": [3, 7]}'),
        ({"inputs": [0], "instances": [0]}, "the request must be an object with one list of labels"),
        ({"inputs": [0], "parms": {"seed": 1}}, "parms: no such key; there are inputs and params"),
        ({"inputs": [0], "params": [1]}, "params must be an object"),
        ({"inputs": [0], "params": {"guidance": 2.0}}, "params: guidance: no such parameter; there are seed, iter"),
        ({"inputs": [0] * 2**20}, "the request must have at most 1048576 bytes"),
    ):
        status, answer = ask(server, wrong)
        assert status in (400, 413) and answer["message"].startswith(sentence), answer


class Slow:
    """A server in a thread of this process whose model takes its time, and how often the model was asked."""

    def __init__(self, package: Path) -> None:
        from mlflow.pyfunc import load_model

        loaded = load_model(str(package))
        self.asked, self.begun = 0, threading.Event()
        loaded.unwrap_python_model().model.sampler.network.backbone.register_forward_hook(self.count)
        self.server = uvicorn.Server(
            uvicorn.Config(scoring_server.application(loaded), port=0, timeout_graceful_shutdown=1, log_level="error")
        )
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def count(self, *_: Any) -> None:
        self.asked += 1
        self.begun.set()
        time.sleep(0.2)

    def request(self) -> http.client.HTTPConnection:
        """A request of 16 iterations under way, its first one begun."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = json.dumps({"inputs": [0], "params": {"iterations": 16}})
        connection.request("POST", "/invocations", body, {"content-type": "application/json"})
        assert self.begun.wait(30)
        return connection

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)


@pytest.fixture
def slow(package: Path) -> Iterator[Slow]:
    server = Slow(package)
    yield server
    server.stop()


@pytest.mark.server
def test_work_ends_when_the_client_has_gone(slow: Slow) -> None:
    slow.request().close()
    time.sleep(1)
    asked = slow.asked
    time.sleep(1)
    assert slow.asked == asked < 16
    status, answer = ask(f"http://127.0.0.1:{slow.port}", {"inputs": [0], "params": {"iterations": 2}})
    assert (status, len(answer["predictions"])) == (200, 1)


@pytest.mark.server
def test_a_server_that_is_told_to_end_gives_up_what_it_draws(slow: Slow) -> None:
    connection = slow.request()
    slow.stop()
    assert not slow.thread.is_alive() and slow.asked < 16
    assert connection.getresponse().status == 503
    connection.close()


def test_a_version_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    for source, sentence in (
        ("models:/bigr@champion", "has no such version"),
        ("models", "models: no version there; name one as models:/bigr@champion"),
    ):
        with pytest.raises(BigrError, match=sentence):
            scoring_server.serve(source, tmp_path, "127.0.0.1", 0)


def test_a_version_of_other_code_is_one_line(package: Path, tmp_path: Path) -> None:
    old = shutil.copytree(package, tmp_path / "old")
    (old / "served.py").write_text("import bigr.no_longer_there\n")
    with pytest.raises(BigrError, match=r"does not run with this version of bigr .*no_longer_there.*registers .* anew"):
        scoring_server.serve(str(old), tmp_path, "127.0.0.1", 0)


def test_bigr_load_takes_the_champion_and_draws_what_the_pipeline_drew(
    registry: Registry, version: Version, candidate: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.promote(version)
    monkeypatch.chdir(candidate.root)
    images, labels = drawn(candidate.root)
    model = bigr.load("models:/bigr@champion")
    assert model.classes == ("a", "b", "c")
    own = bigr.load(candidate.root)
    assert model.feature_layer == 2 and own.statistics is not None and model.statistics is not None
    assert torch.equal(model.statistics.mean, own.statistics.mean)
    assert np.array_equal(np.stack([np.asarray(one) for one in model.generate(labels.tolist())]), images)
