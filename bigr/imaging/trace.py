"""The iterations of an image, from the frames that `on_step` receives, as a strip and as an animation."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from bigr.imaging.frames import GREY, Frame
from bigr.runtime.extras import require

Map: TypeAlias = NDArray[np.floating]

STRIP_SIDE = 112  # pixels of a picture in the strip, about
ANIMATION_SIDE = 288
PER_LINE = 12  # iterations beside each other in the strip
SHOWN = 60  # of more iterations than this the strip shows as many, evenly spread

_PAPER, _INK, _PALE, _KNOWN = "#ffffff", "#2b2f36", "#7a828d", "#e9ebee"
_DECIDED = "#19d3f3"  # the outline of what an iteration decides: no colour of the scale is near it
_SWATCHES = ((_KNOWN, None, "known"), (None, _DECIDED, "decided now"))
_ENTROPY, _ORDER = "magma", "YlGnBu"
_TEXT = 15  # pixels
_GAP = 8
_HOLD_MS = 2200
_WHOLE_MS = 4500


def episodes(frames: Sequence[Frame]) -> list[list[Frame]]:
    """The frames of a call, split after each one that leaves no token undecided.

    There is one episode for each batch of images; in inpainting for each window and batch, in enrichment for each
    batch, round and group.
    """
    found: list[list[Frame]] = [[]]
    for frame in frames:
        found[-1].append(frame)
        if not _grey(frame, 0).any():
            found.append([])
    return [episode for episode in found if episode]


def strip(frames: Sequence[Frame], image: int = 0) -> Image.Image:
    """The image after each iteration, and below it the entropies that the iteration ranked by; RGB.

    image: which of the call's images. Known tokens are pale, those that the iteration decided are outlined; the right
    column shows in which iteration each token was decided. At most `SHOWN` iterations are shown, evenly spaced.
    """
    decided, most = _decided(frames, image), _most(frames, image)
    chosen = sorted({round(place) for place in np.linspace(0, len(frames) - 1, min(len(frames), SHOWN))})
    side = _shown(frames[0].pictures[image], STRIP_SIDE).width
    lines = -(-len(chosen) // PER_LINE)
    per_line = -(-len(chosen) // lines)
    label, head, legend = text_width("iteration") + 3 * _GAP, _TEXT + 2 * _GAP, max(side, 132)
    height = head + 2 * side + _GAP
    width = label + per_line * (side + _GAP) + 2 * _GAP + legend + 2 * _GAP
    page = Image.new("RGB", (width, lines * (height + 2 * _GAP) + _GAP), _PAPER)
    draw = ImageDraw.Draw(page)
    for place, index in enumerate(chosen):
        frame, (line, column) = frames[index], divmod(place, per_line)
        left, top = label + column * (side + _GAP), _GAP + line * (height + 2 * _GAP)
        draw.text((left + side / 2, top + head / 2), str(index + 1), _INK, font(bold=True), anchor="mm")
        page.paste(_shown(frame.pictures[image], STRIP_SIDE), (left, top + head))
        entropies = _entropy_map(frame.entropies[image], side, most, _now(frame, image))
        page.paste(entropies, (left, top + head + side + _GAP))
        if column == 0:
            for row, name in enumerate(("picture", "entropy")):
                middle = top + head + row * (side + _GAP) + side / 2
                draw.text((label - _GAP, middle), name, _PALE, font(), anchor="rm")
    draw.text((label - _GAP, _GAP + head / 2), "iteration", _PALE, font(), anchor="rm")
    left, top = width - legend - 2 * _GAP, _GAP
    draw.text((left, top + head / 2), "decided in", _PALE, font(), anchor="lm")
    page.paste(_order_map(decided, len(frames), side), (left, top + head))
    _legend(page, left, top + head + side + 2 * _GAP, legend, most)
    return page


def animation(frames: Sequence[Frame], image: int = 0) -> tuple[list[Image.Image], list[int]]:
    """The same as an animation, entropies beside the image: pages (RGB, of one size), and their times in ms."""
    decided, most = _decided(frames, image), _most(frames, image)
    side = _shown(frames[0].pictures[image], ANIMATION_SIDE).width
    edge, head = 2 * _GAP, _TEXT + 3 * _GAP
    size = (2 * side + 3 * edge, head + side + 64)
    pages = []
    for index, frame in enumerate(frames):
        page = Image.new("RGB", size, _PAPER)
        draw = ImageDraw.Draw(page)
        draw.text((edge, head / 2), f"iteration {index + 1} of {len(frames)}", _INK, font(bold=True), anchor="lm")
        page.paste(_shown(frame.pictures[image], ANIMATION_SIDE), (edge, head))
        right = side + 2 * edge
        page.paste(_entropy_map(frame.entropies[image], side, most, _now(frame, image)), (right, head))
        done = int(((decided >= 0) & (decided <= index)).sum())
        count = f"{done} of {int((decided >= 0).sum())} tokens decided"
        draw.text((right + side, head / 2), count, _PALE, font(), anchor="rm")
        _scale(page, edge, head + side + _GAP, 2 * side + edge, most)
        pages.append(page)
    return pages, [*_pace(len(frames) - 1), _HOLD_MS]


def there_and_back(pictures: Sequence[Image.Image]) -> tuple[list[Image.Image], list[int]]:
    """Images of one size from one end to the other and back, enlarged; and the duration of each in ms."""
    shown = [_shown(picture.convert("RGB"), ANIMATION_SIDE) for picture in pictures]
    times = [700, *[160] * (len(shown) - 2), 700][: len(shown)]
    return shown + shown[-2:0:-1], times + times[-2:0:-1]


def save_gif(path: Path, pages: Sequence[Image.Image], milliseconds: Sequence[int]) -> None:
    """Write pages of one size as an animation that repeats for ever, to a name that `atomic_path` gave."""
    colours = _palette(pages)
    indexed = [page.quantize(palette=colours, dither=Image.Dither.NONE) for page in pages]
    indexed[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=indexed[1:],
        duration=list(milliseconds),
        loop=0,
        optimize=False,
    )


def _palette(pages: Sequence[Image.Image]) -> Image.Image:
    """One palette for all pages, so that unchanged parts do not flicker; the page's own colours are exact."""
    some = [pages[round(place)] for place in np.linspace(0, len(pages) - 1, min(len(pages), 8))]
    joined = Image.new("RGB", (some[0].width, sum(page.height for page in some)))
    for place, page in enumerate(some):
        joined.paste(page, (0, place * page.height))
    own = [_rgb(colour) for colour in (_PAPER, _INK, _PALE, _KNOWN, _DECIDED)] + [(GREY,) * 3]
    values = joined.quantize(256 - len(own), method=Image.Quantize.MAXCOVERAGE).getpalette() or []
    found = [tuple(values[start : start + 3]) for start in range(0, len(values), 3)]
    # Pillow rounds before it looks for the nearest: a colour close to one of the page's own would replace it.
    far = [one for one in found if all(max(abs(a - b) for a, b in zip(one, mine, strict=True)) > 8 for mine in own)]
    colours = [*own, *far][:256]
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for colour in colours for value in colour])
    return palette


