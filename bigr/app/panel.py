"""The results of a call as HTML: the images while they are drawn, and the order in which their tokens are decided.

Images are part of the page, as data URIs: nothing goes to disk, and nothing is fetched.
"""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bigr.imaging.frames import Frame

CRISP_BELOW = 128
"""Images smaller than this along a side are shown with sharp pixels."""

TRACE_STEPS = 16
"""Iterations in the strip at most, evenly spaced and with the last."""

TRACE_SIDE = 128
"""Pixels along a side of the strip's images; larger ones are reduced."""

SHOWN_SIDE = 1024
"""Pixels along a side of an image to choose or to paint on, as the page shows it."""

RUNNING_SIDE = 256
"""Pixels along a side of the images while they are drawn, where they are more than `PAIRED`."""

PAIRED = 4
"""Entropy maps are shown beside the images while they are drawn if these are no more than this."""

_CERTAIN, _UNDECIDED = np.array([250, 232, 214]), np.array([182, 52, 20])
"""Colours of an entropy of 0 and of the call's largest."""

_SIDES, _PLACE = ("left", "top", "right", "bottom"), ("left", "top", "width", "height")
_NO_PICTURE = '<div class="outline empty"><p>Choose a picture</p></div>'


def uri(picture: Image.Image) -> str:
    """The image as a PNG in a data URI."""
    with io.BytesIO() as stream:
        picture.save(stream, format="PNG")
        return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def entropy_map(entropy: NDArray[np.floating], most: float) -> Image.Image:
    """Entropies [g, g] in bits as an RGBA image of g×g pixels: from pale (0) to red (`most`); clear where NaN."""
    known = np.isnan(entropy)
    share = np.clip(np.where(known, 0, entropy) / most, 0, 1)[..., None]
    colour = _CERTAIN + share * (_UNDECIDED - _CERTAIN)
    rgba = np.concatenate([colour, np.where(known, 0, 255)[..., None]], axis=-1)
    return Image.fromarray(np.rint(rgba).astype(np.uint8), "RGBA")


@dataclass
class Trace:
    """The iterations of the first image of a call. steps: number, image (a data URI) and entropies of each.

    name: of that image; alone: the call draws other images after it, which the strip leaves out; of: iterations of the
    whole call; most: the largest entropy of all images so far, in bits; crisp: the CSS class of its images.
    """

    name: str = ""
    alone: bool = False
    steps: list[tuple[int, str, NDArray[np.floating]]] = field(default_factory=list)
    of: int = 0
    most: float = 0.01
    crisp: str = "crisp"
    _undecided: float = np.inf

    def add(self, frame: Frame) -> None:
        """Keep a frame, if it is one of the `TRACE_STEPS` to show."""
        self.of = frame.of
        self.most = max(self.most, *(float(np.nanmax(one, initial=0)) for one in frame.entropies))
        undecided = int(np.count_nonzero(~np.isnan(frame.entropies[0])))
        if self.alone and undecided > self._undecided:
            self._undecided = -1  # the first image is complete: the other frames are of other images
            return
        self._undecided = undecided
        shown = min(TRACE_STEPS, frame.of)
        if frame.number * shown // frame.of == (frame.number - 1) * shown // frame.of:
            return
        picture = frame.pictures[0]
        self.crisp = _crisp(picture)
        self.steps.append((frame.number, uri(_within(picture, TRACE_SIDE)), frame.entropies[0]))

    def html(self) -> str:
        """The strip."""
        if not self.steps:
            return ""
        columns = "".join(
            f'<li><img class="{self.crisp}" src="{picture}" alt="after iteration {number}">'
            f'<img class="crisp entropy" src="{uri(entropy_map(entropy, self.most))}" '
            f'alt="entropy before iteration {number}">'
            f"<span>{number}</span></li>"
            for number, picture, entropy in self.steps
        )
        return (
            f'<section class="trace"><header><h3>In which order {html.escape(self.name)} was decided</h3>'
            f'<p class="legend"><span>certain, 0</span><i></i><span>{self.most:.2f} bits, undecided</span></p></header>'
            f"<ol>{columns}</ol></section>"
        )


