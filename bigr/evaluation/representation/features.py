"""Features of a frozen backbone on disk: every layer's token average, as float16, read through a memory map.

Those of ImageNet exceed a machine's memory, so that they are written and read in batches. Stored is a feature's
difference from its mean over the first batch, divided by a scale of its layer, so that float16 is enough.

Shapes: n images, B of a batch, L layers, D width. Layer l, from 1, is the output of the backbone's block l.
"""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bigr.data.codes import CodesDataset
from bigr.imaging.similarity import averages_of
from bigr.interop.standardisation import FeatureStatistics
from bigr.models.masked.generator import BiGR
from bigr.runtime.distributed import is_main, rank, together, world
from bigr.runtime.errors import BigrError
from bigr.runtime.files import write_tensors
from bigr.runtime.progress import Progress
from bigr.runtime.transfer import to_device

_LARGEST = 256.0
"""The stored magnitude of a layer's largest difference in the first batch. float16 keeps all its bits down to a
four-millionth of it, and overflows at 256 times of it."""

_BLOCK_BYTES = 256 << 20
"""Features that are read at a time for their statistics."""

_SIZE = np.dtype("<f2").itemsize

PART = 2048
"""Images of a file of the stage `evaluation`: 300 MB of the largest model's features."""


@dataclass(frozen=True)
class _Part:
    """The features of some images in a file of their own: float16 [n, L, D], and their offset and scale."""

    stored: np.ndarray
    offset: Tensor
    scale: Tensor

    def restored(self, index: slice | np.ndarray, layers: slice | int, device: torch.device) -> Tensor:
        """Rows of all layers or of one, float32 on `device`."""
        stored = self.stored[index, layers]
        # Chosen rows are a copy; a range is the read-only map, which torch would take for writable.
        half = torch.from_numpy(stored if stored.flags.writeable else stored.copy())
        offset, half, scale = (to_device(t, device) for t in (self.offset[layers], half, self.scale[layers]))
        return torch.addcmul(offset, half.float(), scale)


