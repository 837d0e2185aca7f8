"""`bigr probe`: what a trained model's features tell of any labelled images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bigr.evaluation.representation.folder_probe import FolderProbe


def probe(
    images: Annotated[str, typer.Option(metavar="SOURCE", help="Labelled images, as `shards.source` names them.")],
    model: Annotated[Path, typer.Option(metavar="FOLDER", help="The model's folder.")] = Path("models/bigr"),
    tokenizer: Annotated[Path, typer.Option(metavar="FOLDER", help="Its tokenizer's.")] = Path("models/tokenizer"),
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where metrics and pictures go.")] = Path("outputs/probe"),
    params: Annotated[
        Path, typer.Option("--params", metavar="FILE", help="The settings: evaluation, run, and the split of shards.")
    ] = Path("params.yaml"),
    features: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keep the features there, by content, for another time.")
    ] = None,
    max_images: Annotated[
        int | None, typer.Option(min=10, metavar="N", help="Of a split, in place of the settings' numbers of images.")
    ] = None,
) -> None:
    """Measure what every layer tells of any labelled images.

    The model, trained here or imported, sees no label and need not know the classes. Features are written to disk
    once, and read in batches: memory does not grow with the images.
    """
    from bigr import config
    from bigr.evaluation.representation.folder_probe import probe_folder

    done = probe_folder(images, tokenizer, model, out, config.load(params), kept=features, max_images=max_images)
    for line in page(done):
        typer.echo(line)
    typer.echo(f"written to {out}: metrics.json, probe.csv, probe.png, tsne.png")


def page(done: "FolderProbe") -> list[str]:
    """The accuracies by layer as lines of text; the chosen layer is marked."""
    counts = (
        f"{split} {measured:,}" + (f" of {there:,}" if measured < there else "")
        for split, (measured, there) in done.images.items()
    )
    lines = [f"{len(done.classes):,} classes; images: {', '.join(counts)}", "", "layer   top-1   top-5    k-NN"]
    found = done.representation
    columns = (
        (found.probe.top1, found.probe.best),
        (found.probe.top5, found.probe.best),
        (found.knn.top1, found.knn.best),
    )
    for layer in range(1, len(found.probe.top1) + 1):
        cells = (f"{column[layer - 1]:7.1%}{'*' if layer == best else ' '}" for column, best in columns)
        lines.append(f"{layer:5}{''.join(cells)}".rstrip())
    return [*lines, "", "* the layer that held-out training images chose"]
