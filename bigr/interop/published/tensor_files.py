"""Tensors in files of others: torch's zip checkpoints (`.pt`, `.th`) and safetensors, mapped one at a time.

Nothing is read before `FileTensor.read`, which maps that tensor alone: a file may be much larger than memory. Nothing
that a checkpoint names is imported or called: its pickle is read with each class and function replaced.
`torch.load(weights_only=True)` would refuse checkpoints that hold objects of other classes.
"""

import io
import json
import math
import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bigr.runtime.errors import BigrError
from bigr.runtime.files import DTYPES

_ZIP, _LOCAL_HEADER, _ENCRYPTED = b"PK\x03\x04", 30, 1
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
_SAFETENSORS = {name: dtype for dtype, name in DTYPES.items()}


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
    big_endian: bool = False

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
        # Copy on write: the file is never changed, and torch gets memory that it may write to.
        data: np.ndarray = np.memmap(self.path, np.uint8, "c", self.offset, (self.span,))
        if self.big_endian:
            data = np.ascontiguousarray(data.reshape(-1, self.stored.itemsize)[:, ::-1]).ravel()
        elif data.ctypes.data % self.stored.itemsize:  # torch writes its tensors aligned; other writers may not
            data = np.array(data)
        numbers = torch.from_numpy(data).view(self.stored)
        return numbers.as_strided(self.shape, self.strides).to(self.dtype).contiguous()


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
        return _open_checkpoint(path, entry)
    if start.startswith((b"\x80\x02", b"\x80\x04")):
        raise BigrError(
            f"{path}: a checkpoint in torch's old format, which is not read here; where you trust it, load it with "
            "torch.load and save it again with torch.save"
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
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        offset = 8 + length + about["data_offsets"][0]
        tensors[name] = FileTensor(path, shape, _SAFETENSORS[about["dtype"]], offset, strides)
    return TensorFile(path, tensors, metadata=metadata)


class _Ignored:
    """In the place of any object but a tensor: takes whatever is done to it, and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, *_: Any, **__: Any) -> "_Ignored":
        return self

    def ignore(self, *_: Any) -> None: ...

    __setitem__ = append = extend = add = update = ignore
    __setstate__ = staticmethod(lambda *_: None)


class _View(NamedTuple):
    """What a pickle says of a tensor: its storage (type's name, key in the zip file), and its place there."""

    storage: tuple[str, str]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Dict(dict[Any, Any]):
    """In the place of an `OrderedDict`, without the attributes that a state dict has."""

    __setstate__ = staticmethod(lambda *_: None)


def _view(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Any:
    return _View(storage, offset, tuple(shape), tuple(strides)) if isinstance(storage, tuple) else _Ignored()


def _replacement(make: Any) -> type:
    """A class that makes what `make` does: a pickle may ask for a class where the file's author had a function."""
    return type("Replacement", (_Ignored,), {"__new__": lambda _, *arguments: make(*arguments)})


class _Listing(pickle.Unpickler):
    _MADE: Mapping[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): _Dict,
        ("torch._utils", "_rebuild_tensor"): _view,
        ("torch._utils", "_rebuild_tensor_v2"): _view,
        ("torch._utils", "_rebuild_parameter"): lambda view, *_: view,
        ("torch._utils", "_rebuild_parameter_with_state"): lambda view, *_: view,
    }

    def find_class(self, module: str, name: str, /) -> Any:
        """The replacement of a class or function; nothing is looked up."""
        if module == "torch" and name.endswith("Storage"):
            return type(name, (_Ignored,), {})
        return _replacement(self._MADE.get((module, name), _Ignored))

    def persistent_load(self, pid: Any, /) -> Any:
        """What stands for a storage."""
        match pid:
            case ("storage", type(__name__=kind), str(key), *_):
                return kind.removesuffix("Storage"), key
        return _Ignored()


def _open_checkpoint(path: Path, entry: str) -> TensorFile:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError) as error:
        raise BigrError(f"{path}: not a whole zip file: {_line(error)}; is the download complete?") from None
    listing = next((name for name in members if name == "data.pkl" or name.endswith("/data.pkl")), None)
    if listing is None:
        raise BigrError(f"{path}: a zip file, but not a checkpoint of torch: it has no data.pkl")
    data = _content(path, members[listing])
    try:
        content = _Listing(io.BytesIO(data), encoding="utf-8").load()
    except Exception as error:  # whatever the bytes make the unpickler do
        raise BigrError(f"{path}: its list of tensors cannot be read: {_line(error)}") from None
    if not isinstance(content, dict):
        raise BigrError(f"{path}: holds no dict of tensors")
    found = content[entry] if isinstance(content.get(entry), dict) else content
    root = listing.removesuffix("data.pkl")
    order = root + "byteorder"
    big_endian = order in members and _content(path, members[order]) == b"big"
    views = {str(name): view for name, view in found.items() if isinstance(view, _View)}
    tensors = {name: _place(path, members, root, big_endian, name, view) for name, view in views.items()}
    if not tensors:
        names = ", ".join(map(str, list(content)[:8]))
        raise BigrError(f"{path}: holds no tensors, neither under {entry} nor at the top; it has: {names or 'nothing'}")
    return TensorFile(path, tensors, tuple(map(str, content)))


def _place(
    path: Path, members: Mapping[str, zipfile.ZipInfo], root: str, big_endian: bool, name: str, view: _View
) -> FileTensor:
    kind, key = view.storage
    stored = _STORAGES.get(kind)
    member = members.get(f"{root}data/{key}")
    numbers = (*view.shape, *view.strides, view.offset)
    fault = None
    if stored is None:
        fault = f"is of type {kind}, which is not read here"
    elif member is None:
        fault = f"has no data: the file lacks data/{key}"
    elif member.compress_type != zipfile.ZIP_STORED:
        fault = "is compressed, which torch.save never does; pack it again without compression"
    elif len(view.shape) != len(view.strides) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        fault = "has an impossible shape"
    else:
        before = view.offset * stored.itemsize
        tensor = FileTensor(path, view.shape, stored, _start(path, member) + before, view.strides, big_endian)
        size = max(math.prod(view.shape) * stored.itemsize, before + tensor.span)
        if size <= member.file_size:
            return tensor
        fault = f"needs {size:,} bytes of data/{key}, which has {member.file_size:,}"
    raise BigrError(f"{path}: tensor {name} {fault}")


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


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "it is not whole"
