"""Images in arrays: IDX files (MNIST, Fashion-MNIST, EMNIST), CIFAR's binary version, and `.npz`.

Each array is unpacked once to a file that is mapped, so that no process holds it. Nothing is unpickled.
"""

import gzip
import logging
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
from numpy.lib import format as npy

from bigr.data.sources.source import UNLABELLED, Sample, SourcePart, Splitting, checked_names, class_names, named
from bigr.data.sources.storage import Storage
from bigr.runtime.errors import BigrError
from bigr.runtime.files import atomic_path

log = logging.getLogger(__name__)

IDX_IMAGES = re.compile(r"(?P<before>.*?)(?P<split>train|t10k|test)-images[-.]idx(?P<dimensions>3|4)-ubyte(\.gz)?")
CIFAR10 = ([f"data_batch_{number}.bin" for number in range(1, 6)], ["test_batch.bin"], "batches.meta.txt", 1)
CIFAR100 = (["train.bin"], ["test.bin"], "fine_label_names.txt", 2)
_CIFAR_IMAGE = 3 * 32 * 32
_BLOCK = 1 << 24
_NPZ = {"train": (("x_train", "y_train"), ("arr_0", "arr_1")), "val": (("x_test", "y_test"), ("x_val", "y_val"))}


@dataclass(frozen=True)
class Array:
    """Images in files. shape: [n, H, W] or [n, H, W, 3]; files: where they are; unpack: writes all pixels."""

    shape: tuple[int, ...]
    files: tuple[str, ...]
    labels: np.ndarray
    unpack: Callable[[Storage, IO[bytes]], None] = field(repr=False)

    @property
    def name(self) -> str:
        """The array, as messages name it."""
        return self.files[0]

    def __reduce__(self) -> tuple[Any, ...]:  # another process reads what `prepare` has unpacked
        return Array, (self.shape, self.files, self.labels, _unpacked_before)


def _unpacked_before(storage: Storage, out: IO[bytes]) -> None:
    raise AssertionError("arrays are unpacked before another process reads them")


@dataclass
class ImageArrays:
    """Arrays of images; see `bigr.data.sources.source.Source`. held_out: chosen where only train has an array."""

    kind: str
    storage: Storage
    arrays: dict[str, Array]
    classes: list[str]
    splitting: Splitting
    prepared: Path | None = None
    ignored: int = 0

    @property
    def where(self) -> str:
        return self.storage.where()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_orders"}

    @cached_property
    def _orders(self) -> dict[str, tuple[str, np.ndarray]]:
        """Of each split the array that it is in, and the places of its images there, in their order."""
        if "val" in self.arrays:
            return {split: (split, self._shuffled(split, np.arange(len(a.labels)))) for split, a in self.arrays.items()}
        labels = self.arrays["train"].labels
        draw = np.random.default_rng(self.splitting.rank("val", "arrays"))
        held_out = np.zeros(len(labels), np.bool_)
        for label in range(len(self.classes)):
            mine = np.flatnonzero(labels == label)
            held_out[draw.permutation(mine)[: self.splitting.held_out(len(mine))]] = True
        divided = {"train": np.flatnonzero(~held_out), "val": np.flatnonzero(held_out)}
        return {split: ("train", self._shuffled(split, places)) for split, places in divided.items()}

    def _shuffled(self, split: str, places: np.ndarray) -> np.ndarray:
        return np.random.default_rng(self.splitting.rank("order", split)).permutation(places)

    def name_classes(self, names: list[str]) -> None:
        self.classes = named(self.classes, names, self.where)

    def counts(self) -> dict[str, int]:
        return {split: len(places) for split, (_, places) in self._orders.items()}

    def prepare(self, folder: Path) -> None:
        for split, array in self.arrays.items():
            with atomic_path(folder / f"{split}.pixels") as temporary, temporary.open("wb") as file:
                array.unpack(self.storage, file)
                size, needed = file.tell(), int(np.prod(array.shape))
            if size != needed:
                raise BigrError(
                    f"{self.storage.where(array.name)} is cut off: {needed:,} bytes of pixels expected, {size:,} found"
                )
        self.prepared = folder

    def parts(self, images: int) -> list[SourcePart]:
        return [
            SourcePart(split, first, min(images, count - first), (first,))
            for split, count in self.counts().items()
            for first in range(0, count, images)
        ]

    def read(self, part: SourcePart) -> Iterator[Sample]:
        assert self.prepared is not None and part.split is not None and part.images is not None
        source, places = self._orders[part.split]
        array = self.arrays[source]
        pixels = np.memmap(self.prepared / f"{source}.pixels", np.uint8, "r", shape=array.shape)
        for place in places[part.first : part.first + part.images]:
            image = pixels[place]
            image = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
            name = f"{array.name}[{place}]"
            yield Sample(name, part.split, np.array(image), int(array.labels[place]))

    def state(self, part: SourcePart) -> list[Any]:
        source, _ = self._orders[part.split or "train"]
        files = [self.storage.state(name) for name in self.arrays[source].files]
        return [files, self.splitting.val_fraction, self.splitting.seed]


