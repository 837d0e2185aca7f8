"""The published checkpoints: one table from their names to this project's, used in both directions.

Every tensor is taken, known to be superfluous, or an error. Source: docs/method.md, section 7.
"""

import re
from collections.abc import Mapping
from typing import Protocol, TypeVar

from torch import Tensor

from bigr.runtime.errors import BigrError

# Beginnings of names, theirs and ours; the first that fits counts.
TOKENIZER_NAMES = (
    ("ae.encoder.", "encoder."),
    ("ae.quantize.", "quantizer."),
    ("ae.generator.", "decoder."),
)
TOKENIZER_UNUSED = (
    r"ae\.generator\.logsigma\..*",  # a variance head that no published computation reads
    r"(?!ae\.).*",  # discriminator, perceptual loss
)
GENERATOR_NAMES = (
    ("cls_embedding.embedding_table.", "backbone.cls_embedding."),
    ("diffusion_pos_embed_learned", "backbone.position"),
    ("denoise_mlp.", "transcoder."),
    ("", "backbone."),
)
TRANSCODER, TRANSCODER_AGAIN = "denoise_mlp.", "diffusion_processor._denoise_fn."
"""The transcoder's two names: the files hold the same tensors under both."""
SCHEDULE = "diffusion_processor.scheduler."
"""Buffers, computed from T."""
SCHEDULE_TABLES = {"k_final": "k", "cumbeta": "k", "b_final": "b", "beta": "beta"}
"""Their names, and those of `BernoulliDiffusion`'s tables."""
GENERATOR_UNUSED = (re.escape(TRANSCODER_AGAIN) + ".*", re.escape(SCHEDULE) + ".*")


class Shaped(Protocol):
    """A tensor, in memory or in a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...


S = TypeVar("S", bound=Shaped)


def tokenizer_state(
    published: Mapping[str, S], expected: Mapping[str, Tensor], source: str = "published weights"
) -> dict[str, S]:
    """Published tokenizer tensors under this project's names, checked against the `expected` state dict's shapes.

    Raises `BigrError` naming `source` and the first tensor that is missing, unknown or of another shape.
    """
    return _rename(published, expected, TOKENIZER_NAMES, TOKENIZER_UNUSED, source)


def generator_state(
    published: Mapping[str, S], expected: Mapping[str, Tensor], source: str = "published weights"
) -> dict[str, S]:
    """Published generator tensors (the entry `ema`) under this project's names; errors as `tokenizer_state`."""
    return _rename(with_transcoder(published), expected, GENERATOR_NAMES, GENERATOR_UNUSED, source)


def with_transcoder(published: Mapping[str, S]) -> dict[str, S]:
    """A generator's tensors with the transcoder under its first name, also where the file has only the second."""
    if any(name.startswith(TRANSCODER) for name in published):
        return dict(published)
    return {_swap(name, TRANSCODER_AGAIN, TRANSCODER): tensor for name, tensor in published.items()}


def published_tokenizer(state: Mapping[str, S]) -> dict[str, S]:
    """A tokenizer's state dict under the published names: the inverse of `tokenizer_state`."""
    return {_theirs(name, TOKENIZER_NAMES): tensor for name, tensor in state.items()}


def published_generator(state: Mapping[str, S]) -> dict[str, S]:
    """A generator's state dict under the published names, the transcoder under both: inverse of `generator_state`."""
    first = {_theirs(name, GENERATOR_NAMES): tensor for name, tensor in state.items()}
    again = {_swap(name, TRANSCODER, TRANSCODER_AGAIN): t for name, t in first.items() if name.startswith(TRANSCODER)}
    return first | again


def _swap(name: str, old: str, new: str) -> str:
    return new + name.removeprefix(old) if name.startswith(old) else name


def _ours(name: str, names: tuple[tuple[str, str], ...]) -> str:
    return next((_swap(name, theirs, ours) for theirs, ours in names if name.startswith(theirs)), name)


def _theirs(name: str, names: tuple[tuple[str, str], ...]) -> str:
    return next((_swap(name, ours, theirs) for theirs, ours in names if name.startswith(ours)), name)


def _rename(
    published: Mapping[str, S],
    expected: Mapping[str, Tensor],
    names: tuple[tuple[str, str], ...],
    unused: tuple[str, ...],
    source: str,
) -> dict[str, S]:
    state: dict[str, S] = {}
    for name, tensor in published.items():
        if any(re.fullmatch(pattern, name) for pattern in unused):
            continue
        ours = _ours(name, names)
        if ours not in expected or _theirs(ours, names) != name:
            raise BigrError(f"{source}: tensor {name} has no place in this model; is the shape another?")
        if tuple(tensor.shape) != tuple(expected[ours].shape):
            raise BigrError(
                f"{source}: tensor {name} has shape {list(tensor.shape)}; this model needs {list(expected[ours].shape)}"
            )
        state[ours] = tensor
    if missing := sorted(expected.keys() - state.keys()):
        name = _theirs(missing[0], names)
        raise BigrError(f"{source}: tensor {name} is missing ({len(missing)} of {len(expected)} are)")
    return state
