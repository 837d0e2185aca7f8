"""Published checkpoints to this project's model folders, and back (docs/method.md, section 7). Both ways are exact.

Tensors are read and written one at a time; no model is built. Every input is checked before anything is written. The
header of an exported file also holds the model's shape, which an import uses.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigr.interop.belonging import check_published
from bigr.interop.folders import fill_folder, load_config, model_hash, tokenizer_of, write_model
from bigr.interop.published import weight_names
from bigr.interop.published.published_generator import read_generator
from bigr.interop.published.published_model import PublishedModel, expected_state
from bigr.interop.published.published_tokenizer import read_tokenizer
from bigr.interop.published.tensor_files import FileTensor, open_tensors
from bigr.models.autoencoder.tokenizer import Tokenizer, TokenizerConfig
from bigr.models.masked.diffusion import BernoulliDiffusion
from bigr.models.masked.generator import BiGR, BiGRConfig
from bigr.models.presets import PRESETS
from bigr.runtime.errors import BigrError
from bigr.runtime.files import StoredTensor, atomic_folder, atomic_path, fill_tensors

TOKENIZER_FILE, GENERATOR_FILE = "tokenizer.safetensors", "generator.safetensors"
_FOLDER_HOLDS = {"config.json", "model.safetensors"}


def import_tokenizer(
    path: Path, folder: Path, *, image_size: int | None = None, grid: int | None = None, force: bool = False
) -> PublishedModel:
    """Write the tokenizer of a published file to the model folder `folder`; see `read_tokenizer`.

    Raises `BigrError` where `folder` exists, unless it is a model folder and `force`, or cannot be written.
    """
    found = read_tokenizer(path, image_size=image_size, grid=grid)
    with _writing(folder):
        _refuse_folder(folder, force)
        write_model(folder, Tokenizer.kind, found.config, found.weights)
    return found


def import_generator(
    path: Path, folder: Path, *, heads: int | None = None, tokenizer: str | None = None, force: bool = False
) -> PublishedModel:
    """Write the generator of a published file to the model folder `folder`; see `read_generator`.

    tokenizer: the hash (`model_hash`) of the tokenizer that it goes with, where it is known. Errors as
    `import_tokenizer`.
    """
    found = read_generator(path, heads=heads)
    with _writing(folder):
        _refuse_folder(folder, force)
        write_model(folder, BiGR.kind, found.config, found.weights, tokenizer or found.tokenizer)
    return found


def import_pair(
    tokenizer: Path,
    generator: Path,
    folder: Path,
    *,
    image_size: int | None = None,
    heads: int | None = None,
    force: bool = False,
) -> tuple[PublishedModel, PublishedModel]:
    """Write `folder`/tokenizer and `folder`/bigr from two published files that go together.

    The arguments are those of `import_tokenizer` and `import_generator`. Raises `BigrError`, before anything is
    written, where the tokenizer's bits or grid are not the generator's. Neither folder appears before both are whole.
    """
    second = read_generator(generator, heads=heads)
    first = read_tokenizer(tokenizer, image_size=image_size, grid=second.config.grid)
    check_published(first, second)
    targets = folder / "tokenizer", folder / "bigr"
    with _writing(folder):
        for target in targets:
            _refuse_folder(target, force)
        with atomic_folder(targets[0]) as new_tokenizer, atomic_folder(targets[1]) as new_generator:
            fill_folder(new_tokenizer, Tokenizer.kind, first.config, first.weights)
            fill_folder(new_generator, BiGR.kind, second.config, second.weights, model_hash(new_tokenizer))
    return first, second


def export_tokenizer(folder: Path, path: Path, *, force: bool = False) -> None:
    """Write the tokenizer in the model folder `folder` to the safetensors file `path`, under the published names.

    Raises `BigrError` where the published code has no such model, where `path` exists, unless `force`, or cannot be
    written.
    """
    _export({path: _published_tokenizer(folder)}, force)


def export_generator(folder: Path, path: Path, *, force: bool = False) -> None:
    """Write the generator in the model folder `folder` to the safetensors file `path`, under the published names.

    The transcoder is written under both of its names, with the schedule's buffers. Errors as `export_tokenizer`.
    """
    _export({path: _published_generator(folder)}, force)


def export_pair(tokenizer: Path, generator: Path, folder: Path, *, force: bool = False) -> None:
    """Write two model folders to `folder`/tokenizer.safetensors and `folder`/generator.safetensors.

    Errors as `export_tokenizer`. Neither file appears before both are whole.
    """
    exported = {TOKENIZER_FILE: _published_tokenizer(tokenizer), GENERATOR_FILE: _published_generator(generator)}
    _export({folder / name: file for name, file in exported.items()}, force)


_Exported = tuple[Mapping[str, Tensor | StoredTensor], dict[str, str]]
"""The tensors of a file, and its header."""


def _published_tokenizer(folder: Path) -> _Exported:
    config = load_config(folder, Tokenizer)
    _refuse_unpublished(folder, "quantizer", config.quantizer, "bernoulli")
    return weight_names.published_tokenizer(_weights(folder, Tokenizer, config)), _header(Tokenizer.kind, config)


def _published_generator(folder: Path) -> _Exported:
    config = load_config(folder, BiGR)
    _refuse_unpublished(folder, "target", config.target, "flip")
    _refuse_unpublished(folder, "condition_rope", config.condition_rope, False)
    tensors: dict[str, Tensor | StoredTensor] = {**weight_names.published_generator(_weights(folder, BiGR, config))}
    diffusion = BernoulliDiffusion(config.diffusion_steps)
    for theirs, ours in weight_names.SCHEDULE_TABLES.items():
        tensors[weight_names.SCHEDULE + theirs] = getattr(diffusion, ours)
    return tensors, _header(BiGR.kind, config, tokenizer_of(folder))


def _export(files: Mapping[Path, _Exported], force: bool) -> None:
    for path in files:
        with _writing(path):
            _refuse_existing(path, force)
    with ExitStack() as stack:
        for path, (tensors, header) in files.items():
            stack.enter_context(_writing(path))
            fill_tensors(stack.enter_context(atomic_path(path)), tensors, header)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say in one line why `path` cannot be written: a file in the way, no permission, a full disk."""
    try:
        yield
    except OSError as error:
        raise BigrError(f"{path}: cannot be written: {error.strerror or error}") from None


