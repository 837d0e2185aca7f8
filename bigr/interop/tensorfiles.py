"""Tensors in files of others: torch's zip checkpoints (`.pt`, `.th`) and safetensors, mapped and never unpickled.

A file gives names and `FileTensor`s: where the numbers lie, and how. Nothing is read before `FileTensor.read`, which
maps that tensor alone, so that a file much larger than memory can be gone through.
"""

import json
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bigr.interop import pickles
from bigr.runtime.errors import BigrError

_ZIP, _LOCAL_HEADER, _ENCRYPTED = b"PK\x03\x04", 30, 1
_NUMBERS = {
    torch.float64: "f8",
    torch.float32: "f4",
    torch.float16: "f2",
    torch.bfloat16: "u2",  # which numpy has not
    torch.int64: "i8",
    torch.int32: "i4",
    torch.int16: "i2",
    torch.int8: "i1",
    torch.uint8: "u1",
    torch.bool: "?",
}
_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
_SAFETENSORS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class FileTensor:
    """A tensor in a file. Floating-point numbers of any width are read as float32, as this project keeps weights.

    stored: how the file holds the numbers; offset: of the first one, in bytes; strides: in numbers.
    """

    path: Path
    shape: tuple[int, ...]
    stored: torch.dtype
    offset: int
    strides: tuple[int, ...]
    byteorder: str = "<"

    @property
    def dtype(self) -> torch.dtype:
        """What `read` gives."""
        return torch.float32 if self.stored.is_floating_point else self.stored

    @property
    def span(self) -> int:
        """Bytes from the first number to behind the last."""
        if 0 in self.shape:
            return 0
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        return (last + 1) * self.stored.itemsize

    def read(self) -> Tensor:
        """The tensor, contiguous; its memory is the file's own where nothing has to be converted."""
        if 0 in self.shape:
            return torch.zeros(self.shape, dtype=self.dtype)
        code = np.dtype(self.byteorder + _NUMBERS[self.stored])
        # Copy on write: the file is never changed, and torch gets memory that it may write to.
        mapped = np.memmap(self.path, np.uint8, "c", self.offset, (self.span,))
        steps = tuple(stride * code.itemsize for stride in self.strides)
        array = np.ndarray(self.shape, code, mapped, 0, steps)
        array = np.require(array, code.newbyteorder("="), ["C", "A", "W"]).reshape(self.shape)
        tensor = torch.from_numpy(array)
        return (tensor.view(torch.bfloat16) if self.stored == torch.bfloat16 else tensor).to(self.dtype)


@dataclass(frozen=True)
class TensorFile:
    """What was found in a file: its tensors, the names of what else lies beside them, and the header's texts."""

    path: Path
    tensors: Mapping[str, FileTensor]
    entries: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


def open_tensors(path: Path, entry: str = "ema") -> TensorFile:
    """The tensors of a file: of the dict under `entry` where the file holds one, else those at the top.

    Raises `BigrError` naming the file, and the tensor at fault where there is one.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise BigrError(f"{path}: cannot be read: {error.strerror}") from None
    if start[8:] == b"{":
        return _open_safetensors(path)
    if start.startswith(_ZIP):
        return _open_zip(path, entry)
    if start.startswith((b"\x80\x02", b"\x80\x04")):
        raise BigrError(
            f"{path}: a checkpoint in torch's old format, which cannot be read without unpickling; where you trust it, "
            "load it with torch.load and save it again with torch.save"
        )
    raise BigrError(f"{path}: neither a checkpoint of torch (a zip file) nor safetensors; is the download whole?")


def _open_safetensors(path: Path) -> TensorFile:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise BigrError(f"{path}: not a whole safetensors file: {error}") from None
    with path.open("rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        header: dict[str, Any] = json.loads(raw.read(length))
    header.pop("__metadata__", None)
    tensors = {}
    for name, about in header.items():
        if about["dtype"] not in _SAFETENSORS:
            raise BigrError(f"{path}: tensor {name} is of type {about['dtype']}, which is not read here")
        shape = tuple(about["shape"])
        offset = 8 + length + about["data_offsets"][0]
        tensors[name] = FileTensor(path, shape, _SAFETENSORS[about["dtype"]], offset, _contiguous(shape))
    return TensorFile(path, tensors, metadata=metadata)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


@dataclass(frozen=True)
class _Storage:
    """What a pickle says of a storage: its type's name and its key in the zip file."""

    kind: str
    key: str


