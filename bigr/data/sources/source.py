"""What all kinds of sources have in common: samples, parts, the split, class names."""

import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from bigr.data.images import ImageError
from bigr.data.sources.storage import Storage
from bigr.runtime.errors import BigrError
from bigr.runtime.seeds import derive_seed

log = logging.getLogger(__name__)

SPLITS = ("train", "val")
UNLABELLED = "image"
"""The name of the only class of images that come without labels."""
_NAMES_OF_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test",),
}


class Sample(NamedTuple):
    """One image of a source.

    name: where it is in the source, as valid text; split: train or val; image: a file, the bytes of one, pixels uint8
    [H, W] or [H, W, 3], or why it cannot be read; label: its class's number; text: its caption.
    """

    name: str
    split: str
    image: "Path | bytes | np.ndarray | ImageError"
    label: int
    text: str | None = None


class SourcePart(NamedTuple):
    """What one process reads and packs at a time.

    split: of all its images, or None where it has images of both; first: the number of its first image, by which the
    images are named; images: how many, or None where only reading tells; place: of numbers and text, for its source.
    """

    split: str | None
    first: int
    images: int | None
    place: tuple[Any, ...]


class Source(Protocol):
    """Images, in parts. Another process can get a copy of it: it holds no image, and no open file.

    kind: in words; where: the path or URL, as messages name it; classes: names in the order of the labels, or None
    where only reading all images tells how many there are; ignored: files that are no images.
    """

    @property
    def kind(self) -> str: ...

    @property
    def where(self) -> str: ...

    @property
    def classes(self) -> list[str] | None: ...

    @property
    def ignored(self) -> int: ...

    def name_classes(self, names: list[str]) -> None:
        """Give names to classes that have only numbers. Raises `BigrError` where they have names, or another number."""

    def counts(self) -> dict[str, int] | None:
        """Images of each split; None where only reading them all tells."""

    def prepare(self, folder: Path) -> None:
        """Write to `folder` what reading parts needs, if anything, so that every process finds it there."""

    def parts(self, images: int) -> list[SourcePart]:
        """All parts, of at most `images` images where the format leaves the choice. They are mixed and in no order."""

    def read(self, part: SourcePart) -> Iterator[Sample]:
        """The images of a part. Raises `BigrError` where the part as a whole cannot be read."""

    def state(self, part: SourcePart) -> list[Any]:
        """What changes with the files of a part: their names, sizes and times."""


@dataclass(frozen=True)
class Splitting:
    """How images are held out where a source has no val split, and ordered: a fraction, and the seed of both draws."""

    val_fraction: float
    seed: int

    def rank(self, purpose: str, name: str) -> int:
        """A random sort key of an image, by its name: one more image leaves the order of the others."""
        return derive_seed(self.seed, "shards", purpose, name)

    def split_of(self, name: str) -> str:
        """The split of an image that is drawn by itself."""
        return "val" if self.rank("val", name) < self.val_fraction * 2**63 else "train"

    def held_out(self, count: int) -> int:
        """How many of `count` images of a class are held out: at least one, never all."""
        return min(count - 1, max(1, round(count * self.val_fraction)))


def by_split(storage: Storage, names: Sequence[str]) -> dict[str, list[str]] | None:
    """Files by the split that a word in their path names, as in `imagenet-train-0001.tar` or `val/0001.tar`.

    Files of test are val where there are none of val, and else left out. None where no split is named, so that all are
    to be divided. Raises `BigrError` where only some files name one, or none names train.
    """
    found: dict[str, list[str]] = {split: [] for split in _NAMES_OF_SPLITS}
    others: list[str] = []
    for name in names:
        words = re.split(r"[^a-z0-9]+", name.lower())
        split = next((s for s, known in _NAMES_OF_SPLITS.items() if any(word in known for word in words)), None)
        (found[split] if split else others).append(name)
    test = found.pop("test")
    if test and found["val"]:
        log.warning("%s, and %d more files of test, are not read: there are files of val", test[0], len(test) - 1)
    found["val"] = found["val"] or test
    if not found["val"] and not (found["train"] and others):
        return None
    if others:
        raise BigrError(
            f"{storage.where(others[0])} says neither train nor val in its name, as other files there do; rename it, "
            "or name the files to read by a pattern with braces"
        )
    if not found["train"]:
        raise BigrError(
            f"{storage.where()} has files of val ({found['val'][0]}) but none of train; add them, or rename those"
        )
    return found


def class_names(storage: Storage, folder: str = "") -> list[str] | None:
    """The names in `labels.txt` (one in each line) or `class_names.json` (a list, or names by number) of a folder.

    Raises `BigrError` for a file that is neither.
    """
    for name in ("labels.txt", "class_names.json"):
        content = storage.read_if_there(folder + name)
        if content is None:
            continue
        where = storage.where(folder + name)
        try:
            text = content.decode("utf-8-sig")
            found = json.loads(text) if name.endswith(".json") else [line.strip() for line in text.splitlines()]
            if isinstance(found, dict):
                found = [found[str(number)] for number in range(len(found))]
        except (ValueError, KeyError) as error:
            raise BigrError(
                f'{where} cannot be read ({error}); it must be a list of class names, or names by number, {{"0": …}}'
            ) from None
        while name.endswith(".txt") and found and not found[-1]:  # empty lines at the end
            found.pop()
        return checked_names(found, where)
    return None


def checked_names(names: Any, where: str) -> list[str]:
    """The names, if they are a list of different, non-empty texts; else `BigrError`."""
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise BigrError(f"{where} must be a list of class names, one or more")
    try:
        "".join(names).encode()
    except UnicodeEncodeError:  # an escape of half a character, as JSON may have it
        raise BigrError(f"{where} has a class name that is not valid text; correct it") from None
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BigrError(f"{where} has the class {twice!r} twice; names must differ")
    return names


def named(classes: list[str] | None, names: list[str], where: str) -> list[str]:
    """The names in place of the classes' numbers. Raises `BigrError` where these have names, or are not as many."""
    if classes is not None and classes != [str(number) for number in range(len(classes))] and classes != names:
        raise BigrError(f"{where} names its classes itself ({classes[0]}, …); leave shards.class_names empty")
    if classes is not None and len(classes) != len(names):
        raise BigrError(f"{where} has {len(classes)} classes, shards.class_names {len(names)} names; name each")
    return names


def label_of(value: Any, classes: list[str] | None) -> int:
    """A label from a number, its text, or a class's name. Raises `ImageError` for anything else."""
    text = value.decode("utf-8", "replace").strip() if isinstance(value, bytes) else value
    if classes is not None and text in classes:
        return classes.index(text)
    try:
        label = int(text)
    except (TypeError, ValueError):
        known = "there is no labels.txt with class names" if classes is None else "no class has this name"
        raise ImageError(f"its label {text!r} is not a number, and {known}") from None
    if label < 0 or (classes is not None and label >= len(classes)):
        most = "0 or more" if classes is None else f"in [0, {len(classes)})"
        raise ImageError(f"its label is {label}; labels are {most}")
    return label


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """A sort key that compares numbers within names as numbers: 9 before 10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p], name
