"""A model in a published file, before its weights are read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigr.interop.folders import M, config_from, without_weights
from bigr.interop.published.tensor_files import FileTensor, TensorFile
from bigr.interop.published.weight_names import Shaped
from bigr.runtime.errors import BigrError


@dataclass(frozen=True)
class PublishedModel:
    """A model in a published file, checked, its weights not yet read.

    weights: this project's names; tokenizer: the hash of the tokenizer that the generator was trained on, where known.
    """

    path: Path
    config: Any
    weights: Mapping[str, FileTensor]
    tokenizer: str | None = None

    def load(self, cls: type[M]) -> M:
        """The model, in eval mode, on the CPU."""
        model: Any = without_weights(cls, self.config)
        model.load_state_dict({name: tensor.read() for name, tensor in self.weights.items()}, assign=True)
        return model.eval()


def expected_state(cls: type[Any], config: Any, path: Path) -> dict[str, Tensor]:
    """The state dict of such a model, without memory. Raises `BigrError` where `config` describes none."""
    try:
        state: dict[str, Tensor] = without_weights(cls, config).state_dict()
    except (ValueError, TypeError, KeyError, RuntimeError, ZeroDivisionError) as error:
        raise BigrError(f"{path}: not the shape of a {cls.kind}: {' '.join(str(error).split())}") from None
    return state


def floats(path: Path, weights: dict[str, FileTensor]) -> dict[str, FileTensor]:
    """`weights`, unchanged. Raises `BigrError` where a tensor is not of a floating-point type."""
    for name, tensor in weights.items():
        if tensor.dtype != torch.float32:
            raise BigrError(f"{path}: the tensor of {name} must hold floating-point numbers, got {tensor.stored}")
    return weights


def recorded(file: TensorFile, cls: type[Any]) -> Any:
    """The shape in the header of an exported file; None where there is none of this kind."""
    if file.metadata.get("kind") != cls.kind or "config" not in file.metadata:
        return None
    try:
        return config_from(cls, json.loads(file.metadata["config"]))
    except (TypeError, ValueError, AttributeError) as error:
        raise BigrError(f"{file.path}: its header does not tell the shape of a {cls.kind}: {error}") from None


def shape_of(tensors: Mapping[str, Shaped], name: str, dimensions: int | None, source: str) -> tuple[int, ...]:
    """The shape of a tensor. Raises `BigrError` where it is missing or has another number of dimensions."""
    if name not in tensors:
        raise BigrError(f"{source}: tensor {name} is missing; is this the file that you mean?")
    shape = tuple(tensors[name].shape)
    if (dimensions is not None and len(shape) != dimensions) or 0 in shape:
        raise BigrError(f"{source}: tensor {name} has shape {list(shape)}; {dimensions} dimensions are expected")
    return shape


def refuse(tensors: Mapping[str, Shaped], source: str, kind: str, sign: str, expected: str) -> None:
    """Raise `BigrError` where the tensor `sign` is there, which only a `kind` has."""
    if sign in tensors:
        raise BigrError(f"{source}: a {kind} (it has {sign}), where {expected} is expected; were the files swapped?")