def _pace(count: int) -> list[int]:
    each = min(max(_WHOLE_MS // max(count, 1), 80), 450)
    return [each // 10 * 10] * count  # GIF counts hundredths of a second


def _decided(frames: Sequence[Frame], image: int) -> NDArray[np.int64]:
    """The index of the frame that decided each token last, [g, g]; -1 where none did."""
    found = np.full(frames[0].entropies[image].shape, -1)
    for index, frame in enumerate(frames):
        found[_now(frame, image)] = index
    return found


def _most(frames: Sequence[Frame], image: int) -> float:
    """The upper end of the scale in bits: the largest entropy, rounded up to a tenth."""
    largest = max(float(np.nanmax(frame.entropies[image])) for frame in frames)
    return min(max(np.ceil(largest * 10 - 1e-6) / 10, 0.1), 1.0)


def _now(frame: Frame, image: int) -> NDArray[np.bool_]:
    """The tokens that the frame decides, [g, g]."""
    return ~np.isnan(frame.entropies[image]) & ~_grey(frame, image)


def _grey(frame: Frame, image: int) -> NDArray[np.bool_]:
    """The tokens that the frame leaves undecided, [g, g]: those whose pixels are all grey."""
    grid = len(frame.entropies[image])
    grey = (np.asarray(frame.pictures[image]) == GREY).all(axis=-1)
    patch = len(grey) // grid
    return grey.reshape(grid, patch, grid, patch).all(axis=(1, 3))


def _shown(picture: Image.Image, side: int) -> Image.Image:
    """An image whose longer side is near `side`: enlarged by a whole factor, or reduced."""
    longest = max(picture.size)
    if longest > side * 4 / 3:
        scale = side / longest
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        return picture.resize(size, Image.Resampling.LANCZOS)
    factor = max(1, round(side / longest))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _matplotlib() -> Any:
    require("evaluation", "drawing a trace")
    import matplotlib

    return matplotlib


def _entropy_map(entropies: Map, side: int, most: float, decided: NDArray[np.bool_]) -> Image.Image:
    """Entropies [g, g] from 0 to `most` bits as a square: known tokens pale, `decided` ones outlined."""
    shares = np.nan_to_num(entropies).clip(0, most) / most
    colours = (_matplotlib().colormaps[_ENTROPY](shares)[..., :3] * 255).round().astype(np.uint8)
    colours[np.isnan(entropies)] = _rgb(_KNOWN)
    page = Image.fromarray(colours).resize((side, side), Image.Resampling.NEAREST)
    draw, cell = ImageDraw.Draw(page), side / len(decided)
    thick = max(1, round(cell / 14))
    for row, column in zip(*np.nonzero(decided), strict=True):
        box = (round(column * cell), round(row * cell), round((column + 1) * cell) - 1, round((row + 1) * cell) - 1)
        draw.rectangle(box, outline=_DECIDED, width=thick)
    return page


def _order_map(decided: NDArray[np.int64], count: int, side: int) -> Image.Image:
    """Which of `count` frames decided each token [g, g]: the later the darker, with its number where there is room."""
    share = decided / max(count - 1, 1)
    colours = (_matplotlib().colormaps[_ORDER](0.12 + 0.8 * share.clip(0, 1))[..., :3] * 255).round().astype(np.uint8)
    colours[decided < 0] = _rgb(_KNOWN)
    page = Image.fromarray(colours).resize((side, side), Image.Resampling.NEAREST)
    draw, cell = ImageDraw.Draw(page), side / len(decided)
    if cell < 1.5 * _TEXT:
        return page
    for (row, column), index in np.ndenumerate(decided):
        if index >= 0:
            middle = ((column + 0.5) * cell, (row + 0.5) * cell)
            ink = _PAPER if share[row, column] > 0.5 else _INK
            draw.text(middle, str(index + 1), ink, font(), anchor="mm")
    return page


def _legend(page: Image.Image, left: int, top: int, width: int, most: float) -> None:
    _bar(page, left, top, width, most)
    for row, swatch in enumerate(_SWATCHES):
        _swatch(page, left, top + 46 + row * 24, swatch)


def _scale(page: Image.Image, left: int, top: int, width: int, most: float) -> None:
    half = (width - 2 * _GAP) // 2
    _bar(page, left + half + 2 * _GAP, top, half, most)
    for swatch in _SWATCHES:
        _swatch(page, left, top + 4, swatch)
        left += 22 + text_width(swatch[2]) + 2 * _GAP


def _swatch(page: Image.Image, left: int, top: int, swatch: tuple[str | None, str | None, str]) -> None:
    fill, outline, text = swatch
    draw = ImageDraw.Draw(page)
    draw.rectangle((left, top, left + 13, top + 13), fill, outline, 2)
    draw.text((left + 22, top + 7), text, _INK, font(), anchor="lm")


def _bar(page: Image.Image, left: int, top: int, width: int, most: float) -> None:
    shades = (_matplotlib().colormaps[_ENTROPY](np.linspace(0, 1, width))[:, :3] * 255).round().astype(np.uint8)
    page.paste(Image.fromarray(np.tile(shades, (12, 1, 1))), (left, top))
    draw = ImageDraw.Draw(page)
    for x, text, anchor in ((left, "0", "la"), (left + width / 2, "bits", "ma"), (left + width, f"{most:.2g}", "ra")):
        draw.text((x, top + 16), text, _INK, font(), anchor=anchor)


@cache
def font(*, bold: bool = False) -> ImageFont.FreeTypeFont:
    """matplotlib's own, which is there wherever matplotlib is."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(_matplotlib().get_data_path(), "fonts", "ttf", name)), _TEXT)


def text_width(text: str) -> int:
    """Pixels of a line of text."""
    return round(font().getlength(text))


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))
