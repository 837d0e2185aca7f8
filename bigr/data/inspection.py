"""What a source holds, from some of its images or all: sizes, captions, broken files, and a picture of some."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bigr.data.images import ImageError, center_crop, grey_if_grey, to_tensor
from bigr.data.packed_parts import Packing, opened_image
from bigr.data.picture_grid import save_grid
from bigr.data.sources.source import SPLITS, Sample, Source
from bigr.runtime.paths import printable
from bigr.runtime.progress import Progress
from bigr.runtime.threads import map_ahead

_PART = 1000
_PLACES = 50
"""Parts that the images are taken from, at most, evenly over all."""
_ROWS, _COLUMNS = 10, 10
"""Of the picture, at most."""
_SIDE = 96
_AHEAD = 16
_NAMED = 10
"""Broken images, and classes, that are named at most."""


@dataclass
class Inspection:
    """What was found in the images that were read.

    read: how many; whole: whether these are all; splits, labels: images of each split, and of each label of train;
    sizes: width and height → images; grey, captions: how many are grey, and have a caption; broken: image and reason.
    """

    read: int = 0
    whole: bool = True
    splits: Counter[str] = field(default_factory=Counter)
    labels: Counter[int] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    grey: int = 0
    captions: int = 0
    broken: list[tuple[str, str]] = field(default_factory=list)

    @property
    def median_size(self) -> tuple[int, int]:
        """Width and height of the image that is the middle one by its shorter side."""
        ordered = sorted(self.sizes.elements(), key=min)
        return ordered[len(ordered) // 2]


def inspect(source: Source, sheet: Path, *, images: int | None, max_pixels: int, workers: int) -> Inspection:
    """Decode images of a source, and write a picture of some to `sheet`.

    images: how many to read, from all over the source; None: all. workers: threads that decode. Raises `BigrError`
    where a part as a whole cannot be read.
    """
    found, shown = Inspection(), _Sheet(len(source.classes or ()))
    packing = Packing(_SIDE, _PART, max_pixels)

    def decoded(sample: Sample) -> tuple[Sample, Image.Image | ImageError]:
        try:
            return sample, opened_image(sample, packing)
        except ImageError as error:
            return sample, error

    with tempfile.TemporaryDirectory(prefix="bigr-data-") as folder:
        source.prepare(Path(folder))
        counts = source.counts()
        total = sum(counts.values()) if counts is not None else None
        samples = _samples(source, images, found)
        expected = total if images is None else min(images, total or images)
        with Progress("images", expected, unit="image") as progress:
            for sample, image in map_ahead(decoded, samples, workers, _AHEAD):
                progress.advance()
                found.read += 1
                if isinstance(image, ImageError):
                    found.broken.append((sample.name, str(image)))
                    continue
                found.splits[sample.split] += 1
                if sample.split == "train":
                    found.labels[sample.label] += 1
                found.sizes[image.size] += 1
                found.grey += grey_if_grey(image).mode == "L"
                found.captions += sample.text is not None
                shown.add(sample.label, image)
    if total is not None:
        found.whole = found.read == total
    shown.save(sheet)
    return found


def _samples(source: Source, images: int | None, found: Inspection) -> Iterator[Sample]:
    """The images to read; `found.whole` becomes whether they are all."""
    parts = source.parts(_PART)
    if images is None:
        for part in parts:
            yield from source.read(part)
        return
    places = sorted(set(np.linspace(0, len(parts) - 1, min(_PLACES, len(parts))).astype(int).tolist()))
    chosen = sorted((parts[place] for place in places), key=lambda part: part.images or 0)  # what a short one lacks
    left = images  # is taken from the others
    for number, part in enumerate(chosen):
        stream = source.read(part)
        for sample in islice(stream, -(-left // (len(chosen) - number))):
            left -= 1
            yield sample
        found.whole &= next(stream, None) is None
    found.whole &= len(places) == len(parts)


class _Sheet:
    """Collects images for the picture: those of each class below each other, where the classes fit its columns."""

    def __init__(self, classes: int) -> None:
        self._columns = classes if 2 <= classes <= _COLUMNS else 0
        self._images: dict[int, list[torch.Tensor]] = {}

    def add(self, label: int, image: Image.Image) -> None:
        mine = self._images.setdefault(label if self._columns else 0, [])
        if len(mine) < (_ROWS if self._columns else _ROWS * _COLUMNS):
            mine.append(to_tensor(center_crop(image, _SIDE)))

    def save(self, path: Path) -> None:
        if not self._images:
            return
        if not self._columns:
            save_grid(path, torch.stack(self._images[0]), min(_COLUMNS, len(self._images[0])))
            return
        rows = max(map(len, self._images.values()))
        white = torch.full((3, _SIDE, _SIDE), 255, dtype=torch.uint8)
        columns = [[*self._images.get(label, []), *[white] * rows][:rows] for label in range(self._columns)]
        save_grid(path, torch.stack([column[row] for row in range(rows) for column in columns]), self._columns)


def lines(source: Source, name: str, found: Inspection) -> list[str]:
    """The inspection as text, a line for each thing. name: the source's path or URL, as the user gave it."""
    counts = source.counts()
    of = "all" if found.whole else f"{found.read:,} that were read; --all reads every one"
    if counts is None and found.whole:
        counts = {split: found.splits[split] for split in SPLITS}
    images = ", ".join(f"{split} {counts[split]:,}" for split in SPLITS) if counts else "not counted; --all counts them"
    told = [f"{source.kind}: {printable(name)}", f"images    {images}", f"classes   {_classes(source, found)}"]
    if found.sizes:
        narrow, wide = min(found.sizes, key=min), max(found.sizes, key=max)
        size = " to ".join(dict.fromkeys(f"{w}×{h}" for w, h in (narrow, wide)))
        median = "×".join(map(str, found.median_size))
        grey = f"; {found.grey:,} grey" if found.grey else ""
        told.append(
            f"sizes     {size}" + (f", median {median}" if len(found.sizes) > 1 else "") + f" pixels{grey} (of {of})"
        )
    if found.captions:
        told.append(f"captions  {found.captions:,} of {found.read:,}")
    told.append(f"broken    {len(found.broken):,} of {found.read:,}")
    told += [f"          {name}: {reason}" for name, reason in found.broken[:_NAMED]]
    if len(found.broken) > _NAMED:
        told.append(f"          and {len(found.broken) - _NAMED:,} more")
    if source.ignored:
        told.append(f"ignored   {source.ignored:,} file{'s' if source.ignored > 1 else ''}: no image, or in no class")
    return told


def _classes(source: Source, found: Inspection) -> str:
    """Their number and names. Where the source does not tell, its largest label does: a wrong one may be any number."""
    names = source.classes
    number = len(names) if names is not None else max(found.labels, default=-1) + 1
    shown = range(min(number, _NAMED))
    listed = ", ".join(printable(names[label]) if names is not None else str(label) for label in shown)
    told = f"{number:,}{'' if names is not None or found.whole else ' or more'}"
    told += f" ({listed}{', …' if number > _NAMED else ''})" if number else ""
    if found.whole and found.labels and number > 1:
        each = dict.fromkeys(f"{count:,}" for count in (min(found.labels.values()), max(found.labels.values())))
        told += f"; {' to '.join(each)} training images each"
        if without := number - len(found.labels):
            first = next(label for label in range(number) if not found.labels[label])
            told += f", none of {printable(names[first]) if names is not None else first}"
            told += f" and {without - 1:,} more" if without > 1 else ""
    return told
