"""One part of a source, packed into shards: whole, or where a tar is a shard already, as it is.

A finished part is noted in JSON, with what it was made of; it is not packed again. A shard's members are `.png`, `.cls`
(the label) and, where there is a caption, `.txt`. Grey images have one channel.
"""

import contextlib
import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from bigr.data.images import ImageError, center_crop, check_pixels, decode, encode_png, grey_if_grey
from bigr.data.shards import STORED, fits, image_starts_of, members_of
from bigr.data.sources.source import SPLITS, Sample, Source, SourcePart
from bigr.data.sources.tar_files import TarFiles
from bigr.data.stored_files import FileStore
from bigr.runtime.errors import BigrError
from bigr.runtime.extras import require
from bigr.runtime.files import sha256_file, write_json
from bigr.runtime.paths import is_url

_FORMAT = 1
"""Of parts that are kept. To be raised with every change of what a shard holds."""


@dataclass(frozen=True)
class Packing:
    """How images are packed. image_size: of `center_crop`; images_per_shard, max_pixels: as in the settings.

    store: where shards go, None: here; used_as_is: whether a tar that is a shard already is not written again.
    """

    image_size: int
    images_per_shard: int
    max_pixels: int
    store: FileStore | None = None
    used_as_is: bool = True

    def values(self) -> dict[str, Any]:
        """What shards depend on, as JSON holds it."""
        own = {name: getattr(self, name) for name in ("image_size", "images_per_shard", "max_pixels")}
        if self.store is not None:
            own["store"] = self.store.url
        return own if self.used_as_is else {**own, "used_as_is": False}


@dataclass
class Written:
    """A shard. name: its file in the folder of shards; or the path of a tar that is used as it is, or a URL.

    size: in bytes, of a file at a URL.
    """

    split: str
    name: str
    images: int
    captions: int
    class_counts: dict[int, int]
    sha256: str
    size: int | None = None

    @property
    def packed(self) -> bool:
        """Whether it is a file in the folder of shards."""
        return not is_url(self.name) and not Path(self.name).is_absolute()


@dataclass
class PackedPart:
    """A finished part. key: of what it was made of; bad: image and reason of each that was left out."""

    key: str
    shards: list[Written] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)

    @property
    def images(self) -> int:
        """Those that were read, or left out."""
        return sum(shard.images for shard in self.shards) + len(self.bad)

    @classmethod
    def of(cls, values: dict[str, Any]) -> "PackedPart":
        """From what JSON holds of it."""
        shards = [
            Written(**{**shard, "class_counts": {int(k): v for k, v in shard["class_counts"].items()}})
            for shard in values["shards"]
        ]
        return cls(values["key"], shards, [(name, reason) for name, reason in values["bad"]])

    def values(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"key": self.key, "shards": [vars(shard) for shard in self.shards], "bad": self.bad}


def pack_part(source: Source, packing: Packing, job: tuple[SourcePart, Path]) -> PackedPart:
    """Pack one part, unless the same was packed before. Its shards and a note in JSON begin with the job's path."""
    part, stem = job
    key = hashlib.sha256(json.dumps([_FORMAT, packing.values(), part, source.state(part)]).encode()).hexdigest()
    done, note = _kept(stem), stem.with_suffix(".json")
    if done is not None and done.key == key:
        return done
    if packing.used_as_is and isinstance(source, TarFiles) and (found := _as_it_is(source, part, packing)):
        done = PackedPart(key, [found])
    else:
        note.unlink(missing_ok=True)  # first: shards that are written in the place of others must not pass for them
        done = _write(source, part, stem, packing, key)
    if packing.store is not None:
        for shard in done.shards:
            _put(shard, stem.parent, packing.store)
    write_json(note, done.values())
    return done


def _put(shard: Written, folder: Path, store: FileStore) -> None:
    """Copy a shard that is here to the store."""
    if not is_url(shard.name):
        entry = store.put(folder / shard.name, kept=shard.packed)
        shard.name, shard.size = entry["name"], entry["size"]


