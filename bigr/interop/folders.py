"""A model on disk: a folder with config.json (its shape) and model.safetensors (its weights). Never a pickle."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from bigr.errors import BigrError
from bigr.files import atomic_folder, sha256_file, write_json, write_tensors
from bigr.models.bigr import BiGR, BiGRConfig
from bigr.models.tokenizer import Tokenizer, TokenizerConfig

KINDS: dict[str, tuple[type[Any], type[Any]]] = {"tokenizer": (Tokenizer, TokenizerConfig), "bigr": (BiGR, BiGRConfig)}


def save(folder: Path, model: Tokenizer | BiGR, tokenizer: str | None = None) -> None:
    """Write a model's shape and weights to `folder`, which appears whole or not at all.

    tokenizer: for a generator, the hash of the tokenizer on whose codes it was trained.
    """
    kind = next(name for name, (cls, _) in KINDS.items() if isinstance(model, cls))
    with atomic_folder(folder) as temporary:
        write_json(temporary / "config.json", {"kind": kind, **asdict(model.config), **_known(tokenizer)})
        write_tensors(temporary / "model.safetensors", model.state_dict(), {"format": "pt", "kind": kind})


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read a tokenizer, in eval mode, on the CPU. Raises `BigrError` naming the file that is missing or unfit."""
    return _load(folder, "tokenizer")


def load_bigr(folder: Path) -> BiGR:
    """Read a backbone with its transcoder, in eval mode, on the CPU. Errors as `load_tokenizer`."""
    return _load(folder, "bigr")


def tokenizer_of(folder: Path) -> str | None:
    """The hash of the tokenizer on whose codes the generator in `folder` was trained; None where it is not known."""
    found = json.loads((folder / "config.json").read_text()).get("tokenizer")
    return found if found is None else str(found)


def model_hash(folder: Path) -> str:
    """What tells this model from any other: SHA-256 over config.json and model.safetensors, as hex."""
    digests = [sha256_file(folder / name) for name in ("config.json", "model.safetensors")]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _known(tokenizer: str | None) -> dict[str, str]:
    return {} if tokenizer is None else {"tokenizer": tokenizer}


def _load(folder: Path, kind: str) -> Any:
    cls, config_class = KINDS[kind]
    try:
        values = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / "model.safetensors")
    except FileNotFoundError as error:
        raise BigrError(f"{error.filename}: no such file; {folder} is not a whole model folder") from None
    except (json.JSONDecodeError, SafetensorError) as error:
        raise BigrError(f"{folder}: damaged model folder: {error}") from None
    found = values.pop("kind", None)
    values.pop("tokenizer", None)
    if found != kind:
        raise BigrError(f"{folder} holds a model of kind {found!r}; a {kind!r} is needed here")
    try:
        config = config_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except TypeError as error:
        raise BigrError(f"{folder / 'config.json'}: not the shape of a {kind}: {error}") from None
    model = cls(config)
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    given = {name: tuple(t.shape) for name, t in weights.items()}
    if unfit := sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name)):
        name = unfit[0]
        raise BigrError(
            f"{folder / 'model.safetensors'}: tensor {name} has shape {given.get(name, 'none')}; "
            f"config.json asks for {expected.get(name, 'none')}"
        )
    model.load_state_dict(weights)
    return model.eval()
