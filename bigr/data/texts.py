"""Texts on disk: every caption of the shards as an encoder read it, memory-mapped as codes are.

One safetensors file for each image shard: `values`, the rows of all texts one after the other (int32 [rows] numbers of
byte pairs, or float16 [rows, C] features), and `starts` int64 [n + 1], where each text begins. `index.json` names the
encoder's hash and shape, and for each split the files: by name, or with size and checksum at a URL.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from bigr.data.stored_files import StoredFile, check_room, fetch, stored_file
from bigr.models.text_shape import text_shape
from bigr.runtime.errors import BigrError
from bigr.runtime.files import write_json, write_tensors
from bigr.text.encoder import padded

INDEX = "index.json"


def write_texts(path: Path, arrays: Sequence[np.ndarray], encoder: str, cut: int) -> None:
    """Write the texts of one shard atomically. encoder: its hash; cut: how many of them were longer."""
    starts = np.cumsum([0, *map(len, arrays)])
    tensors = {"values": torch.from_numpy(np.concatenate(arrays)), "starts": torch.from_numpy(starts)}
    write_tensors(path, tensors, {"encoder": encoder, "cut": str(cut)})


def text_counts(file: StoredFile) -> dict[str, int]:
    """How many texts a file has, how many of them were cut, and how many are none."""
    with file.open() as stream:
        header, length = _header(stream)
        starts = _map(stream, header["starts"], length)
    return {
        "captions": len(starts) - 1,
        "cut": int(header["__metadata__"]["cut"]),
        "without_words": int((np.diff(starts) == 0).sum()),
    }


def write_text_index(
    folder: Path, encoder: str | None, shape: Mapping[str, Any], files: Mapping[str, Sequence[str | Mapping[str, Any]]]
) -> None:
    """Write `index.json`, last of all. encoder: its hash, None where there is none; files: of each split, in order, by
    their names, or by the entries of those at a URL."""
    splits = {split: list(names) for split, names in files.items()}
    write_json(folder / INDEX, {"encoder": encoder, "shape": dict(shape), "splits": splits})


@dataclass(frozen=True)
class Texts:
    """The texts of one split, in the order of its images. Made by `open`.

    encoder: its hash; shape: the fields of `BackboneConfig` that follow from it.
    """

    encoder: str
    shape: dict[str, Any]
    _values: list[np.ndarray]
    _starts: list[np.ndarray]

    @classmethod
    def open(cls, folder: Path, split: str, images: int) -> "Texts | None":
        """Map the files of a split; None where the texts are not used (`text.encoder: none`).

        Raises `BigrError` for damaged files, and where there are not as many texts as `images`.
        """
        path = folder / INDEX
        if not path.exists():
            return None
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            if index["encoder"] is None:
                return None
            files = text_files(folder, index)
            check_room([file for of_split in files.values() for file in of_split], f"the texts of {path}")
            fetch(files[split])
            maps = [_mapped(file, index["encoder"]) for file in files[split]]
            found = cls(index["encoder"], dict(index["shape"]), [v for v, _ in maps], [s for _, s in maps])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BigrError(f"{folder} holds no texts ({error!r}); run the stage text again") from None
        if len(found) != images:
            raise BigrError(f"{folder} holds {len(found)} {split} texts for {images} images; run the stage text again")
        return found

    @cached_property
    def _ends(self) -> np.ndarray:
        """Where each file's first text is in the split, and where the last file's end: files + 1 numbers."""
        return np.cumsum([0, *(len(starts) - 1 for starts in self._starts)])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(self, indices: Tensor) -> Tensor:
        """The texts of images, indices int64 [B], as the model takes them: [B, P] or [B, (1 +) P, C]."""
        arrays = []
        for index in indices.tolist():
            file = int(np.searchsorted(self._ends, index, side="right")) - 1
            place = index - int(self._ends[file])
            first, last = self._starts[file][place : place + 2]
            arrays.append(self._values[file][first:last])
        return padded(arrays, text_shape(self.shape))


def text_files(folder: Path, index: Mapping[str, Any]) -> dict[str, list[StoredFile]]:
    """The files of each split that an index names. Raises `KeyError` or `ValueError` where they are no names."""
    return {
        split: [stored_file(folder, {"name": one} if isinstance(one, str) else one, "text") for one in names]
        for split, names in index["splits"].items()
    }


def _mapped(file: StoredFile, encoder: str) -> tuple[np.ndarray, np.ndarray]:
    """Memory maps of a file's values and starts. safetensors itself has no maps that can be indexed."""
    with file.open(held=True) as stream:
        header, length = _header(stream)
        if header["__metadata__"]["encoder"] != encoder:
            raise ValueError(f"{Path(file.where).name} is of another encoder")
        return _map(stream, header["values"], length), _map(stream, header["starts"], length)


def _header(stream: BinaryIO) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and its length in bytes."""
    length = int.from_bytes(stream.read(8), "little")
    return (json.loads(stream.read(length)) if length < os.fstat(stream.fileno()).st_size else {}), length


def _map(stream: BinaryIO, entry: dict[str, Any], length: int) -> np.ndarray:
    dtype = {"F16": "<f2", "I32": "<i4", "I64": "<i8"}[entry["dtype"]]
    shape, offset = tuple(entry["shape"]), 8 + length + entry["data_offsets"][0]
    return np.memmap(stream, dtype, "r", offset, shape) if np.prod(shape) else np.zeros(shape, dtype)
