"""Models load and save as Hugging Face's libraries do: from a folder, or from a repository that is in the cache."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch

import bigr
from bigr.imaging.model import ImageModel
from bigr.interop import hub
from bigr.interop.folders import load_model, model_hash, tokenizer_of
from bigr.interop.standardisation import FeatureStatistics
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.models.masked.generator import BiGR
from bigr.runtime.errors import BigrError
from tests.worlds import write_models

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FEW = {"iterations": 2, "diffusion_steps": 2}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request fails the test."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a request to the network")

    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.fixture
def model(tmp_path: Path) -> ImageModel:
    write_models(tmp_path)
    loaded = bigr.load(tmp_path / "models", device="cpu")
    classes = loaded.networks[1].config.num_classes
    loaded.classes = tuple(f"class {number}" for number in range(classes))
    width = loaded.networks[1].config.dim
    loaded.statistics = FeatureStatistics(
        torch.zeros(loaded.num_layers, width), torch.ones(loaded.num_layers, width), 1
    )
    return loaded


def in_cache(cache: Path, repo_id: str, write: Callable[[Path], None]) -> None:
    """A repository as huggingface_hub keeps it after a download."""
    place = cache / f"models--{repo_id.replace('/', '--')}"
    write(place / "snapshots" / COMMIT)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMIT)


def drawn(model: ImageModel) -> list[bytes]:
    return [image.tobytes() for image in model.generate([0, 1], **FEW)]


def refused(call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    with pytest.raises(BigrError) as raised:
        call(*arguments, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_saved_model_comes_back_with_its_settings(tmp_path: Path, model: ImageModel) -> None:
    model.save_pretrained(tmp_path / "saved")
    files = {path.relative_to(tmp_path / "saved").as_posix() for path in (tmp_path / "saved").rglob("*.*")}
    network = {"config.json", "model.safetensors"}
    assert files >= {f"{name}/{file}" for name in ("tokenizer", "bigr") for file in network} | {
        "generation_config.json"
    }
    assert tokenizer_of(tmp_path / "saved/bigr") == model_hash(tmp_path / "saved/tokenizer")
    for again in (ImageModel.from_pretrained(tmp_path / "saved", device="cpu"), bigr.load(tmp_path / "saved")):
        assert (again.sampling, again.editing, again.classes) == (model.sampling, model.editing, model.classes)
        assert (again.batch_size, again.knows_labels) == (model.batch_size, model.knows_labels)
        assert again.feature_layer == 1
        assert drawn(again) == drawn(model)


def test_saving_leaves_other_files_alone(tmp_path: Path, model: ImageModel) -> None:
    (tmp_path / "saved/bigr").mkdir(parents=True)
    others = [tmp_path / "saved/README.md", tmp_path / "saved/bigr/notes.txt"]
    for path in others:
        path.write_text("mine")
    model.save_pretrained(tmp_path / "saved")
    model.save_pretrained(tmp_path / "saved")
    assert [path.read_text() for path in others] == ["mine", "mine"]


def test_a_repository_is_read_from_the_cache_without_the_network(tmp_path: Path, model: ImageModel) -> None:
    in_cache(tmp_path / "cache", "someone/digits", model.save_pretrained)
    again = ImageModel.from_pretrained("someone/digits", cache_dir=tmp_path / "cache", device="cpu")
    assert drawn(again) == drawn(model)


def test_each_network_alone_is_read_from_a_folder_and_from_the_cache(tmp_path: Path, model: ImageModel) -> None:
    for network, cls in zip(model.networks, (Tokenizer, BiGR), strict=True):
        hub.save_pretrained(network, tmp_path / cls.kind)
        in_cache(
            tmp_path / "cache",
            f"someone/{cls.kind}",
            lambda place, network=network: hub.save_pretrained(network, place),
        )
        found = [
            hub.from_pretrained(cls, tmp_path / cls.kind),
            hub.from_pretrained(cls, f"someone/{cls.kind}", cache_dir=tmp_path / "cache"),
            load_model(tmp_path / cls.kind, cls),
        ]
        for again in found:
            assert again.config == network.config
            assert all(torch.equal(a, b) for a, b in zip(again.parameters(), network.parameters(), strict=True))


def test_what_is_not_there_is_one_line_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refused(ImageModel.from_pretrained, "someone/nothing", cache_dir=tmp_path)
    assert "someone/nothing: no such folder" in message and "local_files_only=False downloads it" in message
    assert "not the id of a repository" in refused(ImageModel.from_pretrained, tmp_path / "no/such/folder")
    (tmp_path / "empty").mkdir()
    assert "config.json: no such file" in refused(ImageModel.from_pretrained, tmp_path / "empty")
    monkeypatch.setattr("bigr.runtime.extras._missing", lambda extra: ["huggingface-hub"])
    assert "pip install 'bigr[hub]'" in refused(ImageModel.from_pretrained, "someone/nothing")


def test_a_repository_is_downloaded_only_where_that_is_asked_for(
    tmp_path: Path, model: ImageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def download(repo_id: str, **options: Any) -> str:
        asked.append(options)
        model.save_pretrained(tmp_path / "downloaded")
        return str(tmp_path / "downloaded")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    ImageModel.from_pretrained("someone/digits", revision="v1", local_files_only=False, device="cpu")
    assert asked[0]["local_files_only"] is False and asked[0]["revision"] == "v1"
    assert asked[0]["allow_patterns"] == ["*.json", "*.safetensors"]


def test_settings_that_do_not_fit_are_refused(tmp_path: Path, model: ImageModel) -> None:
    model.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved/generation_config.json"
    whole = path.read_text()
    path.write_text(whole.replace('"class 1",', ""))
    assert "generation_config.json names" in refused(ImageModel.from_pretrained, tmp_path / "saved")
    path.write_text(whole.replace('"editing"', '"editting"'))
    assert "not the settings of an ImageModel" in refused(ImageModel.from_pretrained, tmp_path / "saved")


def test_a_push_uploads_what_is_saved(tmp_path: Path, model: ImageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []
    uploaded: dict[str, bytes] = {}

    def create(repo_id: str, **options: Any) -> None:
        calls.append((repo_id, options))

    def upload(*, repo_id: str, folder_path: Path, **options: Any) -> SimpleNamespace:
        calls.append((repo_id, options))
        uploaded.update({p.relative_to(folder_path).as_posix(): p.read_bytes() for p in folder_path.rglob("*.*")})
        return SimpleNamespace(commit_url="https://hub/commit")

    monkeypatch.setattr(huggingface_hub, "create_repo", create)
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload)
    assert model.push_to_hub("someone/digits", private=True, revision="main", token="secret") == "https://hub/commit"
    model.save_pretrained(tmp_path / "saved")
    saved = {p.relative_to(tmp_path / "saved").as_posix(): p.read_bytes() for p in (tmp_path / "saved").rglob("*.*")}
    assert uploaded == saved
    assert [repo for repo, _ in calls] == ["someone/digits"] * 2
    assert calls[0][1] == {"private": True, "token": "secret", "exist_ok": True}
    assert calls[1][1]["revision"] == "main"


def test_a_push_that_is_refused_or_finds_no_hub_is_one_line(model: ImageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = huggingface_hub.errors.HfHubHTTPError("403", response=SimpleNamespace(headers={}, request=None))
    http_library_error = type(refusal).__mro__[1]  # what it raises where there is no network
    for error in (refusal, http_library_error("no route")):
        monkeypatch.setattr(huggingface_hub, "create_repo", Mock(side_effect=error))
        assert "someone/digits: cannot be uploaded" in refused(hub.push_to_hub, model.networks[0], "someone/digits")
