"""`bigr data`: what a source of images is, before anything is packed."""

from pathlib import Path
from typing import Annotated

import typer

SHEET = Path("outputs/data.png")


def data(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A folder, file or URL, or a pattern such as 'train-{0000..0099}.tar'; by default shards.source.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, metavar="N", help="Images to decode, from all over the source.")] = 1000,
    everything: Annotated[bool, typer.Option("--all", help="Decode every image.")] = False,
    out: Annotated[Path, typer.Option(metavar="FILE", help="A picture of some images.")] = SHEET,
    manifest: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also write a list of the files there, which shards.source can name in their place."
        ),
    ] = None,
    params: Annotated[
        Path, typer.Option("--params", metavar="FILE", help="The settings: seed, run, and the split of shards.")
    ] = Path("params.yaml"),
) -> None:
    """Say what a source of images holds, and draw some.

    Kind, images, classes, sizes and broken files. Nothing is packed. What is told of the classes and splits is what the
    stage shards would make of them.
    """
    from bigr import config
    from bigr.data.inspection import inspect, lines
    from bigr.data.sources.arrays import ImageArrays
    from bigr.data.sources.opened import manifest_of, open_source
    from bigr.data.sources.source import Splitting
    from bigr.runtime.copies import set_bound
    from bigr.runtime.errors import BigrError

    settings = config.load(params)
    set_bound(settings.run.cache_gb)
    if out.suffix.lower() != ".png":
        raise BigrError(f"--out {out}: must end in .png")
    if manifest is not None and manifest.suffix != ".arrow":
        raise BigrError(f"--manifest {manifest}: must end in .arrow")
    shards = settings.shards
    named = source or shards.source
    if manifest is not None and named.endswith(".arrow"):
        raise BigrError(f"--manifest {manifest}: {named} is itself a manifest; name the images that it lists")
    opened = open_source(
        named,
        Path(),
        Splitting(shards.val_fraction, settings.seed),
        names=shards.class_names if named == shards.source else None,
        option="SOURCE" if source else "shards.source",
    )
    if manifest is not None:
        if isinstance(opened, ImageArrays):
            raise BigrError(f"--manifest {manifest}: {named} needs none ({opened.kind}); name it in shards.source")
        listing = manifest_of(opened)
        listing.save(manifest)
        typer.echo(f"manifest  {manifest}: {len(listing):,} files; name it in shards.source")
    found = inspect(
        opened, out, images=None if everything else images, max_pixels=shards.max_pixels, workers=settings.run.workers
    )
    for line in lines(opened, named, found):
        typer.echo(line)
    if found.sizes:
        typer.echo(f"picture   {out}")
