"""The images that stages will work on, counted before any stage runs: whether they suffice, and the disk space too."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from bigr import config
from bigr.pipeline.stage_table import NAMES
from bigr.runtime.errors import BigrError
from bigr.runtime.paths import is_url, local_path

LEAST_IMAGES = 2
"""Of each split: fewer have no covariance, and the evaluation's distances need one."""
_DIGITS, _DIGIT_CLASSES = 1797, 10
_FEATURE_BYTES = 2  # of a float16


class ImagesFound(NamedTuple):
    """The images that stages work on: where they are, how many of each split, and how many classes."""

    where: str
    train: int
    val: int
    classes: int


def images_of(root: Path, settings: config.Settings, stages: Iterable[str] = NAMES) -> ImagesFound | None:
    """The images of `stages`: counted in data/shards, or in `shards.source` where the shards are not made of it yet.

    None where there are none yet. Opens no image. Raises `BigrError` for a source that the stage shards would refuse.
    """
    if "shards" not in stages:
        return _in_shards(root)
    if settings.shards.embedded:  # a stage writes them first
        return _embedded(settings.dataset) or _in_shards(root)
    from bigr.data.sources.opened import open_source
    from bigr.data.sources.source import Splitting

    shards = settings.shards
    if not is_url(shards.source) and not (root / local_path(shards.source)).exists():
        return None
    if is_url(shards.source):  # only the stage reads what is elsewhere
        return _in_shards(root)
    found = open_source(
        shards.source, root, Splitting(shards.val_fraction, settings.seed), names=shards.class_names, warn=False
    )
    counts = found.counts()
    if counts is None:  # only packing tells
        return _in_shards(root)
    if _packed(root, settings, sum(counts.values())) and (those := _in_shards(root)):  # without what could not be read
        return those
    assert found.classes is not None
    return ImagesFound(f"shards.source: {shards.source}", counts["train"], counts["val"], len(found.classes))


def _embedded(chosen: config.DatasetSettings) -> ImagesFound | None:
    """What the stage `dataset` will write, where that follows from the settings: not of emoji."""
    if chosen.name == "digits":
        return ImagesFound("the embedded digits", _DIGITS - chosen.val_count, chosen.val_count, _DIGIT_CLASSES)
    if chosen.name != "scenes":
        return None
    from bigr.data.embedded.scenes import CLASSES

    return ImagesFound("the embedded scenes", chosen.train_count, chosen.val_count, len(CLASSES))


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
    needs = _needs(settings, images, set(stages))
    problems += [line for need in needs if (line := need.problem(root))]
    problems += [line for need in needs if (line := _not_cached(settings, need))]
    if problems:
        raise BigrError("\n".join(problems))


_CACHE = ".cache/sources"


def _not_cached(settings: config.Settings, need: "_Need") -> str:
    """A line where what is at a URL and is needed here all at once takes more than the cache keeps; else empty."""
    if need.where != _CACHE or need.size <= settings.run.cache_gb * 1e9:
        return ""
    return (
        f"run.cache_gb is {settings.run.cache_gb:g}: {need.what} at codes.store need {need.size / 1e9:.1f} GB here, "
        "all at once; raise it"
    )


class _Need(NamedTuple):
    """Disk space that a stage needs: the setting that decides it, its value, what is written, its bytes, and where."""

    key: str
    value: int
    what: str
    size: int
    where: str

    def problem(self, root: Path) -> str:
        """A line where the disk has less free space; else empty."""
        place = root / self.where
        while not place.exists():
            place = place.parent
        if self.size <= (free := shutil.disk_usage(place).free):
            return ""
        needed = f"{self.what} need {self.size / 1e9:.1f} GB in {self.where}"
        return f"{self.key} is {self.value}: {needed}, the disk has {free / 1e9:.1f} GB; free some, or lower it"


def _needs(settings: config.Settings, images: ImagesFound, stages: set[str]) -> list[_Need]:
    evaluation, generator = settings.evaluation, settings.generator
    codes, samples = settings.codes, settings.samples
    measured = min(evaluation.probe_images, images.train) + min(evaluation.reference_images, images.val)
    features = measured * generator.layers * generator.dim * _FEATURE_BYTES
    what = f"every layer's features of {measured:,} images"
    found = [_Need("evaluation.probe_images", evaluation.probe_images, what, features, "checkpoints/evaluation")]
    if "codes" in stages:
        count = images.train + images.val
        entry = settings.grid**2 * -(-settings.tokenizer.code_bits // 8)
        size = count * len(codes.views) * (1 + codes.draws) * entry
        where = "data/codes" if codes.store is None else _CACHE
        found.append(_Need("codes.draws", codes.draws, f"the codes of {count:,} images", size, where))
    if "samples" in stages:
        size = 2 * settings.images_drawn * settings.shards.image_size**2 * 3  # the parts, and samples.npz made of them
        found.append(_Need("samples.count", samples.count, "so many images", size, "outputs/samples.npz"))
    return found
