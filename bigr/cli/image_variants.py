"""Variants of each of many images: drawn, written, and shown in a grid beside what was given."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bigr.cli import image_files
from bigr.cli.image_files import Folder, Input, say_also
from bigr.cli.image_options import Drawn, seconds
from bigr.cli.image_steps import StepRecorder

if TYPE_CHECKING:
    from PIL import Image

    from bigr.imaging.model import ImageModel

_GIVEN = ("given", "to paint")


def draw_each(
    command: str,
    found: Sequence[Input],
    how: Drawn,
    draw: "Callable[..., list[Image.Image]]",
    given: "Callable[[Input], list[Image.Image]]",
    label: str | None = None,
    read: Sequence[Path] = (),
    *,
    windows: bool = False,
) -> None:
    """Draw the variants of each image and write them, and a grid of the given images and the results.

    label: goes into the files' names; read: further files that must not be overwritten; windows: long images are
    painted window by window.
    """
    from bigr.imaging.grid import preview

    folder, model = Folder(how.out, [*(one.path for one in found), *read]), how.load()
    named = "" if label is None else f"-{image_files.names_of([model.classes[number_of(model, label)]])[0]}"
    rows = []
    for one in found:
        started = time.monotonic()
        with StepRecorder(one.path.name, how.trace) as steps:
            pictures = draw(model, one, **how.options(), on_step=steps.on_step)
        stems = [f"{one.name}{named}-seed{how.seed}-{place}" for place in range(1, how.variants + 1)]
        paths = [folder.picture(stem, picture) for stem, picture in zip(stems, pictures, strict=True)]
        say(str(one.path), paths, pictures, started)
        steps.draw(folder, stems, windows=windows)
        rows.append([preview(picture) for picture in (*given(one), *pictures)])
    captions = [*_GIVEN[: len(rows[0]) - how.variants], *variant_names(how.variants)]
    names = [one.name for one in found]
    say_also(folder.grid(f"grid-{command}-seed{how.seed}", rows, captions, names), "given and drawn images")


def number_of(model: "ImageModel", label: str) -> int:
    """The number of a class, given by name or number. Raises `BigrError` for one that does not exist."""
    from bigr.imaging.options import class_number

    return class_number(label, model.classes)


def picture_of(one: Input) -> "Image.Image":
    from bigr.imaging.pictures import read_picture

    return read_picture(one.path)


def variant_names(count: int) -> list[str]:
    return [f"variant {number}" for number in range(1, count + 1)]


def in_rows(pictures: "Sequence[Image.Image]", length: int) -> "list[Sequence[Image.Image]]":
    return [pictures[start : start + length] for start in range(0, len(pictures), length)]


def say(what: str, paths: Sequence[Path], pictures: "Sequence[Image.Image]", started: float) -> None:
    """Print one line: what was drawn, its files, and the time that it took."""
    width, height = pictures[0].size
    count = f"{len(paths):,} pictures" if len(paths) > 1 else "1 picture"
    typer.echo(f"{what}: {count} of {width}×{height} in {seconds(started)}: {image_files.spread(paths)}")
