"""What is wrong with params.yaml, dvc.yaml, the files that settings name, or the images, or else what they amount to.

`bigr check` says it without running anything; a stage and the flow look before they begin, for all stages to come.
"""

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bigr import config
from bigr.pipeline import closure, dvcfile
from bigr.pipeline.stage_table import NAMES
from bigr.runtime.errors import BigrError

MADE = ("models/tokenizer", "models/generator", "models/bigr")
"""Models that the stages write: DVC removes them before it runs the stage, so that none can be taken over."""
WRITTEN = ("data", "models", "outputs", "checkpoints")
"""Folders that the stages write, below the project's."""
LEAST_IMAGES = 2
"""Of each split: fewer have no covariance, and the evaluation's distances need one."""
_DIGITS = 1797
_OF_DIGITS = (".", "train", "val")  # folders that hold a subfolder a class
_FEATURE_BYTES = 2  # of a float16
_SCORE_IMAGES = 10  # that the Inception score is split into, one at least each


def check_files(root: Path, settings: config.Settings, stages: Iterable[str] = NAMES) -> None:
    """Raise `BigrError`, a line for each file or folder that the settings name for `stages` and that is not there, and
    for each that nothing can be written to.

    Paths are below the project's folder `root`, or absolute. The embedded digits may be missing: a stage writes them.
    """
    problems = [line for name in WRITTEN if (line := _not_writable(root, name))]
    if "shards" in stages:
        problems += _source_problems(root, settings.shards.source)
    for key, path in settings.files.items():
        stage, name = key.split(".")
        if stage not in stages:
            continue
        place = root / path
        kind = {"source": "folder", "from": "model"}.get(name, "file")
        fits = {"folder": place.is_dir(), "model": place.exists(), "file": place.is_file()}[kind]
        if kind == "model" and any(place.resolve().is_relative_to((root / made).resolve()) for made in MADE):
            problems.append(
                f"{key} is {path}, which a stage of this project writes; name a copy of it "
                "(`dvc checkout` brings back what `dvc repro` has removed)"
            )
        elif not place.exists():
            problems.append(f"{key} is {path}, which does not exist; put the {kind} there, or name another")
        elif not fits:
            problems.append(f"{key} is {path}, which is not a {kind}; name another")
    if problems:
        raise BigrError("\n".join(problems))


def _not_writable(root: Path, name: str) -> str:
    """Why stages could write nothing to the folder `name`; nothing where they can, or can create it."""
    place = root / name
    if os.path.lexists(place) and not place.is_dir():
        return f"{name} is not a folder, and the stages write there; move it away"
    there = place if place.is_dir() else root
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there}: no right to write there, as the stages must; change its owner or its mode"
    return ""


def _source_problems(root: Path, source: str) -> list[str]:
    named = Path(os.path.normpath(source))
    if named.is_relative_to(config.EMBEDDED) and named.relative_to(config.EMBEDDED) not in map(Path, _OF_DIGITS):
        return [f"shards.source is {source}, which the stage digits does not write; name {config.EMBEDDED}"]
    if (root / source).resolve().is_relative_to((root / "data" / "shards").resolve()):
        return [f"shards.source is {source}, where the stage shards writes; name the folder with the images"]
    return []


def check_device(settings: config.Settings, stages: Iterable[str] = NAMES) -> None:
    """Raise `BigrError` where this machine has not the device of `run.device`, or not one for each process."""
    run = settings.run
    if run.device == "cpu" or (run.device == "auto" and run.processes == 1) or not set(stages) - {"digits", "shards"}:
        return
    import torch  # which is slow

    from bigr.runtime.device import resolve_device

    device = resolve_device(run.device)
    if device.type == "cuda" and "LOCAL_RANK" not in os.environ and run.processes > torch.cuda.device_count():
        raise BigrError(
            f"run.processes is {run.processes}, but there are {torch.cuda.device_count()} CUDA devices here, one for "
            "each process; lower it"
        )


def check_models(
    root: Path, settings: config.Settings, stages: Iterable[str] = NAMES, classes: int | None = None
) -> None:
    """Raise `BigrError`, a line for each setting that is not as the models are that `tokenizer.from` and
    `generator.from` name for `stages`. Reads their shapes, not their weights.

    classes: how many the images have, where that is known.
    """
    tokenizer = settings.tokenizer.from_ if "tokenizer" in stages else None
    generator = settings.generator.from_ if "generator" in stages else None
    problems = []
    if tokenizer is not None:
        problems += _tokenizer_problems(root, settings, tokenizer)
    if generator is not None:
        problems += _generator_problems(root, settings, generator, classes, tokenizer)
    if problems:
        raise BigrError("\n".join(problems))


