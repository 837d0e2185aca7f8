"""The encoder in a folder: models/text of the pipeline."""

from pathlib import Path

import torch

from bigr.interop.folders import text_encoder_of, text_fields_of
from bigr.models.text_shape import in_words
from bigr.runtime.errors import BigrError
from bigr.text import byte_pairs, frozen
from bigr.text.byte_pairs import BytePairs
from bigr.text.encoder import TextEncoder, encoder_hash, read_config
from bigr.text.frozen import FrozenEncoder

NO_ENCODER = "none"


def encoder_of(model: Path, folder: Path, device: torch.device, root: Path = Path()) -> TextEncoder:
    """The encoder in `folder`, on which the generator in the folder `model` was trained.

    Raises `BigrError` where it is another, or there is none.
    """
    encoder, trained_on = load_encoder(folder, device, root), text_encoder_of(model)
    if trained_on not in (None, encoder_hash(folder)):
        raise BigrError(f"{model} was trained on texts of another encoder than {folder}; run `dvc repro`")
    theirs, ours = in_words(text_fields_of(model)), in_words(encoder.shape)
    if theirs != ours:
        raise BigrError(f"{model} takes texts of {theirs}, {folder} gives {ours}; run `dvc repro`")
    return encoder


def load_encoder(folder: Path, device: torch.device, root: Path = Path()) -> TextEncoder:
    """The encoder that `folder` describes; root: where a relative path to its weights starts.

    Raises `BigrError` where there is none, or its weights are not there any more.
    """
    config = read_config(folder)
    kind = config["kind"]
    if kind == byte_pairs.KIND:
        return BytePairs.load(folder, config)
    if kind in frozen.KINDS:
        source, tokens, known = (config.get(name) for name in ("from", "tokens", "sha256"))
        return FrozenEncoder.open(kind, str(source), int(tokens or 0), device, root=root, expected=str(known))
    raise BigrError(f"{folder} has no encoder of texts ({kind}); run the stage text with text.encoder other than none")
