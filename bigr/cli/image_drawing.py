"""A call of the model that draws: its iterations are counted on the terminal, its images, grids and traces written."""

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bigr.cli.image_files import Folder, Input, names_of
from bigr.cli.image_options import Drawn, seconds
from bigr.runtime.extras import require
from bigr.runtime.progress import Progress

if TYPE_CHECKING:
    from PIL import Image

    from bigr.imaging.frames import Frame

_GIVEN = ("given", "to paint")


def draw(
    what: str,
    how: Drawn,
    folder: Folder,
    stems: Sequence[str],
    call: "Callable[..., list[Image.Image]]",
    *,
    windows: bool = False,
) -> "list[Image.Image]":
    """The images that `call` draws with the options of `how`; written as `stems`, with their traces where asked for.

    windows: long images are painted window by window.
    """
    if how.trace:
        require("evaluation", "--trace")
    frames: list[Frame] = []
    shown, started = sys.stderr.isatty(), time.monotonic()
    with ExitStack() as stack:

        @cache
        def progress(iterations: int) -> Progress:
            return stack.enter_context(Progress(what, iterations, unit="iteration"))

        def on_step(frame: "Frame") -> None:
            if shown:
                progress(frame.of).advance()
            if how.trace:
                frames.append(frame)

        pictures = call(**how.options(), on_step=on_step if how.trace or shown else None)
    paths = [folder.picture(stem, picture) for stem, picture in zip(stems, pictures, strict=True)]
    say(what, paths, pictures, started)
    if frames:
        _write_traces(frames, folder, stems, windows)
    return pictures


def _write_traces(frames: "Sequence[Frame]", folder: Folder, stems: Sequence[str], windows: bool) -> None:
    from bigr.imaging.trace import animation, episodes, strip

    together = len(frames[0].pictures)
    batches = ceil(len(stems) / together)
    ended = episodes(frames)
    each = len(ended) // batches
    written: list[Path] = []
    for place, stem in enumerate(stems):
        batch, image = divmod(place, together)
        if windows:  # window by window, and within each batch by batch
            parts = ended[batch::batches]
        else:
            parts = [[frame for part in ended[batch * each : (batch + 1) * each] for frame in part]]
        for number, part in enumerate(parts, start=1):
            name = f"{stem}-window{number}-trace" if len(parts) > 1 else f"{stem}-trace"
            written.append(folder.picture(name, strip(part, image)))
            written.append(folder.animation(name, *animation(part, image)))
    typer.echo(f"{written[0]}: the order of the tokens; {len(written)} files *-trace.png and .gif in all")


def draw_each(
    command: str,
    found: Sequence[Input],
    how: Drawn,
    call: "Callable[..., list[Image.Image]]",
    given: "Callable[[Input], list[Image.Image]]",
    label: str | None = None,
    read: Sequence[Path] = (),
    *,
    windows: bool = False,
) -> None:
    """`draw` for each image, with a grid of the given images and the results.

    call: takes the model and the image; label: goes into the files' names; read: further files that must not be
    overwritten.
    """
    from functools import partial

    from bigr.imaging.grid import preview

    folder, model = Folder(how.out, [*(one.path for one in found), *read]), how.load()
    named = "" if label is None else f"-{names_of([model.named(label)])[0]}"
    rows = []
    for one in found:
        stems = [f"{one.name}{named}-seed{how.seed}-{place}" for place in range(1, how.variants + 1)]
        pictures = draw(str(one.path), how, folder, stems, partial(call, model, one), windows=windows)
        rows.append([preview(picture) for picture in (*given(one), *pictures)])
    captions = [*_GIVEN[: len(rows[0]) - how.variants], *variant_names(how.variants)]
    path = folder.grid(f"grid-{command}-seed{how.seed}", rows, captions, [one.name for one in found])
    typer.echo(f"{path}: given and drawn images")


def variant_names(count: int) -> list[str]:
    return [f"variant {number}" for number in range(1, count + 1)]


def in_rows(pictures: "Sequence[Image.Image]", length: int) -> "list[Sequence[Image.Image]]":
    return [pictures[start : start + length] for start in range(0, len(pictures), length)]


def say(what: str, paths: Sequence[Path], pictures: "Sequence[Image.Image]", started: float) -> None:
    """Print one line: what was drawn, its files, and the time that it took."""
    width, height = pictures[0].size
    count, last = (f"{len(paths):,} pictures", f" … {paths[-1].name}") if len(paths) > 1 else ("1 picture", "")
    typer.echo(f"{what}: {count} of {width}×{height} in {seconds(started)}: {paths[0]}{last}")