def _refuse_existing(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise BigrError(f"{path} exists already; --force replaces it")


def _refuse_folder(folder: Path, force: bool) -> None:
    """As `_refuse_existing`; a folder with other files is never replaced."""
    _refuse_existing(folder, force)
    if folder.exists() and (others := sorted({path.name for path in folder.iterdir()} - _FOLDER_HOLDS)):
        raise BigrError(f"{folder} holds {others[0]}, which is no part of a model; --force will not remove it")


def _header(kind: str, config: Any, tokenizer: str | None = None) -> dict[str, str]:
    header = {"format": "pt", "kind": kind, "config": json.dumps(asdict(config), sort_keys=True)}
    return header if tokenizer is None else {**header, "tokenizer": tokenizer}


def _weights(folder: Path, cls: type[Any], config: Any) -> dict[str, FileTensor]:
    file = open_tensors(folder / "model.safetensors")
    expected = {name: tuple(tensor.shape) for name, tensor in expected_state(cls, config, file.path).items()}
    given = {name: tensor.shape for name, tensor in file.tensors.items()}
    if unfit := sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name)):
        raise BigrError(f"{file.path}: tensor {unfit[0]} is not as config.json says")
    return dict(file.tensors)


def _refuse_unpublished(folder: Path, field: str, value: Any, published_value: Any) -> None:
    if value != published_value:
        raise BigrError(
            f"{folder}: its {field} is {json.dumps(value)}; the published code computes "
            f"{json.dumps(published_value)} with these weights, so that they cannot be exported to it"
        )


def title(found: PublishedModel) -> str:
    """A description in one line: "L-d24, 256²: 336,346,136 parameters"."""
    numbers = sum(torch.Size(tensor.shape).numel() for tensor in found.weights.values())
    return f"{_name(found.config)}: {numbers:,} parameters"


def _name(config: TokenizerConfig | BiGRConfig) -> str:
    if isinstance(config, TokenizerConfig):
        return f"tokenizer d{config.code_bits}, {config.image_size}² in {config.grid}×{config.grid} tokens"
    for name, preset in PRESETS.items():
        if preset == replace(
            config,
            code_bits=preset.code_bits,
            dropout=preset.dropout,
            init_std=preset.init_std,
            position_std=preset.position_std,
        ):
            return f"{name.split('-')[0]}-d{config.code_bits}, {16 * config.grid}²"
    return (
        f"generator d{config.code_bits}, {config.grid}×{config.grid} tokens, {config.layers} layers "
        f"of {config.dim} in {config.heads} heads"
    )
