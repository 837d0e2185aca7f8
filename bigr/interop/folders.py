"""A model on disk: a folder with config.json (its shape) and model.safetensors (its weights). Never a pickle.

Imports no model, so that a change of one model's code leaves stages that use another up to date.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from bigr.runtime.errors import BigrError
from bigr.runtime.files import StoredTensor, atomic_folder, sha256_file, write_json, write_tensors


class Model(Protocol):
    """A network that can be saved to a folder."""

    kind: ClassVar[str]
    config_class: ClassVar[type[Any]]
    config: Any

    def __init__(self, config: Any) -> None: ...

    def state_dict(self) -> dict[str, Tensor]: ...


M = TypeVar("M", bound=Model)

_TOKENIZER, _TEXT = "tokenizer", "text"
"""Keys of a generator's config.json: the hashes of what it was trained on."""


def save(folder: Path, model: Model, tokenizer: str | None = None, text: str | None = None) -> None:
    """Write a model's shape and weights to `folder`, which appears whole or not at all.

    tokenizer, text: for a generator, the hashes of the tokenizer and of the encoder of texts that it was trained on.
    """
    write_model(folder, model.kind, model.config, model.state_dict(), tokenizer, text)


def write_model(
    folder: Path,
    kind: str,
    config: Any,
    weights: Mapping[str, Tensor | StoredTensor],
    tokenizer: str | None = None,
    text: str | None = None,
) -> None:
    """As `save`, for a model that is not in memory: its kind, the dataclass of its shape, its state dict."""
    with atomic_folder(folder) as temporary:
        fill_folder(temporary, kind, config, weights, tokenizer, text)


def fill_folder(
    folder: Path,
    kind: str,
    config: Any,
    weights: Mapping[str, Tensor | StoredTensor],
    tokenizer: str | None = None,
    text: str | None = None,
) -> None:
    """Write them in place, to a folder that is there."""
    trained_on = {name: known for name, known in ((_TOKENIZER, tokenizer), (_TEXT, text)) if known is not None}
    shape = {"kind": kind, **asdict(config), **trained_on}
    write_json(folder / "config.json", shape)
    write_tensors(folder / "model.safetensors", weights, {"format": "pt", "kind": kind})


def load_model(folder: Path, cls: type[M]) -> M:
    """Read a model of class `cls`, in eval mode, on the CPU; its weights are mapped from the file, not copied.

    Raises `BigrError` naming the file or the tensor that is missing, damaged, of another kind or another shape.
    """
    config = load_config(folder, cls)
    try:
        weights = load_file(folder / "model.safetensors")
    except FileNotFoundError:
        raise BigrError(f"{folder / 'model.safetensors'}: no such file; {folder} is not a whole model folder") from None
    except (OSError, SafetensorError) as error:
        raise BigrError(f"{folder / 'model.safetensors'}: cannot be read: {error}") from None
    try:
        model: Any = without_weights(cls, config)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise BigrError(f"{folder / 'config.json'}: not the shape of a {cls.kind}: {error}") from None
    expected = model.state_dict()
    given_shapes = {name: tuple(t.shape) for name, t in weights.items()}
    shapes = {name: tuple(t.shape) for name, t in expected.items()}
    if unfit := sorted(name for name in shapes.keys() | weights.keys() if shapes.get(name) != given_shapes.get(name)):
        name = unfit[0]
        raise BigrError(
            f"{folder / 'model.safetensors'}: tensor {name} has shape {given_shapes.get(name, 'none')}; "
            f"config.json asks for {shapes.get(name, 'none')}"
        )
    model.load_state_dict({name: t.to(expected[name].dtype) for name, t in weights.items()}, assign=True)
    return model.eval()


def load_config(folder: Path, cls: type[Model]) -> Any:
    """The shape of the model in `folder`, as `cls.config_class`; errors as `load_model`."""
    values = _read_config(folder)
    found = values.pop("kind", None)
    if found != cls.kind:
        raise BigrError(f"{folder} holds a model of kind {found!r}; a {cls.kind!r} is needed here")
    for name in (_TOKENIZER, _TEXT):
        values.pop(name, None)
    try:
        return config_from(cls, values)
    except TypeError as error:
        raise BigrError(f"{folder / 'config.json'}: not the shape of a {cls.kind}: {error}") from None


def config_from(cls: type[Model], values: Mapping[str, Any]) -> Any:
    """The dataclass of a model's shape, from values as JSON gives them. Raises `TypeError` for unknown fields."""
    return cls.config_class(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})


def without_weights(cls: type[M], config: Any) -> M:
    """A model whose parameters are on the device `meta`, without memory; its buffers are computed."""

    def unfilled(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        return parameter if parameter is None else nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    # As each parameter is registered, so that initialisation has nothing to fill.
    hook = register_module_parameter_registration_hook(unfilled)  # type: ignore[arg-type]  # it may return one
    try:
        with _NothingDrawn():
            return cls(config)
    finally:
        hook.remove()


class _NothingDrawn(TorchFunctionMode):
    """Within it, filling a tensor on the device `meta` with random numbers is no call of torch at all.

    torch draws there through `torch._dynamo`, whose import takes longer than all else that is done to load a model.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in ("normal_", "uniform_", "trunc_normal_"):
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


def model_hash(folder: Path) -> str:
    """The identity of a model: SHA-256 over config.json and model.safetensors, as hex."""
    digests = [sha256_file(folder / name) for name in ("config.json", "model.safetensors")]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def tokenizer_of(folder: Path) -> str | None:
    """The hash of the tokenizer on whose codes the generator in `folder` was trained; None where it is not known."""
    return _trained_on(folder, _TOKENIZER)


def text_encoder_of(folder: Path) -> str | None:
    """The hash of the encoder of texts that the generator in `folder` was trained on; None where it is not known."""
    return _trained_on(folder, _TEXT)


def text_fields_of(folder: Path) -> dict[str, Any]:
    """What the shape of the generator in `folder` says of texts (`bigr.models.text_shape`)."""
    return {name: value for name, value in _read_config(folder).items() if name.startswith("text_")}


def _trained_on(folder: Path, name: str) -> str | None:
    found = _read_config(folder).get(name)
    return found if found is None else str(found)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BigrError(f"{path}: no such file; {folder} is not a whole model folder") from None
    except (OSError, ValueError) as error:
        raise BigrError(f"{path}: cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise BigrError(f"{path}: not the shape of a model")
    return values
