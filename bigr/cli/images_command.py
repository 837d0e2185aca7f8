"""What a trained model does without further training, from the shell: images in, images out.

`bigr generate`, `inpaint`, `outpaint`, `edit`, `interpolate`, `enrich`, `reconstruct`, `features`; docs/applications.md
shows them beside the same in Python. All of them are calls of `bigr.imaging.model.ImageModel`.
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigr.cli import image_files
from bigr.cli.image_drawing import draw, draw_each, in_rows, say, variant_names
from bigr.cli.image_files import Folder, Input
from bigr.cli.image_options import Blended, Box, Common, Drawn, Masked, box_of, margins_of, seconds, takes
from bigr.runtime.errors import BigrError
from bigr.runtime.extras import require
from bigr.runtime.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from bigr.imaging.model import ImageModel

Images = Annotated[list[Path], typer.Argument(metavar="IMAGES…", help="Pictures, or folders of them.")]
PaintLabel = Annotated[
    str | None, typer.Option(metavar="NAME", help="The class or text to paint; else the rest of the picture decides.")
]
_MEASURED_TOGETHER = 64


@takes(Drawn)
def generate(
    labels: Annotated[
        list[str] | None,
        typer.Argument(metavar="[LABELS…]", help="Classes, by name or number, or texts; none: a picture of anything."),
    ] = None,
    *,
    how: Drawn,
) -> None:
    """Draw pictures of classes or texts."""
    folder, model = Folder(how.out), how.load()
    asked: list[str | None] = list(labels) if labels else [None]
    classes = [model.named(label) for label in asked]
    stems = [
        f"{name}-seed{how.seed}-{place}"
        for name in image_files.names_of(classes)
        for place in range(1, how.variants + 1)
    ]
    pictures = draw("generate", how, folder, stems, partial(model.generate, asked))
    if len(pictures) > 1:
        rows = [pictures] if how.variants == 1 else in_rows(pictures, how.variants)
        told = (classes,) if how.variants == 1 else (variant_names(how.variants), classes)
        typer.echo(f"{folder.grid(f'grid-seed{how.seed}', rows, *told)}: all of them")


@takes(Masked)
def inpaint(images: Images, label: PaintLabel = None, *, how: Masked) -> None:
    """Paint a marked part of pictures anew; the rest stays."""
    _paint_marked("inpaint", images, label, how)


@takes(Masked)
def edit(
    images: Images,
    label: Annotated[str, typer.Option(metavar="NAME", help="The class or text to paint there.", show_default=False)],
    *,
    how: Masked,
) -> None:
    """Paint another class into a marked part of pictures."""
    _paint_marked("edit", images, label, how)


@takes(Blended)
def outpaint(
    images: Images,
    margins: Annotated[
        str | None,
        typer.Option(metavar="N|L,T,R,B", help="How much to add: on all sides, or on each; pixels or per cent."),
    ] = None,
    box: Annotated[
        str | None, typer.Option(metavar="L,T,R,B", help="Or the part to keep; all around it is painted anew.")
    ] = None,
    label: PaintLabel = None,
    *,
    how: Blended,
) -> None:
    """Paint what surrounds pictures, or a part of them."""
    if (margins is None) == (box is None):
        raise BigrError("give either --margins (how much to add) or --box (the part to keep)")
    found = image_files.inputs(images)

    def where(one: Input) -> tuple[Box | None, Box | None]:
        kept = None if box is None else box_of(box, one.size, str(one.path))
        return kept, None if margins is None else margins_of(margins, one.size)

    for one in found:
        where(one)  # an error comes before anything is drawn

    def call(model: "ImageModel", one: Input, **options: Any) -> "list[Image.Image]":
        kept, added = where(one)
        return model.outpaint(one.path, box=kept, margins=added, label=label, blend=how.blend, **options)

    def given(one: Input) -> "list[Image.Image]":
        return [_surrounded(one, *where(one))]

    draw_each("outpaint", found, how, call, given, label, windows=True)


@takes(Drawn)
def interpolate(
    first: Annotated[
        str, typer.Argument(metavar="FIRST", help="A class, by name or number, or a text.", show_default=False)
    ],
    second: Annotated[str, typer.Argument(metavar="SECOND", help="Another.", show_default=False)],
    frames: Annotated[int, typer.Option(metavar="N", help="Pictures on the way, both ends included.")] = 9,
    *,
    how: Drawn,
) -> None:
    """Draw the way from one class or text to another.

    As pictures, a strip and an animation there and back.
    """
    from bigr.imaging.trace import there_and_back

    require("evaluation", "the strip of `bigr interpolate`")

    folder, model = Folder(how.out), how.load()
    name = f"{'-to-'.join(image_files.names_of([model.named(end)])[0] for end in (first, second))}-seed{how.seed}"
    stems = [
        f"{name}-{variant}-frame{place:0{len(str(frames))}}"
        for variant in range(1, how.variants + 1)
        for place in range(1, frames + 1)
    ]
    pictures = draw("interpolate", how, folder, stems, partial(model.interpolate, first, second, frames))
    shares = [f"{place / (frames - 1):.0%}" for place in range(frames)]
    for variant, row in enumerate(in_rows(pictures, frames), start=1):
        typer.echo(f"{folder.grid(f'{name}-{variant}-strip', [row], shares, across=None)}: side by side")
        typer.echo(f"{folder.animation(f'{name}-{variant}', *there_and_back(row))}: there and back")


@takes(Drawn)
def enrich(
    images: Images,
    label: PaintLabel = None,
    rounds: Annotated[
        int | None, typer.Option(metavar="N", help="How often all is drawn anew, 1 to 4; the settings' by default.")
    ] = None,
    free: Annotated[
        bool, typer.Option("--free", help="Let the result differ from the input when it is made small again.")
    ] = False,
    *,
    how: Drawn,
) -> None:
    """Enlarge small pictures, their detail drawn by the model.

    To the size of the model's own pictures.
    """
    from bigr.imaging.pictures import read_picture

    def call(model: "ImageModel", one: Input, **options: Any) -> "list[Image.Image]":
        return model.enrich(one.path, label=label, rounds=rounds, consistent=not free, **options)

    draw_each("enrich", image_files.inputs(images), how, call, lambda one: [read_picture(one.path)], label)


@takes(Common)
def reconstruct(images: Images, *, how: Common) -> None:
    """Encode and decode pictures: what the tokenizer keeps of them."""
    from bigr.imaging.grid import preview
    from bigr.imaging.pictures import read_picture

    found, started = image_files.inputs(images), time.monotonic()
    folder, model = Folder(how.out, (one.path for one in found)), how.load()
    pictures = [model.reconstruct(one.path) for one in found]
    paths = [folder.picture(f"{one.name}-reconstruction", made) for one, made in zip(found, pictures, strict=True)]
    say("reconstruct", paths, pictures, started)
    rows = [[preview(read_picture(one.path)), made] for one, made in zip(found, pictures, strict=True)]
    path = folder.grid("grid", rows, ("given", "reconstructed"), [one.name for one in found])
    typer.echo(f"{path}: given and reconstructed images")


@takes(Common)
def features(
    images: Images,
    layer: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Of the model's layers, from 1; the probe's best by default, else the middle one."
        ),
    ] = None,
    nearest: Annotated[
        int, typer.Option(metavar="N", min=0, help="Also the N pictures among them that are most alike to each.")
    ] = 0,
    *,
    how: Common,
) -> None:
    """Write what the model sees in pictures, as numbers.

    In features.npz: `features` float32 [n, D] and `files` [n].

    With --nearest also `nearest` int64 [n, N], places in `files`, and `similarity` float32 [n, N], the cosine of
    features that were standardised.
    """
    import numpy as np

    from bigr.runtime.files import write_npz
    from bigr.sampling.decode import batched

    found, started = image_files.expanded(images), time.monotonic()
    folder, model = Folder(how.out, found), how.load()
    parts = []
    with Progress("features", len(found), unit="image") as progress:
        for places in batched(len(found), _MEASURED_TOGETHER):
            parts.append(model.features(found[places.start : places.stop], layer).numpy())
            progress.advance(len(places))
    numbers = np.concatenate(parts)
    path = folder.file("features.npz")
    beside = _alike(model, numbers, nearest, layer) if nearest else {}
    write_npz(path, features=numbers, files=np.array([str(one) for one in found], dtype=np.str_), **beside)
    told = f"{numbers.shape[1]} numbers each, of layer {model.feature_layer if layer is None else layer}"
    typer.echo(f"{path}: {len(numbers):,} pictures, {told}, {seconds(started)}")
    if nearest and model.statistics is None:
        typer.echo(
            "compared by these pictures' own mean: the model comes without its training split's (models/features)"
        )


def _alike(model: "ImageModel", features: "np.ndarray", count: int, layer: int | None) -> dict[str, "np.ndarray"]:
    """The `count` others that are most alike to each of features [n, D]; fewer where there are fewer."""
    import numpy as np
    import torch

    if len(features) < 2:
        raise BigrError("--nearest: give two pictures or more")
    rows = torch.from_numpy(features)
    similarity, place = (found.numpy() for found in model.nearest(rows, rows, count + 1, layer))
    others = place != np.arange(len(rows))[:, None]
    others[others.all(axis=1), -1] = False  # so many are the same picture that it is not among its own nearest
    return {
        name: found[others].reshape(len(rows), -1) for name, found in (("nearest", place), ("similarity", similarity))
    }


def _paint_marked(command: str, images: Sequence[Path], label: str | None, how: Masked) -> None:
    import numpy as np
    from PIL import Image

    from bigr.imaging.frames import GREY
    from bigr.imaging.pictures import read_picture

    if (how.mask is None) == (how.box is None):
        raise BigrError("say where to paint: give either --mask FILE or --box L,T,R,B")
    found = image_files.inputs(images)
    for one in found:
        _marked(how, one)  # an error comes before anything is drawn

    def call(model: "ImageModel", one: Input, **options: Any) -> "list[Image.Image]":
        mask = np.uint8(255) * _marked(how, one)
        return model.inpaint(one.path, mask, label=label, blend=how.blend, **options)

    def given(one: Input) -> "list[Image.Image]":
        picture = read_picture(one.path)
        grey = np.where(_marked(how, one)[..., None], np.uint8(GREY), np.asarray(picture))
        return [picture, Image.fromarray(grey)]

    draw_each(command, found, how, call, given, label, [how.mask] if how.mask else [], windows=True)


def _marked(how: Masked, one: Input) -> "NDArray[np.bool_]":
    """Where to paint, bool [H, W] of the image's size."""
    import numpy as np

    from bigr.imaging.pictures import read_mask

    if how.box is not None:
        left, top, right, bottom = box_of(how.box, one.size, str(one.path))
        mask = np.zeros(one.size[::-1], dtype=bool)
        mask[top:bottom, left:right] = True
        return mask
    assert how.mask is not None  # as the command has seen
    try:
        return read_mask(how.mask, one.size)
    except BigrError as error:
        reason = str(error).removeprefix("mask: ").removeprefix(f"{how.mask}: ")
        raise BigrError(f"--mask {how.mask}: {reason}") from None


def _surrounded(one: Input, box: Box | None, margins: Box | None) -> "Image.Image":
    """The image amid its margins, or the part of it in the box; grey around."""
    from PIL import Image

    from bigr.imaging.frames import GREY
    from bigr.imaging.pictures import read_picture

    picture, (width, height) = read_picture(one.path), one.size
    left, top, right, bottom = margins or (0, 0, 0, 0)
    page = Image.new("RGB", (left + width + right, top + height + bottom), (GREY,) * 3)
    page.paste(picture.crop(box) if box else picture, box[:2] if box else (left, top))
    return page


COMMANDS = (generate, inpaint, outpaint, edit, interpolate, enrich, reconstruct, features)