def open_idx(storage: Storage, name: str | None, splitting: Splitting) -> ImageArrays:
    """IDX files in a folder. name: one of the image files, where there are those of several data sets."""
    files = storage.entries()[1]
    found = [match for file in files if (match := IDX_IMAGES.fullmatch(file))]
    if name is not None:
        named = IDX_IMAGES.fullmatch(name)
        if named is None:
            raise BigrError(
                f"{storage.where(name)} is an IDX file that is not named as training images are: "
                "train-images-idx3-ubyte, with .gz where it is compressed"
            )
        found = [match for match in found if match["before"] == named["before"]]
    sets = sorted({match["before"] for match in found})
    if len(sets) > 1:
        example = next(match[0] for match in found if match["before"] == sets[0])
        raise BigrError(
            f"{storage.where()} holds several IDX data sets ({', '.join(s.strip('-') or 'train-…' for s in sets)}); "
            f"name the images of one, such as {example}"
        )
    arrays: dict[str, Array] = {}
    names = class_names(storage) or _mapping(storage, files, sets[0])
    for match in sorted(found, key=lambda match: match[0]):  # `x` before `x.gz`
        split = "train" if match["split"] == "train" else "val"
        if split not in arrays:
            arrays[split] = _idx(storage, match, files)
    return _labelled("IDX files", storage, arrays, names, splitting)


def _idx(storage: Storage, match: re.Match[str], files: list[str]) -> Array:
    name = match[0]
    stem = name.removesuffix(".gz").replace("-images", "-labels").replace(f"idx{match['dimensions']}", "idx1")
    labels_name = next((label for label in (stem, f"{stem}.gz") if label in files), None)
    if labels_name is None:
        raise BigrError(f"{storage.where(name)}: its labels, {stem} or {stem}.gz, are missing; put them beside it")
    with _reading(storage, name), _unpacked(storage, name) as stream:
        shape = _idx_shape(storage, name, stream)
    with _reading(storage, labels_name), _unpacked(storage, labels_name) as stream:
        count = _idx_shape(storage, labels_name, stream)
        labels = np.frombuffer(stream.read(), np.uint8)
    if len(shape) < 3 or len(count) != 1 or count[0] != shape[0] or len(labels) != count[0]:
        raise BigrError(
            f"{storage.where(name)} holds {shape[0]:,} images, {labels_name} {len(labels):,} labels; "
            "each image needs one; get both files again"
        )
    if len(shape) == 4 and shape[3] not in (1, 3):
        raise BigrError(f"{storage.where(name)} holds images of {shape[3]} channels; they must have 1 or 3")
    turned = match["before"].startswith("emnist") and len(shape) == 3  # EMNIST's images are stored column by column

    def unpack(storage: Storage, out: IO[bytes]) -> None:
        with _reading(storage, name), _unpacked(storage, name) as stream:
            stream.read(4 + 4 * len(shape))
            if not turned:
                shutil.copyfileobj(stream, out, _BLOCK)
                return
            while block := stream.read(shape[1] * shape[2]):
                out.write(np.frombuffer(block, np.uint8).reshape(shape[1], shape[2]).T.tobytes())

    return Array(shape, (name, labels_name), labels, unpack)


