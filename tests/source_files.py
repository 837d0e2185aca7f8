"""Small sources of every kind, whose images are known: `pixels(value)` of the values `ALL`."""

import csv
import gzip
import io
import json
import struct
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from bigr.data.packed_parts import Packing
from bigr.data.packing import pack
from bigr.data.sources.opened import manifest_of, open_source
from bigr.data.sources.source import Source, Splitting

SIZE = 8
TRAIN, VAL = range(10, 18), range(18, 22)  # an image's value tells it from others; its label is the value modulo 3
ALL = range(10, 22)
NAMES = ["zebra", "ant", "bee"]


def pixels(value: int, grey: bool = False, size: int = SIZE) -> np.ndarray:
    """An image [size,size,3] that differs from its transpose, and where it is coloured, with other channels."""
    image = np.full((size, size, 3), value, np.uint8)
    image[0] = 255
    if not grey:
        image[:, 0, 0], image[:, 0, 2] = 0, 128
    return image


def png(value: int, size: int = SIZE) -> bytes:
    with io.BytesIO() as stream:
        Image.fromarray(pixels(value, size=size)).save(stream, format="PNG")
        return stream.getvalue()


def noise_png(value: int, height: int, width: int) -> bytes:
    """An image of noise that `value` tells from others."""
    noise = np.random.default_rng(value).integers(0, 256, (height, width, 3), dtype=np.uint8)
    with io.BytesIO() as stream:
        Image.fromarray(noise).save(stream, format="PNG")
        return stream.getvalue()


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def opened(source: Path | str, fraction: float = 0.25, seed: int = 3) -> Source:
    return open_source(str(source), Path(), Splitting(fraction, seed))


def packed(
    source: Path | str, folder: Path, *, fraction: float = 0.25, seed: int = 3, **options: Any
) -> dict[str, int]:
    """Pack into `folder`; finished parts are kept in `partial` beside it."""
    values = {"size": SIZE, "most": 5, "max_bad_fraction": 0.0, "workers": 1, **options}
    found = opened(source, fraction, seed)
    partial = folder.with_name("partial")
    found.prepare(partial)
    return pack(found, folder, partial, Packing(values.pop("size"), values.pop("most"), 10**6), **values)


def idx(values: np.ndarray, gz: bool = False) -> bytes:
    data = b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()
    return gzip.compress(data, mtime=0) if gz else data


def idx_set(root: Path, prefix: str = "", test: str = "t10k", end: str = "", first_label: int = 0) -> Path:
    for split, values in (("train", TRAIN), (test, VAL)):
        images = np.stack([pixels(v, grey=True)[..., 0] for v in values])
        images = images.transpose(0, 2, 1).copy() if prefix.startswith("emnist") else images
        labels = np.array([v % 3 + first_label for v in values], np.uint8)
        put(root / f"{prefix}{split}-images-idx3-ubyte{end}", idx(images, bool(end)))
        put(root / f"{prefix}{split}-labels-idx1-ubyte{end}", idx(labels, bool(end)))
    return root


def cifar(root: Path, hundred: bool = False) -> Path:
    def record(value: int) -> bytes:
        return bytes([7] * hundred + [value % 3]) + pixels(value, size=32).transpose(2, 0, 1).tobytes()

    batches = {"train.bin": TRAIN, "test.bin": VAL}
    if not hundred:
        batches = {
            f"data_batch_{n}.bin": TRAIN[n * 2 - 2 : n * 2] if n < 4 else TRAIN[n + 2 : n + 3] for n in range(1, 6)
        }
        batches["test_batch.bin"] = VAL
    for name, values in batches.items():
        put(root / name, b"".join(map(record, values)))
    put(root / ("fine_label_names.txt" if hundred else "batches.meta.txt"), "\n".join(NAMES) + "\n\n")
    return root


def npz(path: Path, **arrays: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return path


def stack(values: Iterable[int], grey: bool = False) -> np.ndarray:
    return np.stack([pixels(v, grey) for v in values])


def sample(value: int, **changes: Any) -> dict[str, Any]:
    """The members of an image in a tar, by suffix."""
    return {"png": png(value), "cls": str(value % 3), **changes}


def tar(path: Path, samples: Iterable[dict[str, Any]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for number, members in enumerate(samples):
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"a/{number:03d}.{suffix}")
                content = data if isinstance(data, bytes) else data.encode()
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def tars(root: Path, **files: Iterable[dict[str, Any]]) -> Path:
    for name, samples in files.items():
        tar(root / f"{name}.tar", samples)
    return root


def parquet(path: Path, values: Iterable[int], *, bare: bool = False, names: Any = None, **columns: Any) -> Path:
    """Hugging Face's layout. bare: images are bytes alone; columns: in place of `label`, or of `images`' bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = list(values)
    content = columns.pop("images", [png(v) for v in values])
    images = [data if bare else {"bytes": data, "path": None} for data in content]
    table = pa.table({"image": images, **(columns or {"label": [v % 3 for v in values]})})
    if names:
        about = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(table, path, row_group_size=7)
    return path


def folder(root: Path, values: Iterable[int], prefix: str = "{label}/", captions: bool = False) -> Path:
    for value in values:
        name = prefix.format(label=value % 3) + str(value)
        put(root / f"{name}.png", png(value))
        if captions:
            put(root / f"{name}.txt", f"number {value}\n")
    return root


def table(root: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    with io.StringIO(newline="") as text:
        if name.endswith(".csv"):
            writer = csv.DictWriter(text, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            text.write("".join(json.dumps(row) + "\n" for row in rows))
        put(root / name, text.getvalue())
    return root


def rows(values: Iterable[int], *keys: str, prefix: str = "", **changes: Any) -> list[dict[str, Any]]:
    whole = [{"file_name": f"{prefix}{v}.png", "text": f"number {v}", "label": v % 3, **changes} for v in values]
    return [{key: row[key] for key in ("file_name", *keys, *changes)} for row in whole]


def manifest(source: Path, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    manifest_of(opened(source)).save(path)
    return path
