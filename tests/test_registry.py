"""The registry and what it serves: no pickle, nothing twice, and the images that the stage `samples` draws."""

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
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
from PIL import Image

import bigr
from bigr.context import Context
from bigr.errors import BigrError
from bigr.files import write_json
from bigr.interop.standardisation import FeatureStatistics, save_statistics
from bigr.stages import samples
from bigr.tracking.package import served_config
from bigr.tracking.registry import CHALLENGER, CHAMPION, NAME, Candidate, Registry, Version
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
    "bigr/evaluation/probe.py": "5",
}


def settings(**changes: Any) -> Any:
    own = {"count": COUNT, "batch_size": 4, "iterations": 4, "diffusion_steps": 4, "guidance_scale": 2.0}
    return worlds.settings(**{f"samples__{name}": value for name, value in own.items()} | changes)


def make_project(root: Path) -> Candidate:
    """A project with models, samples and figures, as a pipeline leaves it."""
    worlds.write_models(root, classes=CLASSES)
    write_json(root / "data/shards/index.json", {"image_size": 8, "classes": ["a", "b", "c"], "splits": {}})
    samples.run(settings(), Context(root))
    features = torch.randn(9, 2, 32, generator=torch.Generator().manual_seed(0))
    statistics = replace(FeatureStatistics.of(features), best_layer=2)
    save_statistics(root / "models/features", statistics, root / "models/bigr")
    write_json(root / "outputs/metrics.json", FIGURES)
    write_json(root / "outputs/instrument.json", {"extractor": {"name": "classifier", "hash": "6"}})
    return Candidate(root, settings(), HASHES)


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
    assert labels["tensor-spec"] == {"dtype": "int64", "shape": (-1,)}
    params = {param["name"]: param["default"] for param in signature.params.to_dict()}
    assert params == {"seed": 0, "iterations": 4, "diffusion_steps": 4, "guidance_scale": 2.0}


def test_requirements_can_be_installed_from_any_index(package: Path) -> None:
    lines = (package / "requirements.txt").read_text().split()
    assert "+" not in "".join(lines) and all("==" in line for line in lines)
    assert {"torch", "safetensors", "mlflow"} <= {line.split("==")[0] for line in lines}


def test_a_version_names_hashes_figures_and_the_run_that_made_it(
    registry: Registry, version: Version, candidate: Candidate, run_id: str
) -> None:
    found = registry.client.get_model_version(NAME, str(version.number))
    recorded = {path: md5 for path, md5 in HASHES.items() if not path.endswith(".py")}
    assert {key.removeprefix("dvc."): value for key, value in found.tags.items() if key.startswith("dvc.")} == recorded
    assert found.run_id == run_id
    expected = {"samples.fd_classifier": 5.0, "samples.label_agreement": 0.9, "probe.best_top1": 0.8}
    assert registry.figures(version, candidate.instrument) == expected
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
        {"seed": 1},
        {"run__precision": "bfloat16"},
        {"generator__use_labels": False, "samples__guidance_scale": 1.0},
    ],
    ids=str,
)
def test_whatever_the_package_serves_with_makes_another_version(candidate: Candidate, changes: dict[str, Any]) -> None:
    served = [served_config(chosen, ["a", "b", "c"]) for chosen in (candidate.settings, settings(**changes))]
    assert served[0] != served[1]
    assert replace(candidate, settings=settings(**changes)).identity != candidate.identity


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
        {"hashes": HASHES | {"bigr/evaluation/probe.py": "new"}},
        {"settings": settings(evaluation__reference="val")},
        {"settings": settings(samples__count=COUNT + 1)},
    ],
    ids=["images", "code", "reference", "count"],
)
def test_figures_of_another_instrument_are_not_those_of_this_one(
    registry: Registry, version: Version, candidate: Candidate, changes: dict[str, Any]
) -> None:
    other = replace(candidate, **changes)
    assert other.instrument != candidate.instrument
    assert registry.figures(version, other.instrument) is None


def test_another_extractor_is_another_instrument(candidate: Candidate, tmp_path: Path) -> None:
    write_json(tmp_path / "outputs/instrument.json", {"extractor": {"name": "classifier", "hash": "7"}})
    assert replace(candidate, root=tmp_path).instrument != candidate.instrument


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
        ([0, 3], {}, "labels: 3 cannot be; allowed: 0 to 2, the model's classes"),
        ([-1], {}, "labels: -1 cannot be; allowed: 0 to 2"),
        ([0], {"seed": -1}, "seed: -1 cannot be; allowed: 0 or more"),
        ([0], {"iterations": 17}, "iterations: 17 cannot be; allowed: 1 to 16"),
        ([0], {"diffusion_steps": 1}, "diffusion_steps: 1 cannot be; allowed: 2 to 16"),
        ([0], {"guidance_scale": -0.5}, "guidance_scale: -0.5 cannot be; allowed: 0 or more"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    served: Any, labels: list[int], params: dict[str, Any], message: str
) -> None:
    from mlflow.exceptions import MlflowException

    with pytest.raises(MlflowException, match=message) as refused:
        served.predict(np.array(labels), params=params)
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
    words = ["models", "serve", "-m", "models:/bigr@champion", "--env-manager", "local", "-h", "127.0.0.1", "-p", port]
    environment = {**os.environ, **DEFAULTS, "MLFLOW_TRACKING_URI": registry.store.uri, "OMP_NUM_THREADS": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    log = tmp_path / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [str(shutil.which("mlflow", path=environment["PATH"])), *words],
            env=environment,
            stdout=file,
            stderr=file,
            cwd=worlds.ROOT,
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
        os.killpg(process.pid, 15)
        process.wait(30)


@pytest.mark.server
def test_the_champion_answers_labels_with_the_images_of_the_pipeline_and_wrong_ones_with_400(
    server: str, candidate: Candidate
) -> None:
    images, labels = drawn(candidate.root)
    status, answer = ask(server, {"inputs": labels.tolist(), "params": {"seed": 0}})
    assert (status, list(answer)) == (200, ["predictions"])
    assert np.array_equal(decoded(answer["predictions"]), images)
    status, answer = ask(server, {"inputs": [0, 7]})
    assert status == 400
    assert "labels: 7 cannot be; allowed: 0 to 2, the model's classes" in answer["message"]
    for wrong in ({"inputs": ["three"]}, {"inputs": [0], "params": {"seed": "x"}}, {"inputs": [[0, 1]]}, {}):
        status, answer = ask(server, wrong)
        assert status == 400 and answer["message"], wrong


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
