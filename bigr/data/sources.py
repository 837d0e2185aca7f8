"""Finds the images of an image folder, their classes, and the split into train and val. Opens no file.

Two layouts: `train/<class>/…` with `val/<class>/…`, and `<class>/…` (or `train/<class>/…` alone), split by a seeded
fraction. Images are found at any depth below a class folder, through links too. Hidden names are skipped; files without
an image suffix are counted as ignored. The result does not depend on the order in which the file system lists files.
"""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from bigr.runtime.errors import BigrError
from bigr.runtime.seeds import derive_seed

log = logging.getLogger(__name__)

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp")
SPLITS = ("train", "val")
_OTHER_NAMES_OF_VAL = ("validation", "valid", "dev")

Item = tuple[str, int]
"""An image's path below the source, with forward slashes, and its label."""


@dataclass(frozen=True)
class Source:
    """A listed image folder.

    classes: in the natural order of their names; items: of each split, shuffled across classes; ignored: how many files
    are no images by their suffix.
    """

    root: Path
    classes: list[str]
    items: dict[str, list[Item]]
    ignored: int


def discover(root: Path, *, val_fraction: float, seed: int, warn: bool = True) -> Source:
    """List the folder `root`.

    val_fraction, seed: choose the val images if there is no `val/`, at least one of each class with two or more, never
    all. seed also orders the items. warn: whether skipped folders are logged.
    A class may be missing from `val/`. Raises `BigrError` for a missing or empty folder, an empty class, a class that
    only `val/` has, and ambiguous layouts.
    """
    if not root.exists():
        raise BigrError(f"shards.source: {root} does not exist; name a folder with one subfolder of images per class")
    if not root.is_dir():
        raise BigrError(f"shards.source: {root} is not a folder; name one with a subfolder of images per class")
    top, _ = _entries(root)
    if "val" in top and "train" in top:
        train, train_ignored = _classes(root, "train/")
        val, val_ignored = _classes(root, "val/")
        if unknown := sorted(set(val) - set(train), key=natural_key):
            raise BigrError(
                f"{root / 'val'}: class {printable(unknown[0])!r} is not in train/; add it there, or remove it"
            )
        if warn and (absent := sorted(set(train) - set(val), key=natural_key)):
            log.warning("%s: no class %s, nor %d more", root / "val", printable(absent[0]), len(absent) - 1)
        ignored, others = train_ignored + val_ignored, [name for name in top if name not in SPLITS]
    elif "val" in top:
        raise BigrError(f"shards.source: {root} has val/ but no train/; rename the class folders' parent to train/")
    else:
        alone = "train" in top and bool(_entries(root / "train")[0])
        others = [name for name in top if name != "train"] if alone else []
        if other := next((name for name in others if name in _OTHER_NAMES_OF_VAL), None):
            raise BigrError(f"shards.source: {root} has train/ and {other}/; rename {other}/ to val/")
        everything, ignored = _classes(root, "train/" if alone else "")
        train, val = {}, {}
        for name, paths in everything.items():
            held_out = _held_out(paths, val_fraction, seed)
            val[name] = [path for path in paths if path in held_out]
            train[name] = [path for path in paths if path not in held_out]
        if not any(val.values()):
            raise BigrError(f"shards.source: {root} has one image per class, which leaves none for val; add images")
    if warn and others:
        log.warning("%s: beside train/, these folders are not read: %s", root, ", ".join(map(printable, others)))
    classes = sorted(train, key=natural_key)
    label = {name: index for index, name in enumerate(classes)}
    items: dict[str, list[Item]] = {}
    for split, found in (("train", train), ("val", val)):
        listed = [(path, label[name]) for name, paths in found.items() for path in paths]
        items[split] = sorted(listed, key=lambda item: _rank(seed, "order", item[0]))
    return Source(root, classes, items, ignored)


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """A sort key that compares numbers within names as numbers: 9 before 10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p], name


def printable(path: str) -> str:
    """A file name as valid text: bytes that are not UTF-8 become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def image_files(root: Path, folder: str = "") -> tuple[list[str], int]:
    """Paths below `root`, sorted, of the files in `root/folder` with an image suffix, at any depth; the ignored count.

    Links are followed, each folder is visited once, hidden names are skipped. Raises `OSError` for a folder that cannot
    be listed.
    """

    def refuse(error: OSError) -> NoReturn:
        raise error

    found: list[str] = []
    ignored = 0
    seen: set[tuple[int, int]] = set()
    for here, folders, files in os.walk(root / folder, followlinks=True, onerror=refuse):
        status = Path(here).stat()
        if (status.st_dev, status.st_ino) in seen:  # else a link to a folder above would be followed for ever
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(here).relative_to(root).as_posix()
        prefix = "" if below == "." else f"{below}/"  # a path made by `/` would take ten times as long
        visible = [name for name in files if not name.startswith(".")]
        images = [prefix + name for name in visible if name.lower().endswith(SUFFIXES)]
        ignored += len(visible) - len(images)
        found += images
    return sorted(found), ignored


def _rank(seed: int, purpose: str, path: str) -> tuple[int, str]:
    """A random sort key of each image by itself: an image added or removed leaves the order of the others."""
    return derive_seed(seed, "shards", purpose, printable(path)), path


def _held_out(paths: list[str], fraction: float, seed: int) -> set[str]:
    count = min(len(paths) - 1, max(1, round(len(paths) * fraction)))
    return set(sorted(paths, key=lambda path: _rank(seed, "val", path))[:count])


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the visible folders, sorted, and of all other visible entries."""
    with _listing():
        visible = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    folders = {entry.name for entry in visible if entry.is_dir()}
    return sorted(folders), [entry.name for entry in visible if entry.name not in folders]


def _classes(root: Path, prefix: str) -> tuple[dict[str, list[str]], int]:
    """Class → paths of its images below `root`, sorted; and the number of ignored files."""
    base = root / prefix
    found: dict[str, list[str]] = {}
    folders, loose = _entries(base)
    ignored = len(loose)
    for name in folders:
        with _listing():
            found[name], others = image_files(root, prefix + name)
        ignored += others
    if not found:
        images = sum(name.lower().endswith(SUFFIXES) for name in loose)
        what = f"{images} images but no class folders; put them" if images else "no class folders; put images"
        raise BigrError(f"shards.source: {base} has {what} into one subfolder per class")
    if empty := [name for name, paths in found.items() if not paths]:
        raise BigrError(
            f"shards.source: class folder {prefix}{printable(empty[0])} of {root} has no image ({', '.join(SUFFIXES)})"
            + (f", nor have {len(empty) - 1} others" if len(empty) > 1 else "")
            + "; add some, or remove the folder"
        )
    return found, ignored


@contextmanager
def _listing() -> Iterator[None]:
    """Makes `BigrError` of a folder that cannot be listed."""
    try:
        yield
    except OSError as error:
        raise BigrError(f"shards.source: {error.filename} cannot be listed: {error.strerror}") from None