def idle(text: str) -> str:
    """The empty result."""
    return f'<div class="result idle"><p>{html.escape(text)}</p></div>'


def waiting() -> str:
    """The call is in the queue."""
    return '<div class="result busy"><p class="state" role="status"><b>Waiting for the model</b></p></div>'


def running(frame: Frame, trace: Trace, columns: int | None = None) -> str:
    """After an iteration: the images so far, with their entropy maps beside them where they are few."""
    paired = len(frame.pictures) <= PAIRED
    cells = []
    for place, (picture, entropy) in enumerate(zip(frame.pictures, frame.entropies, strict=True), start=1):
        crisp = _crisp(picture)
        if not paired:
            picture = _within(picture, RUNNING_SIDE)
        colours = uri(entropy_map(entropy, trace.most))
        beside = f'<img class="crisp entropy" src="{colours}" alt="entropy of picture {place}">'
        cells.append(
            f'<figure><div class="pair"><img class="{crisp}" src="{uri(picture)}" alt="picture {place} so far">'
            f"{beside if paired else ''}</div></figure>"
        )
    share = frame.number / frame.of
    state = f'<p class="state" role="status"><b>Iteration {frame.number}</b> of {frame.of}{_bar(share)}</p>'
    return f'<div class="result busy">{state}{_grid(cells, columns, 2 if paired else 1)}{trace.html()}</div>'


def _bar(share: float) -> str:
    percent = round(100 * share)
    return (
        f'<i class="bar" role="progressbar" aria-label="progress" aria-valuenow="{percent}">'
        f'<i style="width:{percent}%"></i></i>'
    )


def finished(
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    seconds: float,
    name: str,
    *,
    trace: Trace,
    note: str = "",
    columns: int | None = None,
    beside: Sequence[tuple[Image.Image, str]] = (),
) -> str:
    """The images that the call returned, the time that it took, and the strip.

    captions: one for each image; name: of the files to save; note: text after the time; columns: of the grid, None: by
    the number of images; beside: images to compare with, and their captions, shown above.
    """
    cells = [
        _figure(picture, caption, f"{name}-{place}.png")
        for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True), start=1)
    ]
    first = _grid([_figure(one, caption) for one, caption in beside], 4) if beside else ""
    time = f"{seconds:.1f} s" if seconds < 99.5 else f"{seconds / 60:.1f} min"
    save = '<button type="button" class="all">Save all</button>' if len(pictures) > 1 else ""
    state = f'<p class="state" role="status"><b class="time">{time}</b> <span>{html.escape(note)}</span>{save}</p>'
    return f'<div class="result done">{state}{first}{_grid(cells, columns)}{trace.html()}</div>'


def _figure(picture: Image.Image, caption: str, file: str | None = None) -> str:
    words, crisp = html.escape(caption), _crisp(picture)
    image = (
        f'<img class="{crisp}" src="{uri(picture)}" alt="{words}" width="{picture.width}" height="{picture.height}">'
    )
    if file is not None:  # result.js enlarges it and saves it, by its own data, which is then in the page once
        image = f'<a download="{html.escape(file)}" title="enlarge" href="#">{image}</a>'
    return f'<figure>{image}<figcaption title="{words}">{words}</figcaption></figure>'


def _grid(cells: Sequence[str], columns: int | None, span: int = 1) -> str:
    count = columns or min(len(cells), 4)
    many = " many" if count > 4 else ""
    return f'<div class="grid{many}" style="--columns:{count};--span:{span}">{"".join(cells)}</div>'


def _crisp(picture: Image.Image) -> str:
    return "crisp" if min(picture.size) < CRISP_BELOW else "smooth"


