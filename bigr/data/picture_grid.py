"""Grids of images as PNG files, with captions below the images where there are any."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bigr.models.autoencoder.tokenizer import to_uint8
from bigr.runtime.files import atomic_path

GAP = 1  # pixels between two images, before enlarging
SMALLEST_SIDE = 48  # an image smaller than this is enlarged by a whole factor, so that a person can see it
_CAPTION_WIDTH = 112  # of a column, at least: room for two or three words in a line
_CAPTION_GAP = 8  # pixels between two captions, at least
_FONT_SIZE, _LINE, _MOST_LINES = 12, 15, 4  # pixels, pixels, lines


def pairs(above: Tensor, below: Tensor) -> Tensor:
    """Images [n, 3, H, W] and their counterparts → [n, 3, 2H + 1, W], each above its counterpart."""
    gap = torch.ones_like(above[:, :, :GAP])
    return torch.cat([above, gap, below], dim=2)


def save_grid(path: Path, images: Tensor, columns: int) -> None:
    """Write images [n, 3, H, W] (floats in [0, 1], or uint8) as one PNG, row by row, on white."""
    images = images.detach().cpu()
    if images.dtype != torch.uint8:
        images = to_uint8(images)
    count, _, height, width = images.shape
    rows = math.ceil(count / columns)
    grid = torch.full((3, rows * (height + GAP) + GAP, columns * (width + GAP) + GAP), 255, dtype=torch.uint8)
    for i, image in enumerate(images):
        top, left = GAP + i // columns * (height + GAP), GAP + i % columns * (width + GAP)
        grid[:, top : top + height, left : left + width] = image
    picture = Image.fromarray(grid.permute(1, 2, 0).numpy())
    if (factor := math.ceil(SMALLEST_SIDE / width)) > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    with atomic_path(path) as temporary:
        picture.save(temporary)


def save_captioned_grid(path: Path, images: Tensor, captions: Sequence[str], columns: int) -> None:
    """As `save_grid`, with each image's caption below it, wrapped, and cut where it needs more than four lines.

    The font is Pillow's own. It has the letters of English; others are boxes.
    """
    images = images.detach().cpu()
    if images.dtype != torch.uint8:
        images = to_uint8(images)
    height, width = images.shape[2:]
    factor = math.ceil(_CAPTION_WIDTH / width)
    font = ImageFont.load_default(_FONT_SIZE)
    lines = [wrapped(caption, font, width * factor) for caption in captions]
    rows = [lines[start : start + columns] for start in range(0, len(lines), columns)]
    gap = max(GAP * factor, _CAPTION_GAP)
    tops = [gap]
    for row in rows:
        tops.append(tops[-1] + height * factor + _LINE * max(map(len, row)) + gap)
    picture = Image.new("RGB", (columns * (width * factor + gap) + gap, tops[-1]), "white")
    pen = ImageDraw.Draw(picture)
    for number, (image, caption) in enumerate(zip(images, lines, strict=True)):
        left, top = gap + number % columns * (width * factor + gap), tops[number // columns]
        enlarged = Image.fromarray(image.permute(1, 2, 0).numpy())
        picture.paste(enlarged.resize((width * factor, height * factor), Image.Resampling.NEAREST), (left, top))
        for place, line in enumerate(caption):
            pen.text((left, top + height * factor + place * _LINE), line, "black", font)
    with atomic_path(path) as temporary:
        picture.save(temporary)


def wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """A text as lines of at most `width` pixels, broken at spaces, or within words that are wider.

    At most four lines; the last ends with … where the text goes on. Characters that do not print are left out.
    """
    words = "".join(c if c.isprintable() else " " for c in text[: 100 * _MOST_LINES]).split()
    lines = [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) > _MOST_LINES:
        last = lines[_MOST_LINES - 1]
        while font.getlength(f"{last}…") > width:
            last = last[:-1]
        lines = [*lines[: _MOST_LINES - 1], f"{last}…"]
    return [line for line in lines if line]
