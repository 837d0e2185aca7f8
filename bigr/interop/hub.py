"""Model folders in Hugging Face's convention: `from_pretrained`, `save_pretrained`, `push_to_hub` of the networks.

A source is a folder, or the id of a repository on the Hugging Face Hub ("name" or "owner/name"). Nothing is downloaded
unless `local_files_only=False`: a repository is read from huggingface_hub's local cache (extra `hub`).
"""

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from bigr.interop.folders import M, Model, fill_folder, load_model
from bigr.runtime.errors import BigrError
from bigr.runtime.extras import require

FILES = ("*.json", "*.safetensors")
"""What is downloaded of a repository: never a pickle."""


def from_pretrained(
    cls: type[M],
    source: Path | str,
    *,
    revision: str | None = None,
    cache_dir: Path | str | None = None,
    local_files_only: bool = True,
) -> M:
    """The network of class `cls` (`Tokenizer` or `BiGR`) in `source`, in eval mode, on the CPU.

    revision: a branch, tag or commit of the repository; cache_dir: in place of huggingface_hub's own. Raises
    `BigrError` where there is no such folder or repository, or it holds no such model.
    """
    return load_model(local_folder(source, revision, cache_dir, local_files_only), cls)


def save_pretrained(model: Model, folder: Path | str, tokenizer: str | None = None) -> None:
    """Write config.json and model.safetensors to `folder`, which is made where there is none; other files there stay.

    tokenizer: for a generator, the hash of its tokenizer (`bigr.interop.folders.model_hash`).
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    fill_folder(Path(folder), model.kind, model.config, model.state_dict(), tokenizer)


def push_to_hub(
    model: Model,
    repo_id: str,
    *,
    tokenizer: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Upload what `save_pretrained` writes to the repository, which is created where there is none.

    private, token: as in huggingface_hub; revision: a branch. Returns the address of the commit. Raises `BigrError`
    where the extra `hub` is missing or the upload fails.
    """
    return upload(lambda folder: save_pretrained(model, folder, tokenizer), repo_id, private, revision, token)


def local_folder(
    source: Path | str, revision: str | None, cache_dir: Path | str | None, local_files_only: bool
) -> Path:
    """The folder `source`; where there is none, the files of the repository of that id. Raises `BigrError`."""
    if Path(source).is_dir():
        return Path(source)
    name = str(source)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name, re.ASCII):
        raise BigrError(f"{name}: no such folder, and not the id of a repository on the Hugging Face Hub (owner/name)")
    _prepare(f"{name} is not a folder; a repository on the Hugging Face Hub")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    files = list(FILES)
    try:
        found = snapshot_download(
            name, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, allow_patterns=files
        )
    except LocalEntryNotFoundError:
        what = "local_files_only=False downloads it" if local_files_only else "the Hub cannot be reached"
        raise BigrError(f"{name}: no such folder, and no repository in huggingface_hub's cache; {what}") from None
    except Exception as error:  # also those of the HTTP library below, which differs from version to version
        raise BigrError(f"{name}: cannot be downloaded: {' '.join(str(error).split())}") from None
    return Path(str(found))


def upload(
    write: Callable[[Path], None], repo_id: str, private: bool | None, revision: str | None, token: str | None
) -> str:
    """Upload the files that `write` puts into a folder, as one commit; see `push_to_hub`."""
    _prepare("push_to_hub")
    import huggingface_hub

    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        write(folder)
        try:
            huggingface_hub.create_repo(repo_id, private=private, token=token, exist_ok=True)
            commit = huggingface_hub.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                token=token,
                commit_message="Upload a BiGR model",
            )
        except Exception as error:  # as above
            raise BigrError(f"{repo_id}: cannot be uploaded: {' '.join(str(error).split())}") from None
    return str(commit.commit_url)


def _prepare(what: str) -> None:
    require("hub", what)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # before the import, which reads it
