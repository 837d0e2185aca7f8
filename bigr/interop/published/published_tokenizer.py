"""The tokenizer in a published file: its shape, from the names and shapes of its tensors (docs/method.md, sections 1
and 7).
"""

import re
from collections.abc import Mapping
from pathlib import Path

from bigr.interop.pretrained import PretrainedSource
from bigr.interop.published.published_model import PublishedModel, expected_state, floats, recorded, refuse, shape_of
from bigr.interop.published.tensor_files import open_tensors
from bigr.interop.published.weight_names import Shaped, tokenizer_state
from bigr.models.autoencoder.tokenizer import Tokenizer, TokenizerConfig
from bigr.runtime.errors import BigrError

PUBLISHED_ATTENTION = 16
"""Side of the feature maps that get attention in the published tokenizers, in pixels."""
_PUBLISHED_TOKENIZER = (128, (1, 1, 2, 2, 4), 2, 256)  # base width, multipliers, residual blocks a level, embed_dim


def read_tokenizer(path: Path, *, image_size: int | None = None, grid: int | None = None) -> PublishedModel:
    """The tokenizer in a published file. Raises `BigrError` naming the file, and the tensor or shape that does not fit.

    image_size: side of its images in pixels; None: inferred. grid: tokens along a side, of its generator, used where
    the tensors do not determine the size.
    """
    file = open_tensors(path)
    config = recorded(file, Tokenizer)
    if config is None or image_size not in (None, config.image_size):
        config = tokenizer_config(file.tensors, str(path), image_size, grid)
    weights = tokenizer_state(file.tensors, expected_state(Tokenizer, config, path), str(path))
    return PublishedModel(path, config, floats(path, weights))


def tokenizer_config(
    tensors: Mapping[str, Shaped], source: str, image_size: int | None = None, grid: int | None = None
) -> TokenizerConfig:
    """The shape of the tokenizer in `tensors`, which have the published names.

    image_size: in pixels; grid: of its generator. Without either, the levels with attention determine the size. Raises
    `BigrError` naming `source` and the tensor that does not fit, or `--image-size` where the size stays unknown.
    """
    refuse(tensors, source, "generator", "tok_embeddings.weight", "a tokenizer")
    base = shape_of(tensors, "ae.encoder.blocks.0.weight", 4, source)[0]
    levels, end = _levels(tensors, source)
    embed_dim = shape_of(tensors, f"ae.encoder.blocks.{end}.weight", 4, source)[0]
    code_bits = shape_of(tensors, "ae.quantize.embed.weight", 2, source)[0]
    multipliers = tuple(width // base for width, _, _ in levels)
    attended = tuple(level for level, (_, _, attention) in enumerate(levels) if attention)
    res_blocks = levels[0][1]
    downsampling = 2 ** (len(levels) - 1)
    if image_size is None and (base, multipliers, res_blocks, embed_dim) == _PUBLISHED_TOKENIZER:
        image_size = {(): 512, (4,): 256}.get(attended)
    if image_size is None and grid is not None:
        image_size = grid * downsampling
    if image_size is None and len(attended) == 1:
        image_size = PUBLISHED_ATTENTION << attended[0]
    if image_size is None:
        raise BigrError(f"{source}: its tensors do not tell the size of the images; give --image-size, in pixels")
    if image_size < downsampling or image_size % downsampling:
        raise BigrError(
            f"--image-size must be a multiple of {downsampling}, {source}'s pixels a token, got {image_size}"
        )
    return TokenizerConfig(
        image_size=image_size,
        code_bits=code_bits,
        embed_dim=embed_dim,
        base_channels=base,
        channel_multipliers=multipliers,
        res_blocks=res_blocks,
        attention_resolutions=tuple(image_size >> level for level in attended),
        norm_first=len(shape_of(tensors, "ae.generator.blocks.0.weight", None, source)) == 1,
    )


def _levels(tensors: Mapping[str, Shaped], source: str) -> tuple[list[tuple[int, int, bool]], int]:
    """Of each level of the encoder: its width, its residual blocks, whether it has attention; and the last block."""
    letters = ""
    prefix = "ae.encoder.blocks"
    while (letter := _kind_of_block(tensors, f"{prefix}.{len(letters)}")) is not None:
        letters += letter
    parts = re.fullmatch(r"c(.*)RARnc", letters)
    found: list[tuple[int, int, bool]] = []
    index = 1
    for level in parts[1].split("/") if parts else []:
        blocks, attention = level.count("R"), "A" in level
        if blocks == 0 or level != ("RA" if attention else "R") * blocks or (found and blocks != found[0][1]):
            break
        found.append((shape_of(tensors, f"{prefix}.{index}.conv1.weight", 4, source)[0], blocks, attention))
        index += len(level) + 1
    if not parts or len(found) != letters.count("/") + 1:
        raise BigrError(
            f"{source}: {prefix} are not those of a BiGR tokenizer: {letters or 'none'} "
            "(c convolution, R residual, A attention, / downsampling, n norm)"
        )
    return found, len(letters) - 1


def _kind_of_block(tensors: Mapping[str, Shaped], name: str) -> str | None:
    """A letter for the kind of an encoder's block, by its tensors; None: there is no such block."""
    for part, letter in (("conv1", "R"), ("q", "A"), ("conv", "/")):
        if f"{name}.{part}.weight" in tensors:
            return letter
    weight = tensors.get(f"{name}.weight")
    return None if weight is None else "n" if len(weight.shape) == 1 else "c"


OF_SHARDS = {"image_size": "shards.image_size"}
"""The settings behind the fields of a tokenizer's shape that its own section does not have."""


def pretrained_tokenizer(root: Path, named: str) -> PretrainedSource[Tokenizer]:
    """The model that `tokenizer.from` names. Where a file does not determine the image size, the settings do."""
    return PretrainedSource(
        "tokenizer.from", root, named, Tokenizer, lambda path, shape: read_tokenizer(path, grid=shape.grid)
    )
