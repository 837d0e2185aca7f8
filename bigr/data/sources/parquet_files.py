"""Parquet files with encoded images, as Hugging Face's datasets have them: `image.bytes`, `label`, `text`."""

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigr.data.images import ImageError
from bigr.data.sources.source import (
    UNLABELLED,
    Sample,
    SourcePart,
    Splitting,
    by_split,
    checked_names,
    label_of,
    named,
    natural_key,
)
from bigr.data.sources.storage import Storage
from bigr.runtime.errors import BigrError
from bigr.runtime.extras import require
from bigr.runtime.paths import printable

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_IMAGES = ("image", "img", "jpg", "png")
_LABELS = ("label", "labels", "fine_label", "cls")
_TEXTS = ("text", "caption")
_ROWS = 64
"""Read at a time."""


@dataclass
class ParquetFiles:
    """Parquet files; see `bigr.data.sources.source.Source`.

    files: name, split ("" where each image's is drawn), and rows of each row group; image, label, text: the columns.
    """

    storage: Storage
    files: list[tuple[str, str, list[int]]]
    names: list[str]
    image: str
    label: str | None
    text: str | None
    splitting: Splitting
    kind: str = "parquet files"
    ignored: int = 0

    @property
    def where(self) -> str:
        return self.storage.where()

    @property
    def classes(self) -> list[str]:
        return self.names

    def name_classes(self, names: list[str]) -> None:
        self.names = named(self.names, names, self.where)

    def counts(self) -> dict[str, int] | None:
        if any(not split for _, split, _ in self.files):
            return None
        return {
            wanted: sum(sum(rows) for _, split, rows in self.files if split == wanted) for wanted in ("train", "val")
        }

    def prepare(self, folder: Path) -> None:
        """Nothing is needed."""

    def parts(self, images: int) -> list[SourcePart]:
        found, firsts = [], dict[str, int]()
        for number, (_, split, groups) in enumerate(self.files):
            start = 0
            for group, rows in enumerate(groups):
                first = firsts.get(split, 0)
                found.append(SourcePart(split or None, first, rows, (number, group, start)))
                firsts[split], start = first + rows, start + rows
        return found

    def read(self, part: SourcePart) -> Iterator[Sample]:
        file, group, row = part.place
        name = self.files[file][0]
        columns = [column for column in (self.image, self.label, self.text) if column]
        with self.storage.open(name) as stream, _explained(self.storage, name):
            for batch in _parquet(stream).iter_batches(_ROWS, row_groups=[group], columns=columns):
                for values in batch.to_pylist():
                    split = part.split or self.splitting.split_of(f"{name}[{row}]")
                    yield self._sample(f"{printable(name)}[{row}]", split, values)
                    row += 1

    def _sample(self, name: str, split: str, values: dict[str, Any]) -> Sample:
        image = values[self.image]
        image = image.get("bytes") if isinstance(image, dict) else image
        text = values[self.text] if self.text else None
        try:
            if not isinstance(image, bytes) or not image:
                raise ImageError(f"its column {self.image} has no bytes of an image")
            label = label_of(values[self.label], self.names) if self.label else 0
        except ImageError as error:
            return Sample(name, split, error, 0)
        return Sample(name, split, image, label, text)

    def state(self, part: SourcePart) -> list[Any]:
        drawn = [self.splitting.val_fraction, self.splitting.seed] if part.split is None else None
        return [self.storage.state(self.files[part.place[0]][0]), self.names, self.image, self.label, self.text, drawn]


def open_parquet_files(
    storage: Storage,
    files: list[str],
    names: list[str] | None,
    splitting: Splitting,
    splits: dict[str, str] | None = None,
) -> ParquetFiles:
    """Parquet files by their names below the storage. names: of the classes; splits: of the files, where given.

    Where no file's name tells the split, each image's is drawn. Labels are numbers, or texts: then their different
    values are the classes, in natural order, for which the whole column is read, and no image.
    """
    require("train", "reading parquet files")
    if not files:
        raise BigrError(f"{storage.where()} has no parquet file")
    if splits is None:
        divided = by_split(storage, files)
        splits = {name: split for split, mine in (divided or {"": files}).items() for name in mine}
    listed: list[tuple[str, str, list[int]]] = []
    image = label = text = None
    schema: Any = None
    found: set[Any] = set()
    for name in sorted(splits, key=lambda name: (splits[name], natural_key(name))):
        with storage.open(name) as stream, _explained(storage, name):
            file = _parquet(stream)
            if schema is None:
                schema = file.schema_arrow
                image, label, text = _columns(storage.where(name), schema)
                names = names or _names_in(storage.where(name), schema, label)
            elif missing := [c for c in (image, label, text) if c and c not in file.schema_arrow.names]:
                raise BigrError(f"{storage.where(name)} has no column {missing[0]}, as the other files have")
            listed.append(
                (name, splits[name], [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)])
            )
            if label and names is None:
                for batch in file.iter_batches(1 << 16, columns=[label]):
                    found.update(batch.column(0).unique().to_pylist())
    if label is None:
        names = [UNLABELLED]
    elif names is None:
        names = _names_of(storage.where(), label, found)
    assert image is not None
    return ParquetFiles(storage, listed, names, image, label, text, splitting)


def _columns(where: str, schema: "pa.Schema") -> tuple[str, str | None, str | None]:
    import pyarrow as pa

    def holds_bytes(name: str) -> bool:
        kind = schema.field(name).type
        kind = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    images = [name for name in schema.names if holds_bytes(name)]
    image = next((name for name in _IMAGES if name in images), images[0] if len(images) == 1 else None)
    if image is None:
        raise BigrError(
            f"{where} has no column `image` with encoded images (bytes, or a struct with bytes); its columns: "
            f"{', '.join(schema.names)}"
        )
    others = [name for name in schema.names if name not in images]
    label = next((name for name in _LABELS if name in others), None)
    text = next((name for name in _TEXTS if name in others), None)
    if text is not None and schema.field(text).type not in (pa.string(), pa.large_string(), pa.string_view()):
        raise BigrError(f"{where}: the column {text} holds {schema.field(text).type}; a caption must be one text")
    return image, label, text


def _names_in(where: str, schema: "pa.Schema", label: str | None) -> list[str] | None:
    """Class names in the metadata that Hugging Face's datasets write."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        names = about["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return checked_names(names, f"{where}, in its metadata,") if names else None


def _names_of(where: str, label: str, values: set[Any]) -> list[str]:
    if None in values:
        raise BigrError(f"{where}: some images have no {label}; give each one, or remove the column")
    if all(isinstance(value, str) for value in values):
        return sorted(values, key=natural_key)
    if not all(isinstance(value, int) for value in values) or min(values) < 0:
        raise BigrError(f"{where}: the column {label} must have class numbers from 0 on, or names")
    missing = next(number for number in itertools.count() if number not in values)
    if missing < max(values):
        raise BigrError(
            f"{where}: no image has the {label} {missing}, but one has {max(values)}; number them without gaps"
        )
    return [str(number) for number in range(missing)]


def _parquet(stream: Any) -> "pq.ParquetFile":
    import pyarrow.parquet as pq

    return pq.ParquetFile(stream)


@contextmanager
def _explained(storage: Storage, name: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise BigrError(f"{storage.where(name)} cannot be read as a parquet file ({reason}); get it again") from None
