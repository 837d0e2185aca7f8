"""A checkpoint on disk: safetensors files, of which nothing is executed when they are read.

    checkpoint.safetensors              what the first process holds, and in its metadata the index of the checkpoint
    before.safetensors                  the same of the checkpoint before it
    step-600-part-1-of-4.safetensors    what each other process holds, where modules are sharded

The first file is written last: a checkpoint without it does not exist. A sharded tensor's rows follow each other in the
order of the parts. Each file has a checksum of each of its tensors.
"""

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

NEWEST, BEFORE, NEXT = (f"{name}.safetensors" for name in ("checkpoint", "before", "next"))
_PART = re.compile(r"step-(\d+)-part-\d+-of-\d+\.safetensors")


class UnreadableCheckpoint(Exception):
    """The checkpoint is damaged; the message says where."""


@dataclass(frozen=True)
class Index:
    """What a checkpoint is of. fingerprint: of code, settings and inputs; step: steps done; parts: how many files;
    progress: JSON values.
    """

    fingerprint: str
    step: int
    parts: int
    progress: dict[str, Any]


def part_name(step: int, part: int, parts: int) -> str:
    """The file of a part; of part 0, as it is written."""
    return f"step-{step}-part-{part}-of-{parts}.safetensors" if part else NEXT


def metadata_of(tensors: Mapping[str, Tensor], index: Index | None = None) -> dict[str, str]:
    """The metadata of a file with these tensors, which are on the CPU; index: of the first file."""
    sums = {name: _checksum(tensor) for name, tensor in tensors.items()}
    return {"crc32": json.dumps(sums)} | ({"index": json.dumps(asdict(index))} if index else {})


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def publish(folder: Path, *, oldest: int, whole: bool) -> None:
    """Make the first file that was written the newest checkpoint, and the newest so far the one before.

    oldest: the least step that is kept; parts of earlier ones are deleted; whole: whether the newest so far is; else it
    is overwritten, and the one before it stays.
    """
    if whole and (folder / NEWEST).exists():
        (folder / NEWEST).replace(folder / BEFORE)
    (folder / NEXT).replace(folder / NEWEST)
    remove_parts(folder, oldest)


def remove_parts(folder: Path, oldest: int) -> None:
    """Delete the parts of checkpoints of earlier steps than `oldest`."""
    for path in folder.glob("step-*"):
        if (match := _PART.fullmatch(path.name)) and int(match[1]) < oldest:
            path.unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Delete all checkpoints of the folder."""
    for path in [folder / NEWEST, folder / BEFORE, folder / NEXT, *folder.glob("step-*")]:
        path.unlink(missing_ok=True)


class StoredCheckpoint:
    """A checkpoint that is there, by the path of its first file. Raises `UnreadableCheckpoint` where a file is not.

    index: of what it is. `open` must be called before its tensors are read.
    """

    def __init__(self, first: Path) -> None:
        with _reading(first):
            self.index = Index(**json.loads(safe_open(first, "pt").metadata()["index"]))
        parts = range(1, self.index.parts)
        self.paths = [first, *(first.with_name(part_name(self.index.step, i, self.index.parts)) for i in parts)]
        self._pieces: dict[str, list[tuple[Any, tuple[int, ...]]]] = {}

    def open(self, process: int, processes: int) -> None:
        """Open all files, and compare this process's share of them with their checksums."""
        for number, path in enumerate(self.paths):
            with _reading(path):
                file = safe_open(path, "pt")
                sums = json.loads(file.metadata()["crc32"])
                for name, value in sums.items():
                    self._pieces.setdefault(name, []).append((file, tuple(file.get_slice(name).get_shape())))
                    if number % processes == process and _checksum(file.get_tensor(name)) != value:
                        raise ValueError(f"{name} is not what was written")

    def names(self, prefix: str) -> list[str]:
        """The names of all tensors that begin with `prefix`, without it."""
        return [name.removeprefix(prefix) for name in self._pieces if name.startswith(prefix)]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor with all its rows."""
        shapes = [shape for _, shape in self._pieces[name]]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if shapes[0] else ()

    def read(self, name: str, rows: tuple[int, int] | None = None) -> Tensor:
        """A tensor, or its rows [start, stop), on the CPU."""
        shape = self.shape(name)
        if not shape:
            scalar: Tensor = self._pieces[name][0][0].get_tensor(name)
            return scalar
        start, stop = rows or (0, shape[0])
        found: list[Tensor] = []
        offset = 0
        for file, (length, *_) in self._pieces[name]:
            first, last = max(start - offset, 0), min(stop - offset, length)
            if first < last:
                found.append(file.get_slice(name)[first:last])
            offset += length
        return torch.cat(found) if found else torch.empty((0, *shape[1:]))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UnreadableCheckpoint(f"{path.name}: {error}") from None
