"""The published checkpoints: one table from their names to this project's, in both directions.

Works on dicts of tensors only; reading files is the caller's. What the published files hold twice or never use is
listed here too, so that every tensor of a file is either taken, known to be superfluous, or an error.
Source: METHOD section 7.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from bigr.errors import BigrError

TOKENIZER_NAMES = (
    (r"ae\.encoder\.", "encoder."),
    (r"ae\.quantize\.", "quantizer."),
    (r"ae\.generator\.", "decoder."),
)
TOKENIZER_UNUSED = (
    r"ae\.generator\.logsigma\..*",  # a variance head that no published computation reads
    r"(?!ae\.).*",  # discriminator, perceptual loss
)
GENERATOR_NAMES = (
    (r"cls_embedding\.embedding_table\.", "backbone.cls_embedding."),
    (r"diffusion_pos_embed_learned$", "backbone.position"),
    (r"denoise_mlp\.", "transcoder."),
    (r"(?=(tok_embeddings|mask_tok|layers|adaLN|norm)\b)", "backbone."),
)
GENERATOR_UNUSED = (
    r"diffusion_processor\._denoise_fn\..*",  # the transcoder again
    r"diffusion_processor\.scheduler\..*",  # buffers, computed from T
)


def tokenizer_state(published: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published tokenizer tensors under this project's names, checked against the `expected` state dict's shapes.

    Raises `BigrError` naming the first tensor that is missing, unknown or of another shape.
    """
    return _rename(published, expected, TOKENIZER_NAMES, TOKENIZER_UNUSED)


def generator_state(published: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published generator tensors (the entry `ema`) under this project's names; errors as `tokenizer_state`."""
    return _rename(published, expected, GENERATOR_NAMES, GENERATOR_UNUSED)


def _rename(
    published: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    names: tuple[tuple[str, str], ...],
    unused: tuple[str, ...],
) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, tensor in published.items():
        if any(re.fullmatch(pattern, name) for pattern in unused):
            continue
        ours = next((re.sub("^" + old, new, name) for old, new in names if re.match(old, name)), None)
        if ours is None or ours not in expected:
            raise BigrError(f"published weights: tensor {name} has no place in this model; is the shape another?")
        if tensor.shape != expected[ours].shape:
            raise BigrError(
                f"published weights: tensor {name} has shape {list(tensor.shape)}; "
                f"this model needs {list(expected[ours].shape)}"
            )
        state[ours] = tensor
    if missing := sorted(expected.keys() - state.keys()):
        raise BigrError(f"published weights: nothing in the file for {missing[0]} ({len(missing)} tensors are missing)")
    return state
