"""A table of images in an Arrow file: one row for each, read through a memory map, so that no process holds them all.

Columns: `file` (its name below the root, in bytes), `label`, and where there are captions `text` and `captioned` (the
caption is in a `.txt` file beside the image). The rows of the training split come first. A manifest, which `bigr data
--manifest` writes, is the same with the column `state`: its content changes with the images.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bigr.data.sources.source import SPLITS, Splitting
from bigr.runtime.errors import BigrError
from bigr.runtime.extras import require
from bigr.runtime.files import atomic_path
from bigr.runtime.paths import printable

if TYPE_CHECKING:
    import pyarrow as pa

_KEY = b"bigr"
FORMAT = 1


class Entry(NamedTuple):
    """A row: an image's name below the root, its label, its caption, and whether that is in a file beside it."""

    file: str
    label: int
    text: str | None
    captioned: bool


@dataclass
class Listing:
    """Rows of images, in memory or mapped from a file. about: what else is written with them, as JSON."""

    about: dict[str, Any]
    path: Path | None = None
    _table: "pa.Table | None" = field(default=None, repr=False)

    @property
    def table(self) -> "pa.Table":
        """The rows."""
        if self._table is None:
            assert self.path is not None
            self._table = _mapped(self.path)
        return self._table

    def __getstate__(self) -> dict[str, Any]:  # another process maps the file
        assert self.path is not None, "a listing is saved before another process reads it"
        return {"about": self.about, "path": self.path, "_table": None}

    @classmethod
    def open(cls, path: Path) -> "Listing":
        """Map a file. Raises `BigrError` for one that is not a listing."""
        table = _mapped(path)
        about = (table.schema.metadata or {}).get(_KEY)
        if about is None:
            raise BigrError(
                f"{path} is an Arrow file, but not a manifest; `bigr data SOURCE --manifest FILE` writes one"
            )
        values = json.loads(about)
        if values.get("format") != FORMAT:
            raise BigrError(f"{path} is a manifest of another version; write it again with `bigr data --manifest`")
        return cls(values, path, table)

    def save(self, path: Path) -> None:
        """Write the rows to a file, atomically, and read them from there from now on."""
        import pyarrow as pa

        table = self.table.replace_schema_metadata(
            {_KEY: json.dumps({**self.about, "format": FORMAT}, sort_keys=True, ensure_ascii=False)}
        )
        with (
            atomic_path(path) as temporary,
            pa.OSFile(str(temporary), "wb") as file,
            pa.ipc.new_file(file, table.schema) as writer,
        ):
            writer.write_table(table, max_chunksize=1 << 16)
        self.path, self._table = path, None

    def with_columns(self, **columns: Any) -> "Listing":
        """The same rows with further columns."""
        table = self.table
        for name, values in columns.items():
            table = table.append_column(name, values)
        return Listing(self.about, None, table)

    def rows(self, start: int, stop: int) -> Iterator[Entry]:
        """Rows from `start` to `stop`, one at a time."""
        table = self.table.slice(start, stop - start)
        has_text = "text" in table.column_names
        for batch in table.to_batches(max_chunksize=1024):
            columns = batch.to_pydict()
            texts = columns["text"] if has_text else [None] * len(batch)
            captioned = columns["captioned"] if has_text else [False] * len(batch)
            for file, label, text, beside in zip(columns["file"], columns["label"], texts, captioned, strict=True):
                yield Entry(os.fsdecode(file), label, text, beside)

    def __len__(self) -> int:
        return int(self.table.num_rows)


def _mapped(path: Path) -> "pa.Table":
    require("train", "reading a list of images")
    import pyarrow as pa

    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise BigrError(f"{path} cannot be read as an Arrow file ({' '.join(str(error).split())})") from None


class Rows:
    """Collects the images of one split, class by class, and puts them in their order."""

    def __init__(self, splitting: Splitting) -> None:
        self._splitting = splitting
        self._files: list[Any] = []
        self._texts: list[Any] = []
        self._columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # label, captioned, rank
        self._has_text = False

    def __len__(self) -> int:
        return sum(map(len, self._files))

    def add(self, label: int, files: Sequence[str], captioned: set[str], texts: Sequence[str | None] | None) -> None:
        """Take the images of one class. captioned: those with a caption beside them; texts: captions from a table."""
        import pyarrow as pa

        ranks = np.fromiter((self._splitting.rank("order", printable(f)) for f in files), np.uint64, len(files))
        beside = np.fromiter((file in captioned for file in files), np.bool_, len(files))
        self._has_text |= bool(captioned) or texts is not None
        self._files.append(pa.array(map(os.fsencode, files), pa.large_binary(), size=len(files)))
        self._texts.append(
            pa.nulls(len(files), pa.large_string()) if texts is None else pa.array(texts, pa.large_string())
        )
        self._columns.append((np.full(len(files), label, np.int32), beside, ranks))

    def table(self) -> "pa.Table":
        """All images, shuffled across classes."""
        import pyarrow as pa

        columns = [np.concatenate(column) for column in zip(*self._columns, strict=True)]
        labels, beside, ranks = columns if columns else (np.empty(0, t) for t in (np.int32, np.bool_, np.uint64))
        values = {"file": pa.chunked_array(self._files, pa.large_binary()), "label": pa.array(labels)}
        if self._has_text:
            values |= {"text": pa.chunked_array(self._texts, pa.large_string()), "captioned": pa.array(beside)}
        return pa.table(values).take(np.argsort(ranks, kind="stable"))


def joined(tables: dict[str, "pa.Table"], about: dict[str, Any]) -> Listing:
    """The tables of both splits as one listing."""
    import pyarrow as pa

    table = pa.concat_tables([tables[split] for split in SPLITS], promote_options="default")
    if "captioned" in table.column_names:
        place = table.column_names.index("captioned")
        table = table.set_column(place, "captioned", table["captioned"].fill_null(False))
    return Listing({**about, "train": tables["train"].num_rows}, None, table)
