"""Atomic writes of files and folders, and digests.

Each file is written beside its final name, flushed to the disk, and renamed. A reader, or a run that starts after a
power cut, sees the old file or the new one. One process at a time writes a file: a stage holds a lock while it runs.
"""

import csv
import hashlib
import json
import math
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from numpy.lib import format as npy

_CHUNK = 1 << 20
_MARK = "[0-9a-f]" * 8  # of a name that is being written
DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}  # in the order in which safetensors keeps them: wide ones first, so that each is aligned


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; on success it is synced and renamed to `path`, on failure removed.

    The temporary name keeps the suffix, since many writers choose the format by it. Parent folders are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{path.stem}.{_MARK}{path.suffix}"):
        leftover.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new empty folder beside `path`; on success it takes `path`'s place, on failure it is removed.

    An old folder of that name is moved aside first: for a moment there is none, but never a part of one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{path.name}.{_MARK}"):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary, old = (path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}") for _ in range(2))
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            path.replace(old)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` atomically, as indented JSON with sorted keys and a final newline."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a header line and rows to `path` atomically, as CSV."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


class StoredTensor(Protocol):
    """A tensor in a file that is not loaded: `read` returns it, of `shape` and `dtype`, on the CPU."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def read(self) -> torch.Tensor: ...


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor | StoredTensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors to a safetensors file atomically; see `fill_tensors`."""
    with atomic_path(path) as temporary:
        fill_tensors(temporary, tensors, metadata)


def fill_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor | StoredTensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors in place, to a name that `atomic_path` yielded. Memory holds one of them at a time.

    The same tensors and metadata give the same bytes, so that a hash of the file names its content. (safetensors' own
    writer copies all tensors first, and orders metadata differently from process to process.)
    """
    order = sorted(tensors, key=lambda name: (list(DTYPES).index(tensors[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": dict(sorted((metadata or {}).items()))}
    end = 0
    for name in order:
        start, shape = end, list(tensors[name].shape)
        end += math.prod(shape) * tensors[name].dtype.itemsize
        header[name] = {"dtype": DTYPES[tensors[name].dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            tensor = tensors[name]
            data = tensor.detach() if isinstance(tensor, torch.Tensor) else tensor.read()
            file.write(data.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            del data  # before the next one is read


@dataclass(frozen=True)
class Blocks:
    """An array that is not in memory: `blocks` [n, …] one after the other make up its first dimension."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    blocks: Iterable[np.ndarray]


def write_npz(path: Path, **arrays: np.ndarray | Blocks) -> None:
    """Write named arrays to an `.npz` file atomically, as `numpy.savez` does. Of `Blocks`, memory holds one at a time.

    Raises `ValueError` where blocks are not of the array's shape and dtype.
    """
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                if isinstance(array, Blocks):
                    _write_blocks(file, array)
                else:
                    npy.write_array(file, np.asanyarray(array), allow_pickle=False)


def _write_blocks(file: IO[bytes], array: Blocks) -> None:
    descr = npy.dtype_to_descr(array.dtype)
    npy.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": array.shape})
    written = 0
    for block in array.blocks:
        if block.dtype != array.dtype or block.shape[1:] != array.shape[1:]:
            raise ValueError(f"a block is {block.dtype} {list(block.shape)}, the array {array.dtype} {array.shape}")
        file.write(np.ascontiguousarray(block).data)
        written += len(block)
    if written != array.shape[0]:
        raise ValueError(f"the blocks have {written} rows, the array {array.shape[0]}")


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