def _kept(stem: Path) -> PackedPart | None:
    """A finished part whose shards are all there."""
    try:
        done = PackedPart.of(json.loads(stem.with_suffix(".json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    there = (is_url(shard.name) or (stem.parent / shard.name).is_file() for shard in done.shards)
    return done if all(there) else None


def finished_part(stem: Path) -> PackedPart:
    """The part of this path; `BigrError` where it is not there."""
    done = _kept(stem)
    if done is None:
        raise BigrError(
            f"{stem} is missing, which another process packed; all processes need the same folder {stem.parent}"
        )
    return done


def _write(source: Source, part: SourcePart, stem: Path, packing: Packing, key: str) -> PackedPart:
    done = PackedPart(key)
    splits = [part.split] if part.split else list(SPLITS)
    writers = {split: _Writer(split, stem, packing.images_per_shard, len(splits) > 1) for split in splits}
    try:
        for place, sample in enumerate(source.read(part), start=part.first):
            try:
                image = stored(sample, packing)
            except ImageError as error:
                done.bad.append((sample.name, str(error)))
            else:
                writers[sample.split].write(place, image, sample)
        done.shards = [shard for writer in writers.values() for shard in writer.finish()]
    finally:
        for writer in writers.values():
            writer.discard()
    return done


def stored(sample: Sample, packing: Packing) -> Image.Image:
    """A sample's image as a shard holds it: cropped, and of one channel where it is grey. Raises `ImageError`."""
    return grey_if_grey(center_crop(opened_image(sample, packing), packing.image_size))


def opened_image(sample: Sample, packing: Packing) -> Image.Image:
    """A sample's image as RGB, of its own size. Raises `ImageError` where it cannot be read, or has too many pixels."""
    image = sample.image
    if isinstance(image, ImageError):
        raise image
    if isinstance(image, np.ndarray):
        check_pixels(image.shape[1], image.shape[0], packing.max_pixels)
        return Image.fromarray(image).convert("RGB")
    return decode(io.BytesIO(image) if isinstance(image, bytes) else image, packing.max_pixels)


class _Writer:
    """Writes the images of one split of a part to as many tars as needed.

    The tars' headers hold neither time nor user, so that the same images give the same bytes.
    """

    def __init__(self, split: str, stem: Path, most: int, named: bool) -> None:
        self._split, self._stem, self._most, self._named = split, stem, most, named
        self._shards: list[Written] = []
        self._open: tuple[Any, Any, Path] | None = None

    def write(self, place: int, image: Image.Image, sample: Sample) -> None:
        require("train", "writing shards")
        from webdataset import TarWriter

        if self._shards and self._shards[-1].images == self._most:
            self._close()
        if self._open is None:
            name = f"{self._split}-{self._stem.name}" if self._named else self._stem.name
            name += f"-{len(self._shards)}" if self._shards else ""
            path = self._stem.with_name(f"{name}.tar")
            file = path.with_suffix(".part").open("wb")
            self._open = file, TarWriter(file, user="bigr", group="bigr", mtime=0, encoder=False), path
            self._shards.append(Written(self._split, path.name, 0, 0, {}, ""))
        members = {"__key__": f"{place:09d}", "png": encode_png(image), "cls": str(sample.label).encode()}
        shard = self._shards[-1]
        if sample.text is not None:
            members["txt"] = sample.text.encode()
            shard.captions += 1
        self._open[1].write(members)
        shard.images += 1
        shard.class_counts[sample.label] = shard.class_counts.get(sample.label, 0) + 1

    def _close(self) -> None:
        assert self._open is not None
        file, tar, path = self._open
        tar.close()
        file.flush()
        os.fsync(file.fileno())
        file.close()
        path.with_suffix(".part").replace(path)
        self._shards[-1].sha256 = sha256_file(path)
        self._open = None

    def finish(self) -> list[Written]:
        """All shards, complete on the disk."""
        if self._open is not None:
            self._close()
        return self._shards

    def discard(self) -> None:
        """Remove what is not complete."""
        if self._open is not None:
            file, tar, path = self._open
            with contextlib.suppress(OSError):  # the disk may be full
                tar.close()  # else it would write to the closed file when it is collected
            with contextlib.suppress(OSError):
                file.close()
            path.with_suffix(".part").unlink(missing_ok=True)


def _as_it_is(source: TarFiles, part: SourcePart, packing: Packing) -> Written | None:
    """The shard that a tar of the source already is; None where it has to be written anew.

    Every image must be readable, with a format and the size of a shard's, and have a label as a number in `.cls`; a
    caption must be in `.txt`. A remote tar is copied to the cache once, and read there. Memory holds one image.
    """
    name = source.whole(part)
    if name is None or not source.labelled:
        return None
    counts = Counter[int]()
    captions = 0
    try:
        with source.storage.open(part.place[0]) as stream:
            for members in members_of(name, stream):
                sample = source.sample(name, "", members)
                image = next((members[suffix] for suffix in STORED if suffix in members), b"")
                same = image is sample.image and int(members["cls"]) == sample.label
                if not same or ("txt" in members) != (sample.text is not None) or not fits(image, packing.image_size):
                    return None
                decode(io.BytesIO(image), packing.max_pixels)
                counts[sample.label] += 1
                captions += sample.text is not None
            stream.seek(0)
            starts = image_starts_of(stream)
            stream.seek(0)
            digest = hashlib.file_digest(cast("io.BufferedReader", stream), "sha256").hexdigest()
            size = stream.seek(0, os.SEEK_END)
    except (ValueError, KeyError, OSError, EOFError, tarfile.TarError, ImageError):
        return None  # reading it again says what is wrong
    if not counts or len(starts) != counts.total() + 1:  # other members lie between those of the images
        return None
    written = Written(part.split or "train", name, counts.total(), captions, dict(counts), digest)
    written.size = size if is_url(name) else None
    return written
