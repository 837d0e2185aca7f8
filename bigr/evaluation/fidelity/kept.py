"""Statistics of a set on disk: files that a user keeps, and the cache of references.

A file is safetensors: `mu`, `sigma` (float64), `features` and `logits` where they are kept; the header says which
extractor saw which set, both by hash. The cache is a folder of such files, each named by what it follows from.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from bigr.evaluation.fidelity.extractors import Extractor
from bigr.evaluation.fidelity.statistics import Statistics
from bigr.runtime.errors import BigrError
from bigr.runtime.files import write_tensors

_FORMAT = "bigr-statistics-1"


@dataclass(frozen=True)
class Kept:
    """What a file holds. about: of the set: `hash`, `kind`, `formats` and `size`."""

    statistics: Statistics
    about: dict[str, Any]


def check_place(path: Path) -> None:
    """Raise `BigrError` where no statistics can be kept at `path`, or something else would be lost."""
    option = f"--save-statistics: {path}"
    if path.suffix != ".safetensors":
        raise BigrError(f"{option} must end in .safetensors")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise BigrError(f"{option} cannot be written: {above} is no folder that one may write to")
    if path.exists() and not _is_ours(path):
        raise BigrError(f"{option} holds something else than statistics; name another file")


def _is_ours(path: Path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("format") == _FORMAT
    except (OSError, SafetensorError):
        return False


def write(path: Path, statistics: Statistics, about: Mapping[str, Any], *, features: bool = True) -> None:
    """Write statistics atomically. Without `features` the file is small, and allows a Fréchet distance alone."""
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


def read(path: Path) -> Kept:
    """Read statistics. Raises `BigrError` where the file is something else, or damaged."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise BigrError(f"{path} holds no statistics; `bigr evaluate --save-statistics` writes such files")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        about = json.loads(metadata["about"])
        mu, sigma = tensors["mu"].numpy(), tensors["sigma"].numpy()
        if sigma.shape != (len(mu), len(mu)):
            raise ValueError(f"mu {list(mu.shape)}, sigma {list(sigma.shape)}")
        statistics = Statistics(
            about["extractor"],
            about["extractor_hash"],
            about["count"],
            mu,
            sigma,
            tensors.get("features"),
            tensors.get("logits"),
        )
        return Kept(statistics, {key: about["set"][key] for key in ("hash", "kind", "formats", "size")})
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BigrError(f"{path} cannot be read as statistics: {error}") from None


def place(folder: Path, content: str, extractor: Extractor) -> Path:
    """Where the cache in `folder` has a set of this content as this extractor sees it, if it has it."""
    follows = [_FORMAT, content, extractor.name, extractor.hash, extractor.layer, extractor.device.type]
    return folder / f"{hashlib.sha256(json.dumps(follows).encode()).hexdigest()}.safetensors"
