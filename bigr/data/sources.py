"""Finds the pictures of an image folder, their classes, and the split into train and val.

Two layouts: `train/<class>/…` with `val/<class>/…`, and `<class>/…` (or `train/<class>/…` alone), split by a seeded
fraction. Pictures are found at any depth below a class folder, through links too. Hidden names are passed over; files
without an image suffix are counted as ignored. Nothing here opens a file, and the order in which the file system lists
them does not matter.
"""

import logging
import os
import re
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
"""A picture's path below the source, with forward slashes, and its label."""


@dataclass(frozen=True)
class Source:
    """What a folder holds. classes: in the natural order of their names; items: per split, shuffled across classes."""

    root: Path
    classes: list[str]
    items: dict[str, list[Item]]
    ignored: int


def discover(root: Path, *, val_fraction: float, seed: int, warn: bool = True) -> Source:
    """List the folder. `val_fraction` and `seed` choose the pictures held out where there is no `val/`.

    Each class with two or more pictures then gives at least one to val and keeps at least one. A class may be missing
    from `val/`; one that only `val/` has is an error. Raises `BigrError` for a missing or empty folder, an empty class,
    and layouts that could be meant in two ways. warn: whether folders that are passed over are logged.
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
    """Sorts names so that numbers in them count as numbers: 9 before 10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p], name


def printable(path: str) -> str:
    """A file name as valid text: bytes that are no UTF-8 are written as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _rank(seed: int, purpose: str, path: str) -> tuple[int, str]:
    """Orders pictures at random, each by itself: a picture added or removed leaves the others in their order."""
    return derive_seed(seed, "shards", purpose, printable(path)), path


def _held_out(paths: list[str], fraction: float, seed: int) -> set[str]:
    count = min(len(paths) - 1, max(1, round(len(paths) * fraction)))
    return set(sorted(paths, key=lambda path: _rank(seed, "val", path))[:count])


def _entries(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the visible folders, sorted, and of everything else."""
    try:
        visible = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        _refuse(error)
    folders = {entry.name for entry in visible if entry.is_dir()}
    return sorted(folders), [entry.name for entry in visible if entry.name not in folders]


def _classes(root: Path, prefix: str) -> tuple[dict[str, list[str]], int]:
    """Class → its pictures' paths below `root`, sorted; and the number of files ignored."""
    base = root / prefix
    found: dict[str, list[str]] = {}
    folders, loose = _entries(base)
    ignored = len(loose)
    for name in folders:
        found[name], passed_over = _pictures(root, prefix + name)
        ignored += passed_over
    if not found:
        pictures = sum(name.lower().endswith(SUFFIXES) for name in loose)
        what = f"{pictures} images but no class folders; put them" if pictures else "no class folders; put images"
        raise BigrError(f"shards.source: {base} has {what} into one subfolder per class")
    if empty := [name for name, paths in found.items() if not paths]:
        raise BigrError(
            f"shards.source: class folder {prefix}{printable(empty[0])} of {root} has no image ({', '.join(SUFFIXES)})"
            + (f", nor have {len(empty) - 1} others" if len(empty) > 1 else "")
            + "; add some, or remove the folder"
        )
    return found, ignored


def _pictures(root: Path, folder: str) -> tuple[list[str], int]:
    pictures: list[str] = []
    ignored = 0
    seen: set[tuple[int, int]] = set()
    for here, folders, files in os.walk(root / folder, followlinks=True, onerror=_refuse):
        status = Path(here).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back up would be walked for ever
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        below = Path(here).relative_to(root).as_posix()
        visible = [name for name in files if not name.startswith(".")]
        chosen = [f"{below}/{name}" for name in visible if name.lower().endswith(SUFFIXES)]
        ignored += len(visible) - len(chosen)
        pictures += chosen
    return sorted(pictures), ignored


def _refuse(error: OSError) -> NoReturn:
    raise BigrError(f"shards.source: {error.filename} cannot be listed: {error.strerror}")
