"""Whether tokenizer, codes and generator belong together."""

from pathlib import Path
from typing import TYPE_CHECKING

from bigr.interop.folders import model_hash, tokenizer_of
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.models.masked.generator import BiGR
from bigr.runtime.errors import BigrError

if TYPE_CHECKING:
    from bigr.data.codes import CodesDataset


def check_fit(models: Path, tokenizer: Tokenizer, model: BiGR) -> None:
    """Raise `BigrError` where models/bigr was not trained on the codes of models/tokenizer."""
    trained_on = tokenizer_of(models / "bigr")
    if trained_on not in (None, model_hash(models / "tokenizer")):
        raise BigrError("models/bigr was trained on codes of another tokenizer than models/tokenizer; run `dvc repro`")
    ours, theirs = (model.config.code_bits, model.config.grid), (tokenizer.config.code_bits, tokenizer.grid)
    if ours != theirs:
        raise BigrError(f"models/bigr has (bits, grid) = {ours}, models/tokenizer {theirs}; run `dvc repro`")


def other_tokenizer(named: str, theirs: str, ours: str) -> str:
    """What is wrong where `generator.from` names a generator of another tokenizer's codes; both by their hash."""
    return (
        f"generator.from is {named}, trained on codes of the tokenizer {theirs[:12]}…; models/tokenizer is "
        f"{ours[:12]}…; name the generator's own tokenizer in tokenizer.from"
    )


def other_classes(named: str, theirs: int, ours: int) -> str:
    """What is wrong where `generator.from` names a generator of `theirs` classes, and the images have `ours`."""
    return (
        f"generator.from is {named}, which knows {theirs} classes; the images have {ours}; name a folder with its "
        "classes in shards.source, or train a generator (generator.from: null)"
    )


def check_model(model: BiGR, root: Path, codes: "CodesDataset") -> None:
    """Raise `BigrError` where models/bigr was not trained on such codes."""
    ours = model.config.code_bits, model.config.grid, model.config.num_classes
    theirs = codes.code_bits, codes.grid, codes.num_classes
    if ours != theirs:
        raise BigrError(f"models/bigr has (bits, grid, classes) = {ours}, data/codes {theirs}; run `dvc repro`")
    if tokenizer_of(root / "models" / "bigr") not in (None, codes.tokenizer):
        raise BigrError("models/bigr was trained on codes of another tokenizer than models/tokenizer; run `dvc repro`")
