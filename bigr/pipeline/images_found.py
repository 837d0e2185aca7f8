"""The images that stages will work on, counted before any stage runs: whether they suffice, and the disk space too."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from bigr import config
from bigr.pipeline.stage_table import NAMES
from bigr.runtime.errors import BigrError

LEAST_IMAGES = 2
"""Of each split: fewer have no covariance, and the evaluation's distances need one."""
_DIGITS = 1797
_FEATURE_BYTES = 2  # of a float16


class ImagesFound(NamedTuple):
    """The images that stages work on: where they are, how many of each split, and how many classes."""

    where: str
    train: int
    val: int
    classes: int


def images_of(root: Path, settings: config.Settings, stages: Iterable[str] = NAMES) -> ImagesFound | None:
    """The images of `stages`: counted in data/shards, or in `shards.source` where the shards are not made of it yet.

    None where there are none yet. Opens no image. Raises `BigrError` for a folder that the stage shards would refuse.
    """
    if "shards" not in stages:
        return _in_shards(root)
    source = root / settings.shards.source
    if settings.shards.embedded:  # a stage writes them first
        held_out = settings.digits.val_count
        return ImagesFound("the embedded digits", _DIGITS - held_out, held_out, 10)
    if not source.is_dir():
        return None
    from bigr.data.sources import discover

    found = discover(source, val_fraction=settings.shards.val_fraction, seed=settings.seed, warn=False)
    train, val = (len(found.items[split]) for split in ("train", "val"))
    if _packed(root, settings, train + val) and (those := _in_shards(root)):  # without what could not be read
        return those
    return ImagesFound(f"shards.source: {settings.shards.source}", train, val, len(found.classes))


def _in_shards(root: Path) -> ImagesFound | None:
    try:
        index = json.loads((root / "data" / "shards" / "index.json").read_text(encoding="utf-8"))
        train, val = (int(index["splits"][split]["images"]) for split in ("train", "val"))
        return ImagesFound("data/shards", train, val, len(index["classes"]))
    except (OSError, ValueError, KeyError, TypeError):  # the stage that reads it says what is wrong
        return None


def _packed(root: Path, settings: config.Settings, images: int) -> bool:
    """Whether data/shards was made under these settings, of `images` images."""
    try:
        report = json.loads((root / "data" / "shards" / "report.json").read_text(encoding="utf-8"))
        made = config.read(root / "dvc.lock")["stages"]["shards"]["params"]["params.yaml"]["shards"]
        return bool(made == settings.shards.model_dump() and report["files"] == images)
    except (OSError, ValueError, KeyError, TypeError, BigrError):  # not made, or by something else
        return False


def check_images(
    root: Path, settings: config.Settings, images: ImagesFound | None, stages: Iterable[str] = NAMES
) -> None:
    """Raise `BigrError`: a line for each reason why `stages` cannot work on these images."""
    if images is None or "evaluation" not in stages:
        return
    problems = [
        f"{images.where} has {count} {name} image{'' if count == 1 else 's'}; the evaluation needs {LEAST_IMAGES} or "
        f"more to measure distances; add some{remedy}"
        for name, count, remedy in (
            ("training", images.train, ""),
            ("validation", images.val, ", or raise shards.val_fraction where there is no val/ folder"),
        )
        if count < LEAST_IMAGES
    ]
    problems += _disk_problems(root, settings, images, set(stages))
    if problems:
        raise BigrError("\n".join(problems))


def _disk_problems(root: Path, settings: config.Settings, images: ImagesFound, stages: set[str]) -> Iterator[str]:
    """A line for each setting by which a stage needs more disk space than there is."""
    evaluation, generator = settings.evaluation, settings.generator
    codes, samples, count = settings.codes, settings.samples, images.train + images.val
    measured = min(evaluation.probe_images, images.train) + min(evaluation.reference_images, images.val)
    features = measured * generator.layers * generator.dim * _FEATURE_BYTES
    entry = settings.grid**2 * -(-settings.tokenizer.code_bits // 8)
    stored = count * len(codes.views) * (1 + codes.draws) * entry
    pixels = samples.count * settings.shards.image_size**2 * 3
    layers = f"every layer's features of {measured:,} images"
    for stage, key, value, what, size, where in (
        ("evaluation", "evaluation.probe_images", evaluation.probe_images, layers, features, "checkpoints/evaluation"),
        ("codes", "codes.draws", codes.draws, f"the codes of {count:,} images", stored, "data/codes"),
        ("samples", "samples.count", samples.count, "so many images", pixels, "outputs/samples.npz"),
    ):
        place = next(folder for folder in (root / where).parents if folder.exists())
        if stage in stages and size > (free := shutil.disk_usage(place).free):
            needed = f"{what} need {size / 1e9:.1f} GB in {where}"
            yield f"{key} is {value}: {needed}, the disk has {free / 1e9:.1f} GB; free some, or lower it"
