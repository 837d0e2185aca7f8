"""How many images there are, of how many classes, and what they take on disk."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigr.config import Settings
from bigr.data.shards import ShardIndex
from bigr.data.texts import text_counts, text_files
from bigr.models.text_shape import text_shape
from bigr.pipeline.images_found import images_of
from bigr.pipeline.planning.networks import text_fields

_ASSUMED_CLASSES = 1000  # ImageNet-1K: changes the class table alone
_LABEL = 8  # bytes of an int64
_HALF = 2  # bytes of a float16
_NUMBER = 4  # bytes of an int32, the number of a byte pair
_START = 8  # bytes of an int64: where a text begins
_RECORD = 512  # bytes to which tar fills up
_PNG_SHARE = 0.6
"""A PNG's size as a share of 3 bytes a pixel: scikit-learn's two sample photographs take 0.51 to 0.66 at 256 and 64."""


@dataclass(frozen=True)
class ImageCounts:
    """train, val: images of each split, None where not known; classes: how many; basis: how each was found."""

    train: int | None
    val: int | None
    classes: int
    basis: str
    classes_basis: str

    @property
    def total(self) -> int | None:
        """Images of both splits."""
        return None if self.train is None or self.val is None else self.train + self.val


@dataclass(frozen=True)
class Disk:
    """Bytes of one image in the shards, in the codes, of one text in data/text (at most), of one sample, and of one
    image's features, which exist while `evaluation` runs.

    text: None where no model takes texts; samples: how many are drawn; featured: the most images of the training and of
    the validation split that have features; basis: how each was found.
    """

    shard: float
    code: int
    text: float | None
    sample: int
    feature: int
    samples: int
    featured: tuple[int, int]
    shard_basis: str
    code_basis: str
    text_basis: str
    sample_basis: str
    feature_basis: str


def count_images(settings: Settings, root: Path, images: int | None, classes: int | None) -> ImageCounts:
    """The images given, else those in data/shards, else in shards.source. Raises `BigrError`: one cannot be read."""
    train: int | None = None
    val: int | None = None
    found, basis, of_classes = None, "not known", "of ImageNet-1K, assumed; --classes names another number"
    if index := _index(settings, root):
        train, val, found = index.images("train"), index.images("val"), len(index.classes)
        basis = of_classes = "in data/shards"
    elif (images is None or settings.shards.embedded) and (counted := images_of(root, settings)):
        where, train, val, found = counted
        basis = of_classes = f"in {where}"
    if images is not None:
        val = round(images * settings.shards.val_fraction)
        train, basis = images - val, f"as given; shards.val_fraction = {settings.shards.val_fraction} of them held out"
    if classes is not None:
        found, of_classes = classes, "as given"
    return ImageCounts(train, val, found or _ASSUMED_CLASSES, basis, of_classes)


def disk(settings: Settings, root: Path) -> Disk:
    """What a run leaves on disk.

    Shards are measured where data/shards exists, else estimated; codes are exact but for a header in each file; a text
    that does not fill its places takes less.
    """
    index = _index(settings, root)
    tars = [tar for split in index.splits for tar in index.tars(split)] if index is not None else []
    if index is not None and all(tar.remote or tar.path.is_file() for tar in tars):
        images = sum(index.images(split) for split in index.splits)
        shard, basis = sum(tar.bytes_there() for tar in tars) / images, "measured in data/shards"
    else:
        pixels = 3 * settings.shards.image_size**2
        records = math.ceil(_PNG_SHARE * pixels / _RECORD) + 3  # the image's header, the label's header, the label
        shard = float(records * _RECORD)
        basis = f"estimated: {_PNG_SHARE} of 3 bytes a pixel (photographs as PNG), tar's records"
    views, tokens, packed = len(settings.codes.views), settings.grid**2, math.ceil(settings.tokenizer.code_bits / 8)
    draws, plural = settings.codes.draws, "s" if views > 1 else ""
    stored = f" × (1 + {draws} draw{'s' if draws > 1 else ''})" if draws else ""
    text, text_basis = _text(settings, root)
    layers, width = settings.generator.layers, settings.generator.dim
    return Disk(
        shard=shard,
        code=views * (1 + draws) * tokens * packed + _LABEL,
        text=text,
        sample=3 * settings.shards.image_size**2,
        feature=_HALF * layers * width,
        samples=settings.images_drawn,
        featured=(settings.evaluation.probe_images, settings.evaluation.reference_images),
        shard_basis=basis + _at(settings, "shards.store"),
        code_basis=f"{views} view{plural}{stored} × {tokens} tokens × {packed} bytes + {_LABEL} for the label"
        + _at(settings, "codes.store"),
        text_basis=text_basis + _at(settings, "text.store"),
        sample_basis="of samples.count, 3 bytes a pixel; twice that while samples.npz is put together",
        feature_basis=f"{layers} layers × {width} × {_HALF} bytes; only while evaluation runs",
    )


def _at(settings: Settings, key: str) -> str:
    """Where the files of a stage are, if its `store` names a URL."""
    if key not in settings.stores:
        return ""
    kept = "at most run.cache_gb here" if key == "shards.store" else "and here, in .cache/sources, while training"
    return f"; at {settings.stores[key]}, {kept}"


def _text(settings: Settings, root: Path) -> tuple[float | None, str]:
    """Bytes of one text on disk, and how that is known: measured in data/text, else those of the longest."""
    fields = text_fields(settings, root)
    if fields is None:
        return None, ""
    shape = text_shape(fields)
    if (known := _index_of_texts(root)) and text_shape(known["shape"]) == shape:
        files = [file for of_split in text_files(root / "data" / "text", known).values() for file in of_split]
        if files and all(not file.remote and file.path.is_file() for file in files):  # what is at a URL stays there
            texts = sum(text_counts(file)["captions"] for file in files)
            return sum(file.bytes_there() for file in files) / texts, "measured in data/text"
    each = f"{shape[0]} tokens × {_NUMBER} bytes"
    size = math.prod(shape) * _NUMBER
    if len(shape) == 2:
        vector = " and the vector" if fields["text_pooled"] else ""
        each = f"{settings.text.tokens} tokens{vector} × {shape[1]} × {_HALF} bytes"
        size = math.prod(shape) * _HALF
    return size + _START, f"at most: {each} + {_START}; a shorter text takes less"


def _index_of_texts(root: Path) -> dict[str, Any] | None:
    """The index of data/text; None where there is none, or no texts are used."""
    try:
        found: dict[str, Any] = json.loads((root / "data" / "text" / "index.json").read_text(encoding="utf-8"))
        return found if found["encoder"] is not None else None
    except (OSError, ValueError, KeyError, TypeError):  # the stage that reads it says what is wrong
        return None


def _index(settings: Settings, root: Path) -> ShardIndex | None:
    """The index of data/shards; None where there is none, or its images have another size than the settings'."""
    folder = root / "data" / "shards"
    if not (folder / "index.json").is_file():
        return None
    index = ShardIndex.load(folder)
    return index if index.image_size == settings.shards.image_size else None
