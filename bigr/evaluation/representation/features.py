"""Features of a frozen backbone on disk: every layer's token average, as float16, read through a memory map.

Those of ImageNet exceed a machine's memory, so that they are written and read in batches. Stored is a feature's
difference from its mean over the first batch, divided by a scale of its layer, so that float16 is enough.

Shapes: n images, B of a batch, L layers, D width. Layer l, from 1, is the output of the backbone's block l.
"""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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


class Features:
    """The features of one split: float16 on disk, read as float32. Made by `open`. labels: int64 [n]."""

    def __init__(self, stored: np.ndarray, labels: Tensor, offset: Tensor, scale: Tensor) -> None:
        self._stored, self.labels, self._offset, self._scale = stored, labels, offset, scale

    @classmethod
    def open(cls, path: Path) -> "Features":
        """Map a file of `write_features`. Raises `BigrError` if it is missing or damaged."""
        try:
            stored = np.load(path, mmap_mode="r", allow_pickle=False)
            beside = load_file(_beside(path))
            found = cls(stored, beside["labels"], beside["offset"], beside["scale"])
        except (OSError, ValueError, KeyError, EOFError, SafetensorError) as error:
            raise BigrError(f"{path}: the features cannot be read ({error}); remove {path.parent}") from None
        if stored.dtype != np.float16 or stored.shape != (len(found.labels), *found._offset.shape):
            raise BigrError(f"{path} does not match {_beside(path).name}; remove {path.parent}")
        return found

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def layers(self) -> int:
        """L, the number of layers."""
        return int(self._stored.shape[1])

    @property
    def width(self) -> int:
        """D, the width of a layer."""
        return int(self._stored.shape[2])

    def rows(self, chosen: Tensor | slice, device: torch.device) -> Tensor:
        """All layers of the chosen images, int64 [B] or a range: float32 [B, L, D] on `device`."""
        index = chosen if isinstance(chosen, slice) else chosen.numpy()
        return self._restored(self._stored[index], slice(None), device)

    def layer(self, number: int, chosen: slice, device: torch.device) -> Tensor:
        """Layer `number`, from 1, of a range of images: float32 [B, D] on `device`."""
        return self._restored(self._stored[chosen, number - 1], number - 1, device)

    def statistics(self, device: torch.device, block_bytes: int = _BLOCK_BYTES) -> FeatureStatistics:
        """Mean and standard deviation of the split, [L, D], from float64 sums over blocks of about `block_bytes`."""
        rows = max(1, block_bytes // (8 * self.layers * self.width))
        kind = torch.float64 if device.type != "mps" else torch.float32  # Metal has no float64
        total, squares = torch.zeros(2, self.layers, self.width, dtype=kind, device=device)
        origin = self._offset.to(device)  # near the mean, so that the difference of squares is exact enough
        for start in range(0, len(self), rows):
            block = (self.rows(slice(start, start + rows), device) - origin).to(kind)
            total += block.sum(0)
            squares += block.square().sum(0)
        mean = total / len(self)
        deviation = (squares / len(self) - mean.square()).clamp(min=0).sqrt()
        return FeatureStatistics((origin + mean).float().cpu(), deviation.float().cpu())

    def _restored(self, stored: np.ndarray, layers: slice | int, device: torch.device) -> Tensor:
        # Chosen rows are a copy; a range is the read-only map, which torch would take for writable.
        half = torch.from_numpy(stored if stored.flags.writeable else stored.copy())
        offset, half, scale = (to_device(t, device) for t in (self._offset[layers], half, self._scale[layers]))
        return torch.addcmul(offset, half.float(), scale)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """An empty folder that is removed at the end; what a killed process left there is removed first."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def layer_features(path: Path, model: BiGR, codes: CodesDataset, count: int, batch_size: int) -> Features:
    """Compute and write features of the first `count` images of a split (first view); see `write_features`."""
    batches = (codes.batch(indices) for indices in torch.arange(count).split(batch_size))
    return write_features(path, token_averages(model, batches), count)


def token_averages(model: BiGR, codes: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Codes bool [B, N, K] and labels [B] → features float32 [B, L, D] and labels; see `averages_of`."""
    device = next(model.parameters()).device
    for bits, labels in codes:
        yield averages_of(model, bits.to(device)), labels


def write_features(path: Path, batches: Iterable[tuple[Tensor, Tensor]], count: int) -> Features:
    """Write batches of features float32 [B, L, D] and labels [B] to `path` (`.npy`) and a file of scales beside it.

    count: the expected number of images, for the progress and the check of the disk. Raises `BigrError` if there are no
    images, the disk is too small, or a feature is not finite.
    """
    labels: list[Tensor] = []
    offset, scale = torch.zeros(0, 0), torch.zeros(0, 0)
    done = 0
    with path.open("wb") as file, Progress(f"features of {path.stem}", count, unit="image") as progress:
        for features, here in batches:
            if not labels:
                _check_disk(path, count * features[0].numel() * _SIZE)
                offset, scale = _offset_and_scale(features)
                _write_header(file, (0, *offset.shape))
            stored = ((features - offset) / scale).half()
            _check_finite(stored, done)
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
