"""`bigr probe`: the representation of any trained model on any labelled images, without shards and codes."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bigr.data.sources.opened import open_source
from bigr.data.sources.source import SPLITS, Source, Splitting
from bigr.evaluation.imagesets.labelled_sources import content_hash, source_codes
from bigr.evaluation.representation.features import Features, token_averages, write_features
from bigr.evaluation.representation.representation_metrics import Representation, layer_accuracies, represent
from bigr.interop.belonging import check_pair
from bigr.interop.folders import load_model, model_hash
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.models.masked.generator import BiGR
from bigr.runtime.copies import set_bound
from bigr.runtime.device import resolve_device
from bigr.runtime.errors import BigrError
from bigr.runtime.files import atomic_folder, write_json
from bigr.runtime.locks import Held, only_one
from bigr.runtime.paths import printable

if TYPE_CHECKING:
    from bigr.config import Settings

log = logging.getLogger(__name__)

_FORMAT = 1
"""Of kept features. To be raised with every change of what is computed or stored."""
_WRITTEN = {"metrics.json", "probe.csv", "probe.png", "tsne.png"}


@dataclass(frozen=True)
class FolderProbe:
    """images: of each split the number measured, and the number that there is; classes: their names."""

    representation: Representation
    images: dict[str, tuple[int, int]]
    classes: list[str]


def probe_folder(
    images: str,
    tokenizer_folder: Path,
    model_folder: Path,
    out: Path,
    settings: "Settings",
    *,
    kept: Path | None = None,
    max_images: int | None = None,
) -> FolderProbe:
    """Measure, and write metrics.json, probe.csv, probe.png and tsne.png to `out`, atomically.

    kept: the folder of kept features, or None; max_images: of each split, instead of `evaluation.probe_images` and
    `evaluation.reference_images`. Raises `BigrError` if the folders do not fit each other, or `out` cannot be written.
    """
    check_out(out)
    section, device = settings.evaluation, resolve_device(settings.run.device)
    tokenizer, model = load_model(tokenizer_folder, Tokenizer), load_model(model_folder, BiGR)
    hashes = {"tokenizer": model_hash(tokenizer_folder), "model": model_hash(model_folder)}
    folders = tokenizer_folder, model_folder
    check_pair(tokenizer, model, folders, ("--tokenizer", "--model"), "name its own")
    source = labelled(images, settings)
    there = source.counts()
    if there is None or source.classes is None:
        raise BigrError(
            f"--images {images}: only reading all of it tells its images and classes; name a folder, IDX, CIFAR or npz "
            "files, or parquet files of train and of val"
        )
    limits = {"train": section.probe_images, "val": section.reference_images}
    counts = {split: min(max_images or limits[split], there[split]) for split in SPLITS}
    tokenizer.to(device)
    model.to(device)

    def compute(split: str, path: Path) -> Features:
        codes = source_codes(
            source,
            split,
            counts[split],
            tokenizer,
            batch_size=section.batch_size,
            workers=settings.run.workers,
            bad_fraction=settings.shards.max_bad_fraction,
            max_pixels=settings.shards.max_pixels,
        )
        return write_features(path, token_averages(model, codes), counts[split])

    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with exact, _scratch(out) as scratch:
        source.prepare(scratch)
        if kept is None:
            train, val = (compute(split, scratch / f"{split}.npy") for split in SPLITS)
        else:
            origin = {**hashes, "images": content_hash(source, counts, settings.run.workers)}
            train, val = _kept(kept, origin, compute)
        classes = [printable(name) for name in source.classes]
        found = represent(section, val, layer_accuracies(section, train, val, len(classes), device))
        measured = {"train": len(train), "val": len(val)}
        about = {"source": images, "classes": len(classes), **measured}
        with atomic_folder(out) as new:
            write_json(new / "metrics.json", {**found.metrics(), "images": about, "hashes": hashes})
            found.draw(new, classes)
    return FolderProbe(found, {split: (measured[split], there[split]) for split in SPLITS}, classes)


def check_out(out: Path) -> None:
    """Raise `BigrError` if `out` is the current folder or one above it, a file, or a folder of other files."""
    if Path.cwd().is_relative_to(out.resolve()):
        raise BigrError(f"--out {out} is the current folder, or one above it; name a new folder")
    if out.is_dir():
        others = sorted(path.name for path in out.iterdir() if path.name not in _WRITTEN)
        if not others:
            return
        raise BigrError(f"--out {out} holds {others[0]!r}, which no probe wrote; name a new folder")
    if out.exists():
        raise BigrError(f"--out {out} is a file; name a folder")


def labelled(images: str, settings: "Settings") -> Source:
    """The images of a source, split as by the stage `shards`; errors name --images."""
    splitting = Splitting(settings.shards.val_fraction, settings.seed)
    set_bound(settings.run.cache_gb)
    return open_source(images, Path(), splitting, option="--images")


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """An empty folder beside `out`, removed at the end; its lock keeps other probes from writing `out`."""
    folder = out.absolute().with_name(f".{out.absolute().name}.features")
    with _holding(folder, f"--out {out}"):
        for left in folder.glob("*.npy"):  # by one that was killed
            left.unlink()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _kept(folder: Path, origin: Mapping[str, str], compute: Callable[[str, Path], Features]) -> list[Features]:
    """Both splits' features of this origin: the kept ones, or computed now and kept."""
    text = json.dumps({"format": _FORMAT, **origin}, sort_keys=True)
    place = folder / hashlib.sha256(text.encode()).hexdigest()[:16]

    def wait(process: str) -> None:
        log.info("another `bigr probe` (process %s) computes features in %s; waiting for it", process, folder)

    with _holding(folder, f"--features {folder}", wait):
        if place.is_dir():
            log.info("features: those kept in %s", place)
        else:
            with atomic_folder(place) as new:
                for split in SPLITS:
                    compute(split, new / f"{split}.npy")
    return [Features.open(place / f"{split}.npy") for split in SPLITS]


@contextmanager
def _holding(folder: Path, option: str, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """`only_one`, whose failures are lines that name the option."""
    with ExitStack() as stack:
        try:
            stack.enter_context(only_one(folder / ".lock", waiting))
        except Held:
            raise BigrError(f"{option}: another `bigr probe` is writing to it; wait for it, or name another") from None
        except OSError as error:
            raise BigrError(f"{option} cannot be written ({error.strerror}: {error.filename})") from None
        yield