def _idx_shape(storage: Storage, name: str, stream: IO[bytes]) -> tuple[int, ...]:
    head = stream.read(4)
    if len(head) < 4 or head[:3] != b"\0\0\x08" or not 1 <= head[3] <= 4:
        raise BigrError(f"{storage.where(name)} is not an IDX file of bytes; get it again")
    sizes = stream.read(4 * head[3])
    if len(sizes) < 4 * head[3]:
        raise BigrError(f"{storage.where(name)} is cut off; get it again")
    return struct.unpack(f">{head[3]}I", sizes)


def _mapping(storage: Storage, files: list[str], data_set: str) -> dict[int, str] | None:
    """EMNIST's own names of classes: lines of a label and the code of a character."""
    name = f"{data_set}mapping.txt"
    if not data_set or name not in files:
        return None
    lines = [line.split() for line in storage.read(name).decode("ascii", "replace").splitlines() if line.strip()]
    try:
        return {int(label): chr(int(code)) for label, code, *_ in lines}
    except ValueError:
        raise BigrError(f"{storage.where(name)} must have a label and the code of a character in each line") from None


def open_cifar(storage: Storage, splitting: Splitting) -> ImageArrays:
    """The binary version of CIFAR-10 or CIFAR-100 in a folder."""
    files = storage.entries()[1]
    train, test, names_file, label_bytes = CIFAR100 if CIFAR100[0][0] in files else CIFAR10
    kind = "CIFAR-100" if label_bytes == 2 else "CIFAR-10"
    if missing := [name for name in (*train, *test) if name not in files]:
        raise BigrError(f"{storage.where()} has no {missing[0]}, which belongs to {kind}; put it there")
    names = class_names(storage)
    if names is None and names_file in files:
        lines = storage.read(names_file).decode("utf-8", "replace").split()
        names = checked_names(lines, storage.where(names_file))
    arrays = {"train": _cifar(storage, train, label_bytes), "val": _cifar(storage, test, label_bytes)}
    return _labelled(f"{kind}, binary", storage, arrays, names, splitting)


def _cifar(storage: Storage, files: list[str], label_bytes: int) -> Array:
    record = label_bytes + _CIFAR_IMAGE
    labels = []
    for name in files:
        with storage.open(name) as stream:
            size = stream.seek(0, 2)
            if not size or size % record:
                raise BigrError(f"{storage.where(name)} has {size:,} bytes, not a multiple of {record:,}; get it again")
            stream.seek(0)
            while block := stream.read(record * 1000):
                labels.append(np.frombuffer(block, np.uint8).reshape(-1, record)[:, label_bytes - 1].copy())
    joined = np.concatenate(labels)

    def unpack(storage: Storage, out: IO[bytes]) -> None:
        for name in files:
            with storage.open(name) as stream:
                while block := stream.read(record * 1000):
                    planes = np.frombuffer(block, np.uint8).reshape(-1, record)[:, label_bytes:]
                    out.write(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).tobytes())

    return Array((len(joined), 32, 32, 3), tuple(files), joined, unpack)


def open_npz(storage: Storage, name: str, splitting: Splitting) -> ImageArrays:
    """An `.npz` file: `x_train`, `y_train` and perhaps `x_test`, `y_test`; or `arr_0` and perhaps `arr_1`."""
    arrays: dict[str, Array] = {}
    with _reading(storage, name), storage.open(name) as file, zipfile.ZipFile(file) as archive:
        members = {member.removesuffix(".npy") for member in archive.namelist()}
        for split, pairs in _NPZ.items():
            for images, labels in pairs:
                if images in members:
                    arrays[split] = _member(storage, name, archive, images, labels if labels in members else None)
                    break
    if "train" not in arrays:
        raise BigrError(
            f"{storage.where(name)} has {', '.join(sorted(members)) or 'nothing'}; images must be in x_train or arr_0, "
            "labels in y_train or arr_1"
        )
    return _labelled("npz file", storage, arrays, class_names(storage), splitting)


