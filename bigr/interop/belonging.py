"""Whether tokenizer, codes and generator belong together.

They must agree in bits and grid, and the generator must have been trained on codes of this tokenizer, which its folder
names by hash (`tokenizer_of`). Where it names none, bits and grid decide.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bigr.interop.folders import model_hash, tokenizer_of
from bigr.runtime.errors import BigrError

if TYPE_CHECKING:
    from bigr.data.codes import CodesDataset
    from bigr.interop.published.published_model import PublishedModel
    from bigr.models.autoencoder.tokenizer import Tokenizer
    from bigr.models.masked.generator import BiGR, BiGRConfig


def check_pair(
    tokenizer: "Tokenizer",
    model: "BiGR",
    folders: tuple[Path, Path],
    names: tuple[str, str] = ("models/tokenizer", "models/bigr"),
    remedy: str = "run `dvc repro`",
) -> None:
    """Raise `BigrError` where `model` was not trained on the codes of `tokenizer`.

    folders: of tokenizer and model; names: what the message calls them; remedy: its end.
    """
    _check_shape(
        ("bits", "grid"),
        {names[1]: (model.config.code_bits, model.config.grid), names[0]: (tokenizer.config.code_bits, tokenizer.grid)},
        remedy,
    )
    _check_hash(tokenizer_of(folders[1]), model_hash(folders[0]), names, remedy)


def check_codes(model: "BiGR", folder: Path, codes: "CodesDataset") -> None:
    """Raise `BigrError` where the model in `folder`, the pipeline's models/bigr, was not trained on such codes."""
    config, remedy = model.config, "run `dvc repro`"
    _check_shape(
        ("bits", "grid", "classes"),
        {
            "models/bigr": (config.code_bits, config.grid, config.num_classes),
            "data/codes": (codes.code_bits, codes.grid, codes.num_classes),
        },
        remedy,
    )
    _check_hash(tokenizer_of(folder), codes.tokenizer, ("models/tokenizer", "models/bigr"), remedy)


def check_published(tokenizer: "PublishedModel", generator: "PublishedModel") -> None:
    """Raise `BigrError`, naming the tensors, where two published files differ in bits or grid."""
    shape, model = tokenizer.config, generator.config
    files = f"{tokenizer.path} and {generator.path} do not belong together:"
    if shape.code_bits != model.code_bits:
        raise BigrError(
            f"{files} ae.quantize.embed.weight has K = {shape.code_bits} bits a token, tok_embeddings.weight "
            f"K = {model.code_bits}"
        )
    if shape.grid != model.grid:
        raise BigrError(
            f"{files} the tokenizer is for {shape.image_size}² images in {shape.grid}×{shape.grid} tokens, "
            f"diffusion_pos_embed_learned for {model.grid}×{model.grid}"
        )


def text_problems(named: str, config: "BiGRConfig", *, texts: bool) -> list[str]:
    """A line where the generator that `generator.from` names takes texts and the settings do not, or the reverse."""
    if bool(config.text_tokens) == texts:
        return []
    takes, encoder = ("classes", "none") if texts else ("texts", "the one it was trained with")
    return [f"generator.from is {named}, which takes {takes}; set text.encoder to {encoder}"]


def generator_problems(named: str, found: "PublishedModel", tokenizer: str | None, classes: int | None) -> list[str]:
    """A line for each reason why the generator that `generator.from` names cannot be used.

    tokenizer: hash of the tokenizer in use; classes: how many the images have. None: not known, so not compared.
    """
    problems = []
    if classes not in (None, theirs := found.config.num_classes):
        problems.append(
            f"generator.from is {named}, which knows {theirs} classes; the images have {classes}; name a folder with "
            "its classes in shards.source, or train a generator (generator.from: null)"
        )
    if tokenizer is not None and found.tokenizer not in (None, tokenizer):
        problems.append(
            f"generator.from is {named}, trained on codes of the tokenizer {found.tokenizer[:12]}…; models/tokenizer "
            f"is {tokenizer[:12]}…; name the generator's own tokenizer in tokenizer.from"
        )
    return problems


def _check_shape(fields: Sequence[str], shapes: dict[str, tuple[int, ...]], remedy: str) -> None:
    (first, ours), (second, theirs) = shapes.items()
    if ours != theirs:
        raise BigrError(f"{first} has ({', '.join(fields)}) = {ours}, {second} {theirs}; {remedy}")


def _check_hash(trained_on: str | None, tokenizer: str, names: tuple[str, str], remedy: str) -> None:
    if trained_on not in (None, tokenizer):
        raise BigrError(f"{names[1]} was trained on codes of another tokenizer than {names[0]}; {remedy}")