@dataclass(frozen=True)
class _View:
    """What a pickle says of a tensor."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _open_zip(path: Path, entry: str) -> TensorFile:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError) as error:
        raise BigrError(f"{path}: not a whole zip file: {_line(error)}; is the download complete?") from None
    try:
        return _read_members(path, members, entry)
    except pickles.Damaged as error:
        raise BigrError(f"{path}: its list of tensors cannot be read: {_line(error)}") from None


def _read_members(path: Path, members: Mapping[str, zipfile.ZipInfo], entry: str) -> TensorFile:
    listing = next((name for name in members if name == "data.pkl" or name.endswith("/data.pkl")), None)
    if listing is None:
        raise BigrError(f"{path}: a zip file, but not a checkpoint of torch: it has no data.pkl")
    root = listing.removesuffix("data.pkl")
    content = pickles.read(_content(path, members[listing]), _CALLS, _persistent)
    if not isinstance(content, dict):
        raise BigrError(f"{path}: holds no dict of tensors")
    found = content[entry] if isinstance(content.get(entry), dict) else content
    order = root + "byteorder"
    byteorder = ">" if order in members and _content(path, members[order]) == b"big" else "<"
    locate = _Locator(path, members, root, byteorder)
    tensors = {str(name): locate(str(name), view) for name, view in found.items() if isinstance(view, _View)}
    if not tensors:
        names = ", ".join(map(str, list(content)[:8]))
        raise BigrError(f"{path}: holds no tensors, neither under {entry} nor at the top; it has: {names or 'nothing'}")
    return TensorFile(path, tensors, tuple(map(str, content)))


@dataclass
class _Locator:
    """From what a pickle says of a tensor to its place in the file. Raises `BigrError` naming the tensor."""

    path: Path
    members: Mapping[str, zipfile.ZipInfo]
    root: str
    byteorder: str

    def __call__(self, name: str, view: _View) -> FileTensor:
        stored = _STORAGES.get(view.storage.kind)
        if stored is None:
            raise self._error(name, f"is of type {view.storage.kind}, which is not read here")
        member = self.members.get(f"{self.root}data/{view.storage.key}")
        if member is None:
            raise self._error(name, f"has no data: the file lacks data/{view.storage.key}")
        if member.compress_type != zipfile.ZIP_STORED:
            raise self._error(name, "is compressed, which torch.save never does; pack it again without compression")
        start = _start(self.path, member)
        numbers = (*view.shape, *view.strides, view.offset)
        if len(view.shape) != len(view.strides) or not all(isinstance(n, int) and n >= 0 for n in numbers):
            raise self._error(name, "has a shape that cannot be")
        offset = start + view.offset * stored.itemsize
        tensor = FileTensor(self.path, view.shape, stored, offset, view.strides, self.byteorder)
        size = max(math.prod(view.shape) * stored.itemsize, view.offset * stored.itemsize + tensor.span)
        if size > member.file_size:
            raise self._error(name, f"needs {size:,} bytes of data/{view.storage.key}, which has {member.file_size:,}")
        return tensor

    def _error(self, name: str, fault: str) -> BigrError:
        return BigrError(f"{self.path}: tensor {name} {fault}")


def _start(path: Path, member: zipfile.ZipInfo) -> int:
    """Where a member's data begins: behind a header of its own, whose length the directory does not tell."""
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
        raise BigrError(f"{path}: {member.filename} is compressed or encrypted, which torch.save never does")
    with path.open("rb") as file:
        end = file.seek(0, 2)
        file.seek(min(max(member.header_offset, 0), end))
        header = file.read(_LOCAL_HEADER)
    names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    start = member.header_offset + _LOCAL_HEADER + names
    if not header.startswith(_ZIP) or member.header_offset < 0 or start + member.file_size > end:
        raise BigrError(f"{path}: damaged at {member.filename}; is the download complete?")
    return start


def _content(path: Path, member: zipfile.ZipInfo) -> bytes:
    """A member's bytes, without a look at its checksum: torch can be told to write none."""
    with path.open("rb") as file:
        file.seek(_start(path, member))
        return file.read(member.file_size)


def _persistent(identity: Any) -> Any:
    match identity:
        case ("storage", pickles.Name(text=kind), str(key), *_) if kind.startswith("torch."):
            return _Storage(kind.rpartition(".")[2].removesuffix("Storage"), key)
    return pickles.Foreign()


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Any:
    return _View(storage, offset, tuple(shape), tuple(strides)) if isinstance(storage, _Storage) else pickles.Foreign()


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