class Features:
    """The features of one split: float16 on disk, read as float32. Made by `open`. labels: int64 [n]."""

    def __init__(self, parts: list[_Part], labels: Tensor) -> None:
        self._parts, self.labels = parts, labels
        self._starts = np.cumsum([0, *(len(part.stored) for part in parts)])

    @classmethod
    def open(cls, *paths: Path) -> "Features":
        """Map files of `write_features`, a part of the images each. Raises `BigrError` if one is missing or damaged."""
        opened = [_opened(path) for path in paths]
        return cls([part for part, _ in opened], torch.cat([labels for _, labels in opened]))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def layers(self) -> int:
        """L, the number of layers."""
        return int(self._parts[0].stored.shape[1])

    @property
    def width(self) -> int:
        """D, the width of a layer."""
        return int(self._parts[0].stored.shape[2])

    def rows(self, chosen: Tensor | slice, device: torch.device, layers: slice = slice(None)) -> Tensor:
        """All layers, or a range of them, of the chosen images, int64 [B] or a range: float32 [B, L, D] on `device`."""
        if isinstance(chosen, slice):
            return self._range(chosen, layers, device)
        numbers = chosen.numpy()
        found = torch.empty(len(numbers), len(range(self.layers)[layers]), self.width, device=device)
        owners = np.searchsorted(self._starts, numbers, side="right") - 1
        for owner in np.unique(owners):
            here = np.flatnonzero(owners == owner)
            index = numbers[here] - self._starts[owner]
            places = to_device(torch.from_numpy(here), device)
            found[places] = self._parts[owner].restored(index, layers, device)
        return found

    def layer(self, number: int, chosen: slice, device: torch.device) -> Tensor:
        """Layer `number`, from 1, of a range of images: float32 [B, D] on `device`."""
        return self._range(chosen, number - 1, device)

    def _range(self, chosen: slice, layers: slice | int, device: torch.device) -> Tensor:
        first, last, _ = chosen.indices(len(self))
        found = []
        for part, start in zip(self._parts, self._starts.tolist(), strict=False):
            own = slice(max(0, first - start), min(len(part.stored), last - start))
            if own.start < own.stop:
                found.append(part.restored(own, layers, device))
        return found[0] if len(found) == 1 else torch.cat(found)

    def statistics(self, device: torch.device, block_bytes: int = _BLOCK_BYTES) -> FeatureStatistics:
        """Mean and standard deviation of the split, [L, D], from float64 sums over blocks of about `block_bytes`."""
        rows = max(1, block_bytes // (8 * self.layers * self.width))
        kind = torch.float64 if device.type != "mps" else torch.float32  # Metal has no float64
        total, squares = torch.zeros(2, self.layers, self.width, dtype=kind, device=device)
        origin = self._parts[0].offset.to(device)  # near the mean, so that the difference of squares is exact enough
        for start in range(0, len(self), rows):
            block = (self.rows(slice(start, start + rows), device) - origin).to(kind)
            total += block.sum(0)
            squares += block.square().sum(0)
        mean = total / len(self)
        deviation = (squares / len(self) - mean.square()).clamp(min=0).sqrt()
        return FeatureStatistics((origin + mean).float().cpu(), deviation.float().cpu())


def _opened(path: Path) -> tuple[_Part, Tensor]:
    """A file of `write_features`, mapped, and its labels."""
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        beside = load_file(_beside(path))
        part, labels = _Part(stored, beside["offset"], beside["scale"]), beside["labels"]
    except (OSError, ValueError, KeyError, EOFError, SafetensorError) as error:
        raise BigrError(f"{path}: the features cannot be read ({error}); remove {path.parent}") from None
    if stored.dtype != np.float16 or stored.shape != (len(labels), *part.offset.shape):
        raise BigrError(f"{path} does not match {_beside(path).name}; remove {path.parent}")
    return part, labels


def layer_features(folder: Path, split: str, model: BiGR, codes: CodesDataset, count: int, batch_size: int) -> Features:
    """Compute and write features of the first `count` images of a split (first view), each process its share.

    Parts that are in `folder` stay. They do not depend on the number of processes; see `write_features`.
    """
    size = max(1, PART // batch_size) * batch_size
    parts = [range(start, min(start + size, count)) for start in range(0, count, size)]
    paths = [folder / f"{split}-{part.start:09d}.npy" for part in parts]

    def write() -> None:
        for part, path in list(zip(parts, paths, strict=True))[rank() :: world()]:
            if _beside(path).is_file():  # it is written last
                continue
            batches = (codes.batch(indices) for indices in torch.arange(part.start, part.stop).split(batch_size))
            write_features(path, token_averages(model, batches), len(part), part.start)

    together(write)
    if not paths:
        raise BigrError(f"{split}: there are no images")
    return Features.open(*paths)


def token_averages(model: BiGR, codes: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Codes bool [B, N, K] and labels [B] → features float32 [B, L, D] and labels; see `averages_of`."""
    device = next(model.parameters()).device
    for bits, labels in codes:
        yield averages_of(model, bits.to(device)), labels


def write_features(path: Path, batches: Iterable[tuple[Tensor, Tensor]], count: int, first: int = 0) -> Features:
    """Write batches of features float32 [B, L, D] and labels [B] to `path` (`.npy`) and a file of scales beside it.

    count: the expected number of images, for the progress and the check of the disk; first: the number of the first of
    them in its split, for messages. Raises `BigrError` if there are no
    images, the disk is too small, or a feature is not finite.
    """
    labels: list[Tensor] = []
    offset, scale = torch.zeros(0, 0), torch.zeros(0, 0)
    done = 0
    with (
        path.open("wb") as file,
        Progress(f"features of {path.stem}", count, unit="image", enabled=is_main()) as progress,
    ):
        for features, here in batches:
            if not labels:
                _check_disk(path, count * features[0].numel() * _SIZE)
                offset, scale = _offset_and_scale(features)
                _write_header(file, (0, *offset.shape))
            stored = ((features - offset) / scale).half()
            _check_finite(stored, first + done)
            _write(path, file, stored.cpu().numpy())
            labels.append(here.cpu())
            done += len(here)
            progress.advance(len(here))
        if not labels:
            raise BigrError(f"{path.stem}: there are no images")
        file.seek(0)
        _write_header(file, (done, *offset.shape))  # of the same length: numpy leaves room for any number of rows
    write_tensors(_beside(path), {"labels": torch.cat(labels), "offset": offset.cpu(), "scale": scale.cpu()})
    return Features.open(path)


def _beside(path: Path) -> Path:
    return path.with_suffix(".safetensors")


def _offset_and_scale(features: Tensor) -> tuple[Tensor, Tensor]:
    """The first batch's mean of each feature [L, D], and the scale of each layer [L, 1]; features: [B, L, D]."""
    offset = features.mean(dim=0)
    farthest = (features - offset).abs().amax(dim=(0, 2))
    level = features.abs().amax(dim=(0, 2))  # used if all images of the batch are equal
    farthest = torch.where(farthest > level * 1e-6, farthest, level)
    return offset, torch.where(farthest > 0, farthest / _LARGEST, 1.0)[:, None]


def _check_finite(stored: Tensor, first: int) -> None:
    if bool((finite := stored.isfinite().all(dim=2)).all()):
        return
    image, layer = (~finite).nonzero()[0].tolist()
    raise BigrError(
        f"the features of image {first + image} in layer {layer + 1} are not finite, or far larger than all others; "
        "the training diverged, or the model's file is damaged"
    )


def _check_disk(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise BigrError(
            f"{path.parent}: the features of {path.stem} need {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB; "
            "free space, or measure fewer images"
        )


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header = {"descr": "<f2", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _write(path: Path, file: BinaryIO, stored: np.ndarray) -> None:
    try:
        file.write(stored.data)
    except OSError as error:
        raise BigrError(f"{path} cannot be written: {error.strerror}") from None
