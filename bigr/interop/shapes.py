"""The shape of a published model, read off the names and shapes of its tensors (METHOD sections 1, 2 and 7).

Whatever is inferred here is checked afterwards, tensor by tensor, against the model that it describes
(bigr/interop/published.py); so this reads the few tensors that tell, and says where they tell nothing.
"""

import math
import re
from collections.abc import Mapping

from bigr.errors import BigrError
from bigr.interop.published import SCHEDULE, TRANSCODER, Shaped, with_transcoder
from bigr.models.bigr import BiGRConfig
from bigr.models.tokenizer import TokenizerConfig

HEAD_WIDTH = 64
"""D / heads of all published models; tensors do not tell it."""
PUBLISHED_ATTENTION = 16
"""Side of the feature maps that get attention in the published tokenizers, in pixels."""
_PUBLISHED_TOKENIZER = (128, (1, 1, 2, 2, 4), 2, 256)  # base width, multipliers, residual blocks a level, embed_dim


def tokenizer_config(
    tensors: Mapping[str, Shaped], source: str, image_size: int | None = None, grid: int | None = None
) -> TokenizerConfig:
    """The shape of the tokenizer that `tensors`, under published names, are.

    image_size: in pixels, where it is known; grid: else, of the generator that goes with it. Without either, the
    levels with attention tell the size. Raises `BigrError` naming `source` and the tensor that does not fit, or
    `--image-size` where nothing tells it.
    """
    _refuse(tensors, source, "generator", "tok_embeddings.weight", "a tokenizer")
    base = _shape(tensors, "ae.encoder.blocks.0.weight", 4, source)[0]
    levels, end = _levels(tensors, source)
    embed_dim = _shape(tensors, f"ae.encoder.blocks.{end}.weight", 4, source)[0]
    code_bits = _shape(tensors, "ae.quantize.embed.weight", 2, source)[0]
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
            f"--image-size is {image_size}; a multiple of {downsampling}, {source}'s pixels a token, is needed"
        )
    return TokenizerConfig(
        image_size=image_size,
        code_bits=code_bits,
        embed_dim=embed_dim,
        base_channels=base,
        channel_multipliers=multipliers,
        res_blocks=res_blocks,
        attention_resolutions=tuple(image_size >> level for level in attended),
        norm_first=len(_shape(tensors, "ae.generator.blocks.0.weight", None, source)) == 1,
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
        found.append((_shape(tensors, f"{prefix}.{index}.conv1.weight", 4, source)[0], blocks, attention))
        index += len(level) + 1
    if not parts or len(found) != letters.count("/") + 1:
        raise BigrError(
            f"{source}: {prefix} are not those of a BiGR tokenizer: {letters or 'none'} "
            "(c convolution, R residual, A attention, / downsampling, n norm)"
        )
    return found, len(letters) - 1


def _kind_of_block(tensors: Mapping[str, Shaped], name: str) -> str | None:
    """A letter for what a block of the encoder is, by the tensors that it has; None: there is no such block."""
    for part, letter in (("conv1", "R"), ("q", "A"), ("conv", "/")):
        if f"{name}.{part}.weight" in tensors:
            return letter
    weight = tensors.get(f"{name}.weight")
    return None if weight is None else "n" if len(weight.shape) == 1 else "c"


def generator_config(tensors: Mapping[str, Shaped], source: str, heads: int | None = None) -> BiGRConfig:
    """The shape of the generator that `tensors`, under published names, are.

    heads: attention heads, which tensors do not tell; None: 64 dimensions each, as in all published models. T is 256
    where the file lacks the schedule's buffers. Raises `BigrError` naming `source` and the tensor that does not fit, or
    `--heads`.
    """
    _refuse(tensors, source, "tokenizer", "ae.encoder.blocks.0.weight", "a generator")
    tensors = with_transcoder(tensors)
    dim, code_bits = _shape(tensors, "tok_embeddings.weight", 2, source)
    tokens = _shape(tensors, "diffusion_pos_embed_learned", 3, source)[1]
    if math.isqrt(tokens) ** 2 != tokens:
        raise BigrError(f"{source}: tensor diffusion_pos_embed_learned has {tokens} tokens, which make no square grid")
    return BiGRConfig(
        code_bits=code_bits,
        grid=math.isqrt(tokens),
        num_classes=_shape(tensors, "cls_embedding.embedding_table.weight", 2, source)[0] - 1,
        dim=dim,
        layers=_count(tensors, "layers."),
        heads=_heads(dim, heads, source),
        ffn_multiple_of=_ffn_multiple_of(dim, _shape(tensors, "layers.0.feed_forward.w1.weight", 2, source)[0], source),
        transcoder_dim=_shape(tensors, f"{TRANSCODER}x_embedder.weight", 2, source)[0],
        transcoder_blocks=_count(tensors, f"{TRANSCODER}blocks."),
        diffusion_steps=_diffusion_steps(tensors, source),
    )


def _heads(dim: int, heads: int | None, source: str) -> int:
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
    lengths = {name: tensors[name].shape for name in tensors if name.startswith(SCHEDULE)}
    for name, shape in lengths.items():
        if len(shape) != 1 or shape != next(iter(lengths.values())) or shape[0] < 3:
            raise BigrError(f"{source}: tensor {name} has shape {list(shape)}; a table of T + 1 steps is expected")
    return next(iter(lengths.values()))[0] - 1 if lengths else 256


def _count(tensors: Mapping[str, Shaped], prefix: str) -> int:
    """How many blocks there are behind `prefix`; where the indices have gaps, a missing tensor is found later."""
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def _shape(tensors: Mapping[str, Shaped], name: str, dimensions: int | None, source: str) -> tuple[int, ...]:
    if name not in tensors:
        raise BigrError(f"{source}: tensor {name} is missing; is this the file that you mean?")
    shape = tuple(tensors[name].shape)
    if (dimensions is not None and len(shape) != dimensions) or 0 in shape:
        raise BigrError(f"{source}: tensor {name} has shape {list(shape)}; {dimensions} dimensions are expected")
    return shape


def _refuse(tensors: Mapping[str, Shaped], source: str, kind: str, sign: str, wanted: str) -> None:
    if sign in tensors:
        raise BigrError(f"{source}: a {kind} (it has {sign}), where {wanted} is wanted; were the two files swapped?")