def compared(
    beside: Sequence[tuple[Image.Image, str]],
    found: Sequence[tuple[Image.Image, str]],
    seconds: float,
    note: str,
    share: float | None = None,
) -> str:
    """An image and its reconstruction, and below them the images that are similar to it.

    share: how much is done, 0 to 1; None: all.
    """
    first = _grid([_figure(one, caption) for one, caption in beside], len(beside))
    then = ""
    if found:
        then = "<h3>Most alike to the model</h3>" + _grid([_figure(one, text) for one, text in found], 5)
    bar, kind = ("", "done") if share is None else (_bar(share), "busy")
    state = f'<p class="state" role="status"><b class="time">{seconds:.1f} s</b> {html.escape(note)}{bar}</p>'
    return f'<div class="result {kind} features">{state}{first}{then}</div>'


def refused(text: str) -> str:
    """An error message in place of a result."""
    return f'<div class="result idle refused"><p role="alert">{html.escape(text)}</p></div>'


def outline(picture: Image.Image | None, edges: Sequence[int], inside: bool) -> str:
    """An image, hatched where it is to be painted: around it or at its edges (pixels: left, top, right, bottom)."""
    if picture is None:
        return _NO_PICTURE
    left, top, right, bottom = edges
    width = picture.width + (0 if inside else left + right)
    height = picture.height + (0 if inside else top + bottom)
    image = f'<img class="{_crisp(picture)}" src="{uri(_shown(picture))}" alt="the picture">'
    box = (left / width, top / height, picture.width / width, picture.height / height)
    if inside:
        box, hole = (0.0, 0.0, 1.0, 1.0), (left / width, top / height, 1 - right / width, 1 - bottom / height)
        corners = "".join(f"--{side}:{100 * share:.3f}%;" for side, share in zip(_SIDES, hole, strict=True))
        image += f'<i class="hatched" style="{corners}"></i>'
    place = ";".join(f"{side}:{100 * share:.3f}%" for side, share in zip(_PLACE, box, strict=True))
    return _framed(f'<div class="kept" style="{place}">{image}</div>', "frame hatched", (width, height))


def chosen(picture: Image.Image | None) -> str:
    """The chosen image of a task."""
    if picture is None:
        return _NO_PICTURE
    image = f'<img class="{_crisp(picture)}" src="{uri(_shown(picture))}" alt="the picture">'
    return _framed(image, "frame", picture.size)


def _framed(inside: str, kind: str, size: tuple[int, int]) -> str:
    width, height = size
    return (
        f'<div class="outline"><div class="scroll"><div class="{kind}" style="--ratio:{width / height:.5f}">'
        f'{inside}</div></div><p class="size">{width}×{height} pixels</p></div>'
    )


def thumbnails(pictures: Sequence[tuple[Image.Image, str]]) -> str:
    """Examples to choose from: buttons that carry their place in `data-place`."""
    return "".join(
        f'<button type="button" data-place="{place}" title="{html.escape(name)}" '
        f'aria-label="example: {html.escape(name)}">'
        f'<img class="{_crisp(picture)}" src="{uri(picture)}" alt=""></button>'
        for place, (picture, name) in enumerate(pictures)
    )


def brush_value(picture: Image.Image | None) -> dict[str, object]:
    """The value of the brush (brush.js): the image as the page shows it, and no mask yet."""
    if picture is None:
        return {"picture": "", "crisp": False, "mask": ""}
    return {"picture": uri(_shown(picture)), "crisp": _crisp(picture) == "crisp", "mask": ""}


def _shown(picture: Image.Image) -> Image.Image:
    return _within(picture, SHOWN_SIDE)


def _within(picture: Image.Image, side: int) -> Image.Image:
    """A copy of the image, reduced to at most `side` pixels along each side."""
    small = picture.copy()
    small.thumbnail((side, side))
    return small
