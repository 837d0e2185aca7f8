"""The generator in a published file: its shape, from the names and shapes of its tensors (docs/method.md, sections 2, 3
and 7).
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from bigr.interop.pretrained import PretrainedSource
from bigr.interop.published.published_model import PublishedModel, expected_state, floats, recorded, refuse, shape_of
from bigr.interop.published.tensor_files import TensorFile, open_tensors
from bigr.interop.published.weight_names import (
    SCHEDULE,
    SCHEDULE_TABLES,
    TRANSCODER,
    TRANSCODER_AGAIN,
    Shaped,
    generator_state,
    with_transcoder,
)
from bigr.models.masked.diffusion import BernoulliDiffusion
from bigr.models.masked.generator import BiGR, BiGRConfig
from bigr.runtime.errors import BigrError

PUBLISHED_WIDTHS = (1024, 1280, 1536)
"""D of the published models."""
HEAD_WIDTH = 64
"""D / heads of all of them; tensors do not determine it."""


def read_generator(path: Path, *, heads: int | None = None, like: BiGRConfig | None = None) -> PublishedModel:
    """The generator in a published file: its entry `ema`, or tensors at the top. Errors as `read_tokenizer`.

    heads: attention heads, which tensors do not determine. None: those of `like`, the expected shape, where the width
    is not a published one; else 64 dimensions each, as in all published models.
    """
    file = open_tensors(path)
    config = recorded(file, BiGR)
    if config is None or heads not in (None, config.heads):
        config = generator_config(file.tensors, str(path), heads, like)
    weights = generator_state(file.tensors, expected_state(BiGR, config, path), str(path))
    found = PublishedModel(path, config, floats(path, weights), file.metadata.get("tokenizer"))
    _check_transcoders(file)
    _check_schedule(file, config)
    return found


def _check_transcoders(file: TensorFile) -> None:
    """Raise `BigrError` where the file holds the transcoder twice, as different tensors."""
    for name, tensor in file.tensors.items():
        twin = TRANSCODER + name.removeprefix(TRANSCODER_AGAIN)
        if name.startswith(TRANSCODER_AGAIN) and twin in file.tensors:
            other = file.tensors[twin]
            if tensor != other and (tensor.shape != other.shape or not torch.equal(tensor.read(), other.read())):
                raise BigrError(f"{file.path}: tensors {twin} and {name} differ; they are the same in published files")


def _check_schedule(file: TensorFile, config: BiGRConfig) -> None:
    """Raise `BigrError` where the file's buffers are not the schedule of docs/method.md, section 3."""
    diffusion = BernoulliDiffusion(config.diffusion_steps)
    for theirs, ours in SCHEDULE_TABLES.items():
        name = SCHEDULE + theirs
        if name not in file.tensors:
            continue
        table, expected = file.tensors[name].read(), getattr(diffusion, ours)
        if table.shape != expected.shape or not torch.allclose(table, expected, rtol=0, atol=1e-4):
            raise BigrError(f"{file.path}: tensor {name} is not the published schedule of {len(expected) - 1} steps")


def generator_config(
    tensors: Mapping[str, Shaped], source: str, heads: int | None = None, like: BiGRConfig | None = None
) -> BiGRConfig:
    """The shape of the generator in `tensors`, which have the published names.

    heads, like: as in `read_generator`. T is 256 where the file lacks the schedule's buffers. Raises `BigrError` naming
    `source` and the tensor that does not fit, or `--heads`.
    """
    refuse(tensors, source, "tokenizer", "ae.encoder.blocks.0.weight", "a generator")
    tensors = with_transcoder(tensors)
    dim, code_bits = shape_of(tensors, "tok_embeddings.weight", 2, source)
    ffn_dim = shape_of(tensors, "layers.0.feed_forward.w1.weight", 2, source)[0]
    tokens = shape_of(tensors, "diffusion_pos_embed_learned", 3, source)[1]
    if math.isqrt(tokens) ** 2 != tokens:
        raise BigrError(f"{source}: tensor diffusion_pos_embed_learned has {tokens} tokens, which make no square grid")
    return BiGRConfig(
        code_bits=code_bits,
        grid=math.isqrt(tokens),
        num_classes=shape_of(tensors, "cls_embedding.embedding_table.weight", 2, source)[0] - 1,
        dim=dim,
        layers=_count(tensors, "layers."),
        heads=_heads(dim, heads, like, source),
        ffn_multiple_of=_ffn_multiple_of(dim, ffn_dim, source),
        transcoder_dim=shape_of(tensors, f"{TRANSCODER}x_embedder.weight", 2, source)[0],
        transcoder_blocks=_count(tensors, f"{TRANSCODER}blocks."),
        diffusion_steps=_diffusion_steps(tensors, source),
    )


def _heads(dim: int, heads: int | None, like: BiGRConfig | None, source: str) -> int:
    if heads is None and like is not None and dim not in PUBLISHED_WIDTHS:
        return like.heads  # where `like` is not as wide, it is another model whatever its heads
    if heads is None:
        if dim % HEAD_WIDTH:
            raise BigrError(f"{source}: its tensors do not tell the number of attention heads; give --heads")
        return dim // HEAD_WIDTH
    if heads < 1 or dim % heads or dim // heads % 4:
        raise BigrError(f"--heads is {heads}; {source} is {dim} wide, which heads must divide into multiples of 4")
    return heads


def _ffn_multiple_of(dim: int, hidden: int, source: str) -> int:
    """What int(8D/3) was rounded up to a multiple of: 256 where that fits, else the largest power of two that does."""
    exact = int(8 * dim / 3)
    for multiple in (256, *(2**power for power in reversed(range(hidden.bit_length()))), hidden):
        if math.ceil(exact / multiple) * multiple == hidden:
            return multiple
    raise BigrError(
        f"{source}: tensor layers.0.feed_forward.w1.weight is {hidden} wide; at least {exact} is expected at D = {dim}"
    )


def _diffusion_steps(tensors: Mapping[str, Shaped], source: str) -> int:
    names = [SCHEDULE + table for table in SCHEDULE_TABLES]
    lengths = {name: tensors[name].shape for name in names if name in tensors}
    for name, shape in lengths.items():
        if len(shape) != 1 or shape != next(iter(lengths.values())) or shape[0] < 3:
            raise BigrError(f"{source}: tensor {name} has shape {list(shape)}; a table of T + 1 steps is expected")
    return next(iter(lengths.values()))[0] - 1 if lengths else 256


def _count(tensors: Mapping[str, Shaped], prefix: str) -> int:
    """How many blocks `prefix` has; gaps in the indices are found later, as missing tensors."""
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def pretrained_generator(root: Path, named: str) -> PretrainedSource[BiGR]:
    """The model that `generator.from` names. Where a file does not determine the heads, the settings do."""
    return PretrainedSource("generator.from", root, named, BiGR, lambda path, shape: read_generator(path, like=shape))
