"""Files that the commands of bigr/cli/images_command.py read and write.

Each file is whole or not there, lies directly in the folder of `--out`, and is never one of those that are read.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bigr.runtime.errors import BigrError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
"""What is taken from a folder; a file that is named is told by its content."""

_LONGEST = 72  # bytes of a name: two of them, and what is appended, must fit into the 255 of a file's name


@dataclass(frozen=True)
class Input:
    """An image that was given: its file, a name for what is made from it, and its size (width, height), upright."""

    path: Path
    name: str
    size: tuple[int, int]


def expanded(paths: Sequence[Path]) -> list[Path]:
    """Files as they are given, and the image files in folders, in the order of their paths."""
    found: list[Path] = []
    for path in paths:
        if not os.path.exists(path):  # noqa: PTH110 - Path.exists raises for a name that no file can have
            raise BigrError(f"{path}: no such file or folder; name images, or folders of them")
        inside = sorted(one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise BigrError(f"{path}: no JPEG, PNG or WebP file in this folder")
        found += inside
    return found


def inputs(paths: Sequence[Path]) -> list[Input]:
    """The images, each read once to check it. Raises `BigrError` with the name of a file that is no image."""
    from bigr.imaging.pictures import read_picture

    found = expanded(paths)
    sizes = [read_picture(path).size for path in found]
    names = names_of(path.stem for path in found)
    return [Input(path, name, size) for path, name, size in zip(found, names, sizes, strict=True)]


def names_of(texts: Iterable[str]) -> list[str]:
    """A file's name for each text: nothing that leads out of a folder, and no two the same."""
    found: list[str] = []
    taken: set[str] = set()
    following: dict[str, int] = {}
    for text in texts:
        plain = re.sub(r"[^\w.+-]+", "_", text).strip("._-") or "picture"
        plain = plain.encode()[:_LONGEST].decode(errors="ignore")
        name, key = plain, plain.casefold()
        number = following.get(key, 1)
        while name.casefold() in taken:
            number += 1
            name = f"{plain}-{number}"
        following[key] = number
        taken.add(name.casefold())
        found.append(name)
    return found


class Folder:
    """Where a command writes. read: files that it reads, which are not to be overwritten."""

    def __init__(self, path: Path, read: Iterable[Path] = ()) -> None:
        self.path = path
        self._read = {one.resolve() for one in read}

    def file(self, name: str) -> Path:
        """The path of a file in the folder. Raises `BigrError` if it is one of those read."""
        path = self.path / name
        if path.resolve() in self._read:
            raise BigrError(f"--out {self.path}: {name} there is one of the files that are read; name another folder")
        return path

    def picture(self, name: str, picture: "Image.Image") -> Path:
        """Write `name`.png."""
        from bigr.runtime.files import atomic_path

        path = self.file(f"{name}.png")
        with atomic_path(path) as temporary:
            picture.save(temporary, format="PNG")
        return path

    def animation(self, name: str, pages: "Sequence[Image.Image]", milliseconds: Sequence[int]) -> Path:
        """Write `name`.gif."""
        from bigr.imaging.trace import save_gif
        from bigr.runtime.files import atomic_path

        path = self.file(f"{name}.gif")
        with atomic_path(path) as temporary:
            save_gif(temporary, pages, milliseconds)
        return path

    def grid(
        self,
        name: str,
        rows: "Sequence[Sequence[Image.Image]]",
        captions: Sequence[str],
        names: Sequence[str] = (),
        **how: int | None,
    ) -> Path:
        """Write pictures of any size and their captions, row by row, as `name`.png: `bigr.imaging.grid.grid`."""
        from bigr.imaging.grid import grid

        return self.picture(name, grid(rows, captions, names, **how))