def _tokenizer_problems(root: Path, settings: config.Settings, named: str) -> list[str]:
    from bigr.interop.published.published_tokenizer import (  # imports torch, which is slow
        OF_SHARDS,
        pretrained_tokenizer,
    )
    from bigr.models.autoencoder.tokenizer import TokenizerConfig

    source = pretrained_tokenizer(root, named)
    expected = TokenizerConfig.of(settings.tokenizer, image_size=settings.shards.image_size)
    return source.problems(source.find(expected), expected, OF_SHARDS)


def _generator_problems(
    root: Path, settings: config.Settings, named: str, classes: int | None, tokenizer: str | None
) -> list[str]:
    from bigr.interop.belonging import generator_problems
    from bigr.interop.folders import model_hash
    from bigr.interop.published.published_generator import pretrained_generator
    from bigr.models.masked.generator import BiGRConfig

    source = pretrained_generator(root, named)
    bits, grid, size = settings.tokenizer.code_bits, settings.grid, settings.shards.image_size
    expected = BiGRConfig.of(settings.generator, code_bits=bits, grid=grid, num_classes=classes or 0)
    found = source.find(expected)
    theirs = found.config
    problems = []
    if theirs.grid != grid:
        problems.append(
            f"shards.image_size is {size}, {grid}×{grid} tokens, but {named} has {theirs.grid}×{theirs.grid}; set it "
            f"to {size // grid * theirs.grid}, or name another generator"
        )
    ours = model_hash(root / tokenizer) if tokenizer and (root / tokenizer).is_dir() else None
    problems += generator_problems(named, found, ours, classes)
    expected = replace(expected, grid=theirs.grid, num_classes=theirs.num_classes)
    return problems + source.problems(found, expected, {"code_bits": "tokenizer.code_bits"})


def check_weights(root: Path, settings: config.Settings, stages: Iterable[str] = NAMES) -> None:
    """Raise `BigrError` where a file of others' weights that the settings name for `stages` does not hold them."""
    if "tokenizer" in stages and settings.tokenizer.perceptual_file is not None:
        from bigr.interop.lpips import load_lpips  # imports torch, which is slow

        load_lpips(root / settings.tokenizer.perceptual_file)
    if "evaluation" in stages and settings.evaluation.extractor != "classifier":
        from bigr.evaluation.fidelity.extractors import read_inception_weights

        read_inception_weights(root / str(settings.evaluation.extractor_weights))


class ImagesFound(NamedTuple):
    """The images that stages work on: of each split and of how many classes, and where they are."""

    where: str
    train: int
    val: int
    classes: int


