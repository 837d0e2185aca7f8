"""`bigr import` and `bigr export`: published checkpoints to model folders, and back."""

from pathlib import Path
from typing import Annotated

import typer

from bigr.runtime.errors import BigrError

Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]


def import_(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where tokenizer/ and bigr/ are written.")],
    tokenizer: Annotated[Path | None, typer.Option(metavar="FILE", help="The published tokenizer (.th).")] = None,
    generator: Annotated[Path | None, typer.Option(metavar="FILE", help="The published generator (.pt).")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, metavar="PIXELS", help="Of the tokenizer, where its tensors do not tell.")
    ] = None,
    heads: Annotated[
        int | None, typer.Option(min=1, metavar="COUNT", help="Of the generator, where they are not 64 wide each.")
    ] = None,
    force: Force = False,
) -> None:
    """Convert published weights to models of this project. Nothing in the files is unpickled or executed.

    The shape is that of the tensors. Give both files where they belong together: the generator then names its
    tokenizer.
    """
    from bigr.interop.published import exchange

    if not (tokenizer or generator):
        raise BigrError("nothing to import: give --tokenizer FILE, --generator FILE, or both")
    if image_size and not tokenizer:
        raise BigrError("--image-size is a tokenizer's, and none is given; give --tokenizer FILE, or leave it out")
    if heads and not generator:
        raise BigrError("--heads are a generator's, and none is given; give --generator FILE, or leave it out")
    folders = {"tokenizer": out / "tokenizer", "generator": out / "bigr"}
    found: dict[str, exchange.PublishedModel] = {}
    if tokenizer and generator:
        pair = exchange.import_pair(tokenizer, generator, out, image_size=image_size, heads=heads, force=force)
        found = dict(zip(folders, pair, strict=True))
    elif tokenizer:
        found["tokenizer"] = exchange.import_tokenizer(
            tokenizer, folders["tokenizer"], image_size=image_size, force=force
        )
    elif generator:
        found["generator"] = exchange.import_generator(generator, folders["generator"], heads=heads, force=force)
    for name, model in found.items():
        typer.echo(f"{model.path.name}: {exchange.title(model)}, in {folders[name]}")
    typer.echo("To use this in place of a training, set in params.yaml:")
    for name in found:
        typer.echo(f"  {name}.from: {folders[name]}")


def export(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the .safetensors files are written.")],
    tokenizer: Annotated[Path | None, typer.Option(metavar="FOLDER", help="A tokenizer's model folder.")] = None,
    generator: Annotated[Path | None, typer.Option(metavar="FOLDER", help="A generator's model folder.")] = None,
    force: Force = False,
) -> None:
    """Write models under the names of the published weights.

    The files are safetensors.
    """
    from bigr.interop.published import exchange

    if not (tokenizer or generator):
        raise BigrError("nothing to export: give --tokenizer FOLDER, --generator FOLDER, or both")
    files = {"tokenizer": out / exchange.TOKENIZER_FILE, "generator": out / exchange.GENERATOR_FILE}
    if tokenizer and generator:
        exchange.export_pair(tokenizer, generator, out, force=force)
    elif tokenizer:
        exchange.export_tokenizer(tokenizer, files["tokenizer"], force=force)
    elif generator:
        exchange.export_generator(generator, files["generator"], force=force)
    for name, folder in (("tokenizer", tokenizer), ("generator", generator)):
        if folder:
            typer.echo(f"{folder}: written to {files[name]}")
