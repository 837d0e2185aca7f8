"""An image folder: `train/<class>/…` with `val/<class>/…`, or `<class>/…` (or `train/<class>/…` alone).

Images are found at any depth below a class folder. Listing opens no image, and its result does not depend on the order
in which the storage lists files. Captions stand in `.txt` files beside the images, or in a table (`captions.py`), which
may also give the labels. With captions, class folders may be absent.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigr.data.images import ImageError
from bigr.data.sources.captions import read_table, table_in
from bigr.data.sources.listing import Entry, Listing, Rows, joined
from bigr.data.sources.source import SPLITS, UNLABELLED, Sample, SourcePart, Splitting, class_names, named, natural_key
from bigr.data.sources.storage import SUFFIXES, Images, LocalStorage, Storage
from bigr.data.sources.tar_files import TAR_SUFFIXES
from bigr.runtime.errors import BigrError
from bigr.runtime.extras import require
from bigr.runtime.paths import printable
from bigr.runtime.remote_files import Unreachable
from bigr.runtime.threads import map_ahead

log = logging.getLogger(__name__)

_OTHER_NAMES_OF_VAL = ("validation", "valid", "dev", "test")
_REQUESTS = 16
"""Remote images that are read at a time by one process."""
_LISTING = "images.arrow"
_OTHER_KINDS = (*TAR_SUFFIXES, ".parquet", ".npz", ".gz", "-ubyte", ".bin")
"""Ends of the names of files that are sources of other kinds."""


@dataclass
class ImageFolder:
    """A listed image folder; see `bigr.data.sources.source.Source`."""

    storage: Storage
    listing: Listing
    kind: str = "image folder"

    @property
    def where(self) -> str:
        return self.storage.where()

    @property
    def classes(self) -> list[str]:
        found: list[str] = self.listing.about["classes"]
        return found

    @property
    def ignored(self) -> int:
        return int(self.listing.about["ignored"])

    def name_classes(self, names: list[str]) -> None:
        self.listing.about["classes"] = named(self.classes, names, self.where)

    def counts(self) -> dict[str, int]:
        train = int(self.listing.about["train"])
        return {"train": train, "val": len(self.listing) - train}

    def prepare(self, folder: Path) -> None:
        if self.listing.path is None:
            self.listing.save(folder / _LISTING)

    def parts(self, images: int) -> list[SourcePart]:
        counts, found = self.counts(), []
        for split, start in (("train", 0), ("val", counts["train"])):
            for first in range(0, counts[split], images):
                number = min(images, counts[split] - first)
                found.append(SourcePart(split, first, number, (start + first, start + first + number)))
        return found

    def read(self, part: SourcePart) -> Iterator[Sample]:
        split = part.split or "train"

        def sample(entry: Entry) -> Sample:
            try:
                text = _caption(self.storage, entry.file) if entry.captioned else entry.text
                return Sample(printable(entry.file), split, self.storage.picture(entry.file), entry.label, text)
            except Unreachable:  # else an outage would leave images out
                raise
            except BigrError as error:
                reason = error if isinstance(error, ImageError) else ImageError(str(error))
                return Sample(printable(entry.file), split, reason, entry.label)

        entries = self.listing.rows(*part.place)
        if isinstance(self.storage, LocalStorage):
            return map(sample, entries)
        return map_ahead(sample, entries, _REQUESTS, ahead=2 * _REQUESTS)

    def state(self, part: SourcePart) -> list[Any]:
        """Remote images are not asked for, one by one: for them, the names."""
        local = isinstance(self.storage, LocalStorage)
        return [
            [self.storage.state(e.file) if local else e.file, e.label, e.text]
            + ([self.storage.state(caption_of(e.file))] if e.captioned and local else [])
            for e in self.listing.rows(*part.place)
        ]


def caption_of(image: str) -> str:
    """The name of the caption beside an image."""
    return image.rpartition(".")[0] + ".txt"


def _caption(storage: Storage, image: str) -> str:
    try:
        return storage.read(caption_of(image)).decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ImageError(f"its caption {printable(caption_of(image))} is not UTF-8") from None


@dataclass
class _Class:
    """Images of one class: their names, which have a caption beside them, and captions from a table, in order."""

    files: list[str]
    captioned: set[str]
    texts: list[str | None] | None = None

    def chosen(self, kept: set[str], inside: bool) -> "_Class":
        places = [place for place, file in enumerate(self.files) if (file in kept) == inside]
        texts = None if self.texts is None else [self.texts[place] for place in places]
        return _Class([self.files[place] for place in places], self.captioned, texts)


def open_image_folder(storage: Storage, splitting: Splitting, *, warn: bool = True) -> ImageFolder:
    """List a folder.

    splitting: chooses the val images if there is no `val/`, at least one of each class with two or more, never all; it
    also orders the images. warn: whether skipped folders are logged. A class may be missing from `val/`. Raises
    `BigrError` for an empty folder, an empty class, a class that only `val/` has, and ambiguous layouts.
    """
    require("train", "listing images")
    where = storage.where()
    top, files = storage.entries()
    table = table_in(files, where)
    if "val" in top and "train" in top and table is None:
        train, train_ignored = _classes(storage, "train/")
        val, val_ignored = _classes(storage, "val/")
        if unknown := sorted(set(val) - set(train), key=natural_key):
            raise BigrError(
                f"{storage.where('val')}: class {printable(unknown[0])!r} is not in train/; add it there, or remove it"
            )
        if warn and (absent := sorted(set(train) - set(val), key=natural_key)):
            log.warning("%s: no class %s, nor %d more", storage.where("val"), printable(absent[0]), len(absent) - 1)
        ignored, others = train_ignored + val_ignored, [name for name in top if name not in SPLITS]
    elif "val" in top and "train" not in top:
        raise BigrError(f"{where} has val/ but no train/; rename the class folders' parent to train/")
    else:
        alone = "train" in top and table is None and _divided(storage)
        others = [name for name in top if name != "train"] if alone else []
        if other := next((name for name in others if name in _OTHER_NAMES_OF_VAL), None):
            raise BigrError(f"{where} has train/ and {other}/; rename {other}/ to val/")
        everything, ignored = _classes(storage, "train/" if alone else "")
        train, val = _split(everything, splitting, named=table is not None)
        if not any(found.files for found in val.values()):
            raise BigrError(f"{where} has one image per class, which leaves none for val; add images")
    if warn and others:
        log.warning("%s: beside train/, these folders are not read: %s", where, ", ".join(map(printable, others)))
    classes = _in_order(storage, "train/" if "train" in top and table is None else "", list(train))
    number = {name: label for label, name in enumerate(classes)}
    tables = {}
    for split, found in (("train", train), ("val", val)):
        rows = Rows(splitting)
        for name, one in found.items():
            rows.add(number[name], one.files, one.captioned, one.texts)
        tables[split] = rows.table()
    about = {"kind": "image folder", "root": where, "classes": [printable(name) for name in classes]}
    return ImageFolder(storage, joined(tables, {**about, "ignored": ignored}))


def _in_order(storage: Storage, prefix: str, classes: list[str]) -> list[str]:
    """The classes of a table in the order of `labels.txt`, where there is one; others in natural order."""
    names = class_names(storage, prefix) if table_in(storage.entries(prefix)[1], storage.where(prefix)) else None
    if names is None or not set(classes) <= set(names):  # without labels in the table, folders may be the classes
        return sorted(classes, key=natural_key)
    if absent := [name for name in names if name not in classes]:
        raise BigrError(
            f"{storage.where(prefix.rstrip('/'))}: no training image has the class {absent[0]!r}; add some, or remove "
            "the name"
        )
    return names


def _divided(storage: Storage) -> bool:
    """Whether `train/` holds the classes, and is not itself one."""
    folders, files = storage.entries("train/")
    return bool(folders) or table_in(files, storage.where("train")) is not None


def _split(
    everything: dict[str, _Class], splitting: Splitting, named: bool
) -> tuple[dict[str, _Class], dict[str, _Class]]:
    """Each class's images for training and those held out.

    named: a table lists the images; where all of them are in train/ and val/, these are the splits.
    """
    train, val = {}, {}
    folders = {file.partition("/")[0] for found in everything.values() for file in found.files}
    divided = named and folders == set(SPLITS)
    for name, found in everything.items():
        if divided:
            held_out = {file for file in found.files if file.startswith("val/")}
        else:
            ranked = sorted(found.files, key=lambda file: (splitting.rank("val", printable(file)), file))
            held_out = set(ranked[: splitting.held_out(len(found.files))])
        train[name], val[name] = found.chosen(held_out, False), found.chosen(held_out, True)
    return train, val


def _classes(storage: Storage, prefix: str) -> tuple[dict[str, _Class], int]:
    """Class → its images, sorted; and the number of ignored files."""
    folders, loose = storage.entries(prefix)
    if table := table_in(loose, storage.where(prefix)):
        return _of_table(storage, prefix, table)
    found: dict[str, _Class] = {}
    flat = Images()
    flat.add(prefix, loose)
    if not folders and flat.captioned:
        return {UNLABELLED: _Class(flat, flat.captioned)}, flat.ignored
    ignored = len(loose)
    for name in folders:
        images = storage.images(f"{prefix}{name}/")
        found[name], ignored = _Class(images, images.captioned), ignored + images.ignored
    if not found:
        what = f"{len(flat)} images but no class folders; put them" if flat else "no class folders; put images"
        raise BigrError(f"{storage.where(prefix.rstrip('/'))} has {what} into one subfolder per class")
    if empty := [name for name, one in found.items() if not one.files]:
        inside = storage.entries(f"{prefix}{empty[0]}/")[1]
        if other := next((file for file in inside if file.lower().endswith(_OTHER_KINDS)), None):
            folder = storage.where(prefix + empty[0])
            raise BigrError(f"{folder} holds {printable(other)} and no image; name that folder")
        raise BigrError(
            f"class folder {prefix}{printable(empty[0])} of {storage.where()} has no image ({', '.join(SUFFIXES)})"
            + (f", nor have {len(empty) - 1} others" if len(empty) > 1 else "")
            + "; add some, or remove the folder"
        )
    return found, ignored


def _of_table(storage: Storage, prefix: str, table: str) -> tuple[dict[str, _Class], int]:
    rows = read_table(storage, prefix, table)
    there = storage.images(prefix)
    unnamed = len(there) - len(rows)
    if unnamed:
        log.warning("%s: %d images that it does not name are left out", storage.where(prefix + table), unnamed)
    found: dict[str, _Class] = {}
    has_text = any(row.text is not None for row in rows)
    for row in sorted(rows, key=lambda row: row.file):
        one = found.setdefault(row.label, _Class([], there.captioned, [] if has_text else None))
        one.files.append(row.file)
        if one.texts is not None:
            one.texts.append(row.text)
    return found, unnamed + max(0, there.ignored - 1)