def _member(storage: Storage, name: str, archive: zipfile.ZipFile, images: str, labels: str | None) -> Array:
    where = f"{storage.where(name)}: {images}"
    with archive.open(f"{images}.npy") as stream:
        shape, fortran, dtype = _npy_header(stream)
    planes_first = len(shape) == 4 and shape[3] not in (1, 3) and shape[1] in (1, 3)
    if (
        dtype != np.uint8
        or fortran
        or not (len(shape) == 3 or planes_first or (len(shape) == 4 and shape[3] in (1, 3)))
    ):
        raise BigrError(
            f"{where} must be uint8 [n, H, W], [n, H, W, 3] or [n, 3, H, W], got {dtype} {list(shape)}"
            + (" in Fortran order" if fortran else "")
        )
    if labels is None:
        values = np.zeros(shape[0], np.int64)
    else:
        with archive.open(f"{labels}.npy") as stream:
            sizes, _, kind = _npy_header(stream)
            if kind.kind not in "iu":
                raise BigrError(f"{storage.where(name)}: {labels} must be integers, got {kind}")
            values = np.frombuffer(stream.read(), kind).astype(np.int64)
        if sizes not in ((shape[0],), (shape[0], 1)) or len(values) != shape[0]:
            raise BigrError(
                f"{storage.where(name)}: {labels} has {len(values):,} numbers, {images} {shape[0]:,} images; give one "
                "each"
            )
    final = (shape[0], shape[2], shape[3], shape[1]) if planes_first else shape

    def unpack(storage: Storage, out: IO[bytes]) -> None:
        with (
            _reading(storage, name),
            storage.open(name) as file,
            zipfile.ZipFile(file) as archive,
            archive.open(f"{images}.npy") as stream,
        ):
            _npy_header(stream)
            if not planes_first:
                shutil.copyfileobj(stream, out, _BLOCK)
                return
            while block := stream.read(int(np.prod(shape[1:]))):
                out.write(np.frombuffer(block, np.uint8).reshape(shape[1:]).transpose(1, 2, 0).tobytes())

    return Array(final, (name,), values, unpack)


def _npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return read(stream)


def _labelled(kind: str, storage: Storage, arrays: dict[str, Array], names: Any, splitting: Splitting) -> ImageArrays:
    """The arrays with labels from 0 on, whatever they are in the files, and the classes' names.

    names: a list, by the files' own labels where these are 0 to C − 1; or a mapping from them.
    """
    if "train" not in arrays:
        raise BigrError(f"{storage.where()} has no training images, only those of {next(iter(arrays.values())).name}")
    if empty := next((array for array in arrays.values() if not np.prod(array.shape)), None):
        raise BigrError(f"{storage.where(empty.name)} holds no image; get it again")
    values = np.unique(arrays["train"].labels)
    if "val" in arrays and (unknown := np.setdiff1d(arrays["val"].labels, values)).size:
        raise BigrError(
            f"{storage.where(arrays['val'].name)} has images of class {unknown[0]}, which "
            f"{arrays['train'].name} has not; correct the labels"
        )
    if isinstance(names, list):
        if values[0] < 0 or values[-1] >= len(names) or len(values) < len(names):
            raise BigrError(
                f"{storage.where()}: {len(names)} class names are given, but the training images have "
                f"{len(values)} classes, {values[0]} to {values[-1]}; correct the names"
            )
        classes = names
    elif names is not None:
        classes = [names.get(int(value), str(value)) for value in values]
    else:
        classes = [UNLABELLED] if len(values) == 1 else [str(value) for value in values]
    relabelled = {
        split: Array(a.shape, a.files, np.searchsorted(values, a.labels).astype(np.int32), a.unpack)
        for split, a in arrays.items()
    }
    return ImageArrays(kind, storage, relabelled, classes, splitting)


@contextmanager
def _unpacked(storage: Storage, name: str) -> Iterator[IO[bytes]]:
    file: BinaryIO
    with storage.open(name) as file:
        if not name.endswith(".gz"):
            yield file
            return
        with gzip.GzipFile(fileobj=file) as stream:
            yield cast("IO[bytes]", stream)


@contextmanager
def _reading(storage: Storage, name: str) -> Iterator[None]:
    try:
        yield
    except BigrError:
        raise
    except (OSError, EOFError, ValueError, KeyError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BigrError(f"{storage.where(name)} cannot be read ({reason}); get it again") from None
