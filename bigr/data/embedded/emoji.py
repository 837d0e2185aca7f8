"""Emoji with their names: a colour font rendered by Pillow, and Unicode's list of all sequences.

Some skin tones of some people are held out (`held_out`): the same person is in the training split in other tones, and
the same tone on others.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, features

from bigr.data.embedded.parquet_split import Captioned, write_parquet
from bigr.runtime.errors import BigrError
from bigr.runtime.files import atomic_folder
from bigr.runtime.seeds import derive_seed

_SEED = 0
_SIZE = 109
"""Of the only bitmaps in Noto Color Emoji, in pixels."""
_LINE = re.compile(r"^([0-9A-F ]+?) *; fully-qualified *# \S+ E[\d.]+ (.+)$")
_GROUP = re.compile(r"^# group: (.+)$")
_TONE = re.compile(r"\b(light|medium-light|medium|medium-dark|dark) skin tone\b")
_PACKAGES = "on Debian and Ubuntu: apt-get install fonts-noto-color-emoji unicode-data"


class Emoji(NamedTuple):
    """A sequence of code points, its name, and the number of its group."""

    text: str
    name: str
    group: int


def write_emoji(folder: Path, image_size: int, font: Path, names: Path, val_share: float) -> dict[str, int]:
    """Write train.parquet and val.parquet atomically; returns the number of images of each split.

    font: a font with colour bitmaps; names: emoji-test.txt of Unicode; val_share: of the emoji that have one skin tone,
    the share that is held out. Sequences that the font lacks are left out. Raises `BigrError` where a file is missing
    or is not what it should be.
    """
    listed, groups = read_names(names)
    face = _opened(font)
    with atomic_folder(folder) as temporary:
        return {
            split: write_parquet(
                temporary / f"{split}.parquet",
                _rendered([one for one in listed if held_out(one, val_share) == (split == "val")], face, image_size),
                groups,
            )
            for split in ("train", "val")
        }


def read_names(path: Path) -> tuple[list[Emoji], list[str]]:
    """All fully qualified sequences of emoji-test.txt in its order, and the names of their groups."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BigrError(
            f"dataset.emoji_names: {path} cannot be read ({reason}); name Unicode's emoji-test.txt; {_PACKAGES}"
        ) from None
    found, groups = list[Emoji](), list[str]()
    for line in lines:
        if group := _GROUP.match(line):
            groups.append(group[1])
        elif (match := _LINE.match(line)) and groups:
            text = "".join(chr(int(point, 16)) for point in match[1].split())
            found.append(Emoji(text, match[2], len(groups) - 1))
    if not found:
        raise BigrError(f"dataset.emoji_names: {path} lists no emoji; name Unicode's emoji-test.txt")
    used = sorted({one.group for one in found})
    return [one._replace(group=used.index(one.group)) for one in found], [groups[number] for number in used]


def held_out(emoji: Emoji, share: float) -> bool:
    """Whether an emoji is in the validation split: of those with exactly one skin tone, a share, drawn by the name."""
    tones = _TONE.findall(emoji.name)
    return len(tones) == 1 and derive_seed(_SEED, "emoji", emoji.name) < share * 2**63


def _opened(path: Path) -> ImageFont.FreeTypeFont:
    if not features.check("raqm"):
        raise BigrError("dataset.name: emoji needs Pillow with raqm, as its wheels have it; install the wheel")
    try:
        return ImageFont.truetype(path, _SIZE)
    except OSError as error:
        raise BigrError(
            f"dataset.emoji_font: {path} cannot be used ({error}); name a font with colour bitmaps, as "
            f"NotoColorEmoji.ttf; {_PACKAGES}"
        ) from None


def _rendered(listed: list[Emoji], font: ImageFont.FreeTypeFont, size: int) -> Iterator[Captioned]:
    blank = _picture("\U0010ffff", font)  # of no font
    missing = None if blank is None else blank.tobytes()
    for one in listed:
        image = _picture(one.text, font)
        if image is None or image.tobytes() == missing:
            continue
        yield Captioned(image.resize((size, size), Image.Resampling.BOX, reducing_gap=None), one.group, one.name)


def _picture(text: str, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """A sequence on white, square, RGB; None where the font shows it as several glyphs, or as nothing."""
    left, top, right, bottom = font.getbbox(text)
    width, height = int(right - left), int(bottom - top)
    if not 0 < width < 1.5 * _SIZE or height <= 0:
        return None
    side = max(width, height)
    image = Image.new("RGB", (side, side), "white")
    place = ((side - width) / 2 - left, (side - height) / 2 - top)
    ImageDraw.Draw(image).text(place, text, font=font, embedded_color=True)
    return image
