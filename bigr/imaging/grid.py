"""Pictures beside each other, each with a caption; small ones are enlarged by a whole factor, without smoothing."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from bigr.imaging.trace import font, text_width

SIDE = 160
"""Pixels of a picture's longer side, about, at least."""
LARGEST = 320
"""And at most."""
ACROSS = 10
"""Pictures in a row at most, where there is but one row."""
_INK, _PALE, _PAPER = "#2b2f36", "#7a828d", "#ffffff"
_GAP, _HEAD = 8, 24
_LONGEST_NAME = 200  # pixels


def grid(
    rows: Sequence[Sequence[Image.Image]],
    captions: Sequence[str],
    names: Sequence[str] = (),
    *,
    across: int | None = ACROSS,
) -> Image.Image:
    """The rows below each other, RGB.

    captions: one for each picture of a row, above it; names: one for each row, beside it. across: where there is one
    row, it is broken after so many; None: never.
    """
    if len(rows) == 1 and not names and across is not None:
        (row,) = rows
        lines = [(row[at : at + across], captions[at : at + across], "") for at in range(0, len(row), across)]
    else:
        lines = [(row, captions, name) for row, name in zip(rows, names or [""] * len(rows), strict=True)]
    cell = _cell([picture for row in rows for picture in row])
    label = max((text_width(_cut(name, _LONGEST_NAME)) + 2 * _GAP for name in names), default=_GAP)
    most = max(len(line[0]) for line in lines)
    step = cell[0] + _GAP, _HEAD + cell[1] + _GAP
    page = Image.new("RGB", (label + most * step[0], len(lines) * step[1]), _PAPER)
    draw = ImageDraw.Draw(page)
    for down, (row, above, name) in enumerate(lines):
        top = down * step[1] + _HEAD
        draw.text((label - _GAP, top + cell[1] / 2), _cut(name, _LONGEST_NAME), _INK, font(), anchor="rm")
        for place, (picture, caption) in enumerate(zip(row, above, strict=True)):
            left = label + place * step[0]
            fitted = _fitted(picture, cell)
            page.paste(fitted, (left + (cell[0] - fitted.width) // 2, top + (cell[1] - fitted.height) // 2))
            draw.text((left + cell[0] / 2, top - _HEAD / 2), _cut(caption, cell[0]), _PALE, font(), anchor="mm")
    return page


def preview(picture: Image.Image) -> Image.Image:
    """The picture no larger than a grid shows it, so that those of many files fit into memory."""
    small = picture.copy()
    small.thumbnail((LARGEST, LARGEST))
    return small


def _cell(pictures: Sequence[Image.Image]) -> tuple[int, int]:
    width, height = (max(picture.size[side] for picture in pictures) for side in (0, 1))
    longest = max(width, height)
    scale = min(1.0, LARGEST / longest) if longest >= SIDE else -(-SIDE // longest)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _fitted(picture: Image.Image, cell: tuple[int, int]) -> Image.Image:
    scale = min(cell[0] / picture.width, cell[1] / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    how = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    return picture.convert("RGB").resize(size, how)


def _cut(text: str, width: int) -> str:
    if text_width(text) <= width:
        return text
    while text and text_width(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