def images_of(root: Path, settings: config.Settings, stages: Iterable[str] = NAMES) -> ImagesFound | None:
    """What `stages` will work on: counted in data/shards, or listed in `shards.source` where that is not in them yet.

    None where they are not there. Opens no image. Raises `BigrError` for a folder that the stage shards would refuse.
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
    """Whether the shards that are there were made under these settings, of so many images."""
    try:
        report = json.loads((root / "data" / "shards" / "report.json").read_text(encoding="utf-8"))
        made = config.read(root / "dvc.lock")["stages"]["shards"]["params"]["params.yaml"]["shards"]
        return bool(made == settings.shards.model_dump() and report["files"] == images)
    except (OSError, ValueError, KeyError, TypeError, BigrError):  # not made, or by something else
        return False


def check_images(
    root: Path, settings: config.Settings, images: ImagesFound | None, stages: Iterable[str] = NAMES
) -> None:
    """Raise `BigrError`, a line for each reason for which one of `stages` could do nothing with these images."""
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
    problems += [line for need in _needs(settings, images, set(stages)) if (line := need.problem(root))]
    if problems:
        raise BigrError("\n".join(problems))


class _Need(NamedTuple):
    """What a stage will write: the setting that decides how much, its value, what it is, in bytes, and where."""

    key: str
    value: int
    what: str
    size: int
    where: str

    def problem(self, root: Path) -> str:
        """A line where the disk has not so much; nothing where it has."""
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
        found.append(_Need("codes.draws", codes.draws, f"the codes of {count:,} images", size, "data/codes"))
    if "samples" in stages:
        size = samples.count * settings.shards.image_size**2 * 3
        found.append(_Need("samples.count", samples.count, "so many images", size, "outputs/samples.npz"))
    return found


def check_promotion(settings: config.Settings, images: ImagesFound | None) -> None:
    """Raise `BigrError`, a line for each metric of `promotion.metrics` that the evaluation will not measure."""
    problems = [
        f"promotion.metrics names {name}, which is not measured where {reason}; name another metric"
        for name in (comparison.name for comparison in settings.promotion.metrics)
        if (reason := _not_measured(name, settings, images))
    ]
    if problems:
        raise BigrError("\n".join(problems))


def _not_measured(name: str, settings: config.Settings, images: ImagesFound | None) -> str:
    """Under which setting, or for which images, a metric is not measured; nothing where it is."""
    part, metric = name.split(".")
    evaluation, one_class = settings.evaluation, images is not None and images.classes == 1
    if images is not None and (reason := _too_few(part, metric, settings, images)):
        return reason
    of_classifier = metric in ("fd_classifier", "kd_classifier", "is_classifier")
    if of_classifier and evaluation.extractor != "classifier":
        return f"evaluation.extractor is {evaluation.extractor}"
    if metric in ("fid", "kid", "isc") and evaluation.extractor == "classifier":
        return "evaluation.extractor is classifier"
    if part in ("probe", "knn") and one_class:
        return "there is one class"
    if part == "zero_shot":
        if evaluation.zero_shot_images == 0:
            return "evaluation.zero_shot_images is 0"
        to_a_class = metric in ("edit_label_agreement", "interpolation_agreement")
        if not settings.generator.use_labels and (to_a_class or metric == "inpaint_label_agreement"):
            return "generator.use_labels is false"
        if to_a_class and one_class:
            return "there is one class"
    return ""


def _too_few(part: str, metric: str, settings: config.Settings, images: ImagesFound) -> str:
    """Why a metric is not measured of so few images; nothing where there are enough."""
    section = settings.evaluation
    splits = {name: min(section.reference_images, getattr(images, name)) for name in ("train", "val")}
    own = settings.samples.count if part == "samples" else splits["val"]
    other = splits[section.reference] if part == "samples" else splits["val"]
    if metric in ("precision", "recall") and min(own, other) <= section.precision_recall_neighbours:
        return f"a set has no more than evaluation.precision_recall_neighbours = {section.precision_recall_neighbours}"
    if metric in ("is_classifier", "isc") and own < _SCORE_IMAGES:
        return f"a set has {own} images, fewer than {_SCORE_IMAGES}"
    learnt = min(section.probe_images, images.train)
    if part in ("probe", "knn") and learnt - max(1, round(learnt * section.selection_fraction)) < LEAST_IMAGES:
        return f"there are {learnt} training images, too few to learn from and choose a layer by"
    return ""


def summary(root: Path, params: Path) -> list[str]:
    """Lines that describe the pipeline at `root` under these settings. Raises `BigrError`, a line per wrong setting."""
    values = config.read(params)
    settings = config.validate(values, params.name)
    described = dvcfile.stages(root, values)
    problems = [f"dvc.yaml: has no stage {name}" for name in NAMES if name not in described]
    problems += [f"dvc.yaml: {name} is not a stage" for name in described if name not in NAMES]
    for spec in described.values():
        for key in spec.params:
            dvcfile.setting(values, key, f"dvc.yaml: stage {spec.name}")
    if not problems and (root / closure.PACKAGE / "stages").is_dir():
        problems = [f"dvc.yaml: {line} (`make deps` does)" for line in closure.differences(root)]
    if problems:
        raise BigrError("\n".join(problems))
    check_files(root, settings)
    check_device(settings)
    images = images_of(root, settings)
    check_images(root, settings, images)
    check_models(root, settings, classes=images.classes if images else None)
    check_weights(root, settings)
    check_promotion(settings, images)
    size, grid, bits = settings.shards.image_size, settings.grid, settings.tokenizer.code_bits
    generator, samples = settings.generator, settings.samples
    learned = settings.tokenizer, generator, settings.transcoder
    return [
        f"{params.name} and dvc.yaml fit.",
        f"images      {size}×{size} from {settings.shards.source}" + _counted(images),
        f"tokens      {grid}×{grid} = {grid**2} an image, {bits} bits each: {grid**2 * bits / 8:g} bytes",
        f"generator   {generator.layers} layers of width {generator.dim}, {generator.heads} heads",
        f"samples     {samples.count} in {samples.iterations} iterations of {samples.diffusion_steps} diffusion steps",
        f"training    {' + '.join(str(trained.steps if trained.trains else 0) for trained in learned)} steps "
        "(tokenizer, generator, transcoder)",
        *(f"ready       {key.split('.')[0]} from {path}" for key, path in settings.files.items() if ".from" in key),
    ]


def _counted(images: ImagesFound | None) -> str:
    if images is None:
        return ""
    return f": {images.train:,} to train on, {images.val:,} held out, {images.classes:,} classes"
