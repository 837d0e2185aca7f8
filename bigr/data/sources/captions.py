"""Captions and labels in a table beside the images: `metadata.jsonl`, `metadata.csv` or `captions.csv`.

The convention of Hugging Face's ImageFolder: `file_name` below the table's folder, `text` (or `caption`) and `label`,
of which either may be absent.
"""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from bigr.data.images import ImageError
from bigr.data.sources.source import SPLITS, UNLABELLED, class_names, label_of
from bigr.data.sources.storage import Storage
from bigr.runtime.errors import BigrError
from bigr.runtime.paths import printable

TABLES = ("metadata.jsonl", "metadata.csv", "captions.csv")


class Row(NamedTuple):
    """A line of the table: the image below the storage's root, its class's name, and its caption."""

    file: str
    label: str
    text: str | None


def table_in(files: list[str], where: str) -> str | None:
    """The table among the files of the folder `where`. Raises `BigrError` where there are two."""
    found = [name for name in TABLES if name in files]
    if len(found) > 1:
        raise BigrError(f"{where} has {found[0]} and {found[1]}; keep one of them")
    return found[0] if found else None


def read_table(storage: Storage, folder: str, name: str) -> list[Row]:
    """All rows of a table. Raises `BigrError`, with the number of the line, for one that names no image."""
    where, there = storage.where(folder + name), set(storage.images(folder))
    names = class_names(storage, folder)
    rows: list[Row] = []
    seen: set[str] = set()
    labelled: bool | None = None
    for number, values in _lines(storage, folder + name, where):
        file = values.get("file_name")
        if not isinstance(file, str) or not file:
            raise BigrError(f"{where}, line {number}: has no file_name; give the image's path below that folder")
        path = folder + file.replace("\\", "/")
        if path not in there:
            raise BigrError(
                f"{where}, line {number}: {printable(file)} is not an image in that folder; correct or remove the line"
            )
        if path in seen:
            raise BigrError(f"{where}, line {number}: {printable(file)} is there twice; remove one of the lines")
        seen.add(path)
        label = values.get("label")
        has_label = label is not None and label != ""
        if labelled is not None and labelled != has_label:
            raise BigrError(
                f"{where}, line {number}: some images have a label and some have none; give all or none one"
            )
        labelled = has_label
        text = next((values[key] for key in ("text", "caption") if values.get(key) is not None), None)
        if text is not None and not isinstance(text, str):
            raise BigrError(f"{where}, line {number}: text is {text!r}; it must be a text in quotation marks")
        rows.append(Row(path, _class_of(label, names, f"{where}, line {number}") if has_label else "", text))
    if not rows:
        raise BigrError(f"{where} names no image; add lines, or remove the file")
    if not labelled:
        below = [row.file.removeprefix(folder) for row in rows]
        if all(file.partition("/")[0] in SPLITS for file in below):
            below = [file.partition("/")[2] for file in below]
        inner = [file.rpartition("/")[0].partition("/")[0] for file in below]
        names = inner if all(inner) else [UNLABELLED] * len(rows)
        rows = [row._replace(label=name) for row, name in zip(rows, names, strict=True)]
    return rows


def _class_of(label: Any, names: list[str] | None, where: str) -> str:
    if names is None:
        return str(label)
    try:
        return names[label_of(label, names)]
    except ImageError as error:
        raise BigrError(f"{where}: {error}") from None


def _lines(storage: Storage, path: str, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row by its line number."""
    try:
        text = storage.read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BigrError(f"{where} is not UTF-8 ({error}); convert it") from None
    if path.endswith(".csv"):
        reader = csv.DictReader(io.StringIO(text), strict=True)
        lines = reader.reader  # the other's number is that of the last whole row
        try:
            if "file_name" not in (reader.fieldnames or []):
                raise BigrError(f"{where} has no column file_name; its first line must name the columns")
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise BigrError(f"{where}, line {lines.line_num}: {error}") from None
        return
    for number, line in enumerate(io.StringIO(text), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise BigrError(f"{where}, line {number}: is not JSON ({error})") from None
        if not isinstance(values, dict):
            raise BigrError(f'{where}, line {number}: must be an object, {{"file_name": …}}')
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise BigrError(f"{where}, line {number}: has an escape of half a character; correct it") from None
        yield number, values
