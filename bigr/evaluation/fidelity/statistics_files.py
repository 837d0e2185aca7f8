"""Statistics of image sets on disk: files that a user keeps, and the cache of references.

A file is safetensors: `mu`, `sigma` (float64), `features` and `logits` if they are kept. Its header names the extractor
and the set, both by hash.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from bigr.evaluation.fidelity.extractors import Extractor
from bigr.evaluation.fidelity.statistics import Statistics
from bigr.runtime.errors import BigrError
from bigr.runtime.files import write_tensors

_FORMAT = "bigr-statistics-1"


def check_writable(path: Path) -> None:
    """Raise `BigrError` if statistics cannot be written to `path`, or would replace another file."""
    option = f"--save-statistics: {path}"
    if path.suffix != ".safetensors":
        raise BigrError(f"{option} must end in .safetensors")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise BigrError(f"{option} cannot be written: {above} is not a folder with permission to write")
    if path.exists() and not _holds_statistics(path):
        raise BigrError(f"{option} exists and does not hold statistics; name another file")


def _holds_statistics(path: Path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("format") == _FORMAT
    except (OSError, SafetensorError):
        return False


def write_statistics(path: Path, statistics: Statistics, about: Mapping[str, Any], *, features: bool = True) -> None:
    """Write statistics atomically. Without `features`, mean and covariance alone: a small file, for FID."""
    tensors = {"mu": torch.from_numpy(statistics.mu), "sigma": torch.from_numpy(statistics.sigma)}
    if features and statistics.features is not None:
        tensors["features"] = statistics.features
    if features and statistics.logits is not None:
        tensors["logits"] = statistics.logits
    header = {
        "extractor": statistics.extractor,
        "extractor_hash": statistics.extractor_hash,
        "count": statistics.count,
        "set": dict(about),
    }
    write_tensors(path, tensors, {"format": _FORMAT, "about": json.dumps(header, sort_keys=True)})


def read_statistics(path: Path) -> tuple[Statistics, dict[str, Any]]:
    """Statistics, and `hash`, `kind`, `formats`, `size` of their set. Raises `BigrError` for any other file."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise BigrError(f"{path} holds no statistics; `bigr evaluate --save-statistics` writes such files")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        header = json.loads(metadata["about"])
        mu, sigma = tensors["mu"].numpy(), tensors["sigma"].numpy()
        if sigma.shape != (len(mu), len(mu)):
            raise ValueError(f"mu {list(mu.shape)}, sigma {list(sigma.shape)}")
        extractor = header["extractor"], header["extractor_hash"], header["count"]
        statistics = Statistics(*extractor, mu, sigma, tensors.get("features"), tensors.get("logits"))
        return statistics, {key: header["set"][key] for key in ("hash", "kind", "formats", "size")}
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BigrError(f"{path} cannot be read as statistics: {error}") from None


def cache_file(folder: Path, content: str, extractor: Extractor) -> Path:
    """The file in the cache `folder` of this extractor's statistics of a set with the hash `content`."""
    key = [_FORMAT, content, extractor.name, extractor.hash, extractor.layer, extractor.device.type]
    return folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.safetensors"
