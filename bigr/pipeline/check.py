"""Checks of params.yaml, dvc.yaml, the files that settings name, the device and the images, before a stage runs.

`bigr check` makes them without running anything; a stage and the flow make them first, for all stages to come.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bigr import config
from bigr.pipeline import closure, dvcfile
from bigr.pipeline.images_found import ImagesFound, check_images, images_of
from bigr.pipeline.measurable import check_promotion
from bigr.pipeline.stage_table import NAMES, STAGES
from bigr.runtime.errors import BigrError
from bigr.runtime.paths import has_pattern, is_url, local_path
from bigr.runtime.remote_files import RemoteFolder, is_web

MADE = ("models/tokenizer", "models/generator", "models/bigr")
"""Models that the stages write. DVC removes them before it runs the stage, so that no setting may name them."""
WRITTEN = ("data", "models", "outputs", "checkpoints")
"""Folders that the stages write, below the project's."""
_OF_DIGITS = (".", "train", "val")  # folders that hold a subfolder a class


def check_files(root: Path, settings: config.Settings, stages: Iterable[str] = NAMES) -> None:
    """Raise `BigrError`: a line for each missing file that the settings name for `stages`, and for each folder that
    stages cannot write to.

    Paths are relative to the project's folder `root`, or absolute. The embedded data set may be missing: a stage
    writes it.
    """
    problems = [line for name in WRITTEN if (line := _not_writable(root, name))]
    problems += _checkpoints_problems(settings.run.checkpoints)
    if "shards" in stages:
        problems += _source_problems(root, settings.shards.source)
    problems += [
        line for key, url in settings.stores.items() if key.split(".")[0] in stages for line in _package(key, url)
    ]
    for key, path in settings.files.items():
        stage, name = key.split(".")
        if stage not in stages:
            continue
        place = root / local_path(path)
        if is_url(path):
            continue
        kind = {"source": "folder or file of images", "from": "model", "clip": "folder of CLIP"}.get(name, "file")
        fits = {"file": place.is_file, "folder of CLIP": place.is_dir}.get(kind, place.exists)()
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


def _checkpoints_problems(where: str) -> list[str]:
    """What stands in the way of copies of checkpoints at a URL, as far as it shows without a connection."""
    if not is_url(where):
        return []
    if is_web(where):
        return [f"run.checkpoints is {where}, where nothing can be written; name s3://, gs:// or a path"]
    return _package("run.checkpoints", where)


def _not_writable(root: Path, name: str) -> str:
    """Why stages cannot write to the folder `name`; empty where they can, or can create it."""
    place = root / name
    if os.path.lexists(place) and not place.is_dir():
        return f"{name} is not a folder, and the stages write there; move it away"
    there = place if place.is_dir() else root
    if not os.access(there, os.W_OK | os.X_OK):
        return f"{there}: no right to write there, as the stages must; change its owner or its mode"
    return ""


def _source_problems(root: Path, source: str) -> list[str]:
    if has_pattern(source):
        return [
            f"shards.source is {source}, a pattern, which DVC cannot follow; write a manifest of these files with "
            "`bigr data SOURCE --manifest data/source.arrow`, and name that"
        ]
    if source.startswith("file://"):
        return [f"shards.source is {source}, which DVC cannot follow; name the path alone, {local_path(source)}"]
    if is_url(source):
        kind = source.partition("://")[0]
        if dvcfile.can_depend_on(source):
            return _package("shards.source", source)
        return [f"shards.source is {source}, but DVC knows no {kind}://; name s3://, gs://, https:// or a path"]
    named = Path(os.path.normpath(source))
    if named.is_relative_to(config.EMBEDDED) and named.relative_to(config.EMBEDDED) not in map(Path, _OF_DIGITS):
        return [f"shards.source is {source}, which the stage dataset does not write; name {config.EMBEDDED}"]
    if (root / source).resolve().is_relative_to((root / "data" / "shards").resolve()):
        return [f"shards.source is {source}, where the stage shards writes; name the folder with the images"]
    return []


def _package(key: str, url: str) -> list[str]:
    """A line where a setting names a URL that needs a package which is not installed."""
    try:
        RemoteFolder(url).check()
    except BigrError as error:
        return [f"{key}: {error}"]
    return []


def check_device(settings: config.Settings, stages: Iterable[str] = NAMES) -> None:
    """Raise `BigrError` where this machine has no device `run.device`, or not one for each process."""
    run = settings.run
    certain = run.device == "cpu" or (run.device == "auto" and run.processes == 1)
    if certain or not any(STAGES[name].on_device for name in stages):
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
    """Raise `BigrError`: a line for each setting that differs from the models of `tokenizer.from` and `generator.from`.

    Reads their shapes, not their weights. stages: those to check for; classes: of the images, where known.
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
    from bigr.interop.belonging import generator_problems, text_problems
    from bigr.interop.folders import model_hash
    from bigr.interop.published.published_generator import pretrained_generator
    from bigr.models.masked.generator import BiGRConfig
    from bigr.models.text_shape import ENCODED

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
    problems += text_problems(named, theirs, texts=settings.text.used)
    shape = {"code_bits": bits, "grid": theirs.grid, "num_classes": theirs.num_classes}
    text = {name: getattr(theirs, name) for name in ENCODED}  # the stage compares them with the texts' own
    expected = BiGRConfig.of(settings.generator, **shape, text=text)
    return problems + source.problems(found, expected, {"code_bits": "tokenizer.code_bits"})


def check_weights(root: Path, settings: config.Settings, stages: Iterable[str] = NAMES) -> None:
    """Raise `BigrError` where a file that the settings name for `stages` does not hold the weights that it should."""
    if "tokenizer" in stages and settings.tokenizer.perceptual_file is not None:
        from bigr.interop.lpips import load_lpips  # imports torch, which is slow

        load_lpips(root / settings.tokenizer.perceptual_file)
    if "evaluation" in stages and settings.evaluation.extractor != "classifier":
        from bigr.evaluation.fidelity.extractors import read_inception_weights

        read_inception_weights(root / str(settings.evaluation.extractor_weights))


def check_stages(root: Path, settings: config.Settings, stages: Iterable[str] = NAMES) -> ImagesFound | None:
    """Raise `BigrError` where files, device, images or models would stop one of `stages`, in this order.

    Returns the images, None where they are not there yet.
    """
    check_files(root, settings, stages)
    check_device(settings, stages)
    images = images_of(root, settings, stages)
    check_images(root, settings, images, stages)
    check_models(root, settings, stages, images.classes if images else None)
    return images


def summary(root: Path, params: Path) -> list[str]:
    """Lines that describe the pipeline at `root` under these settings. Raises `BigrError`, a line for each error."""
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
    images = check_stages(root, settings)
    check_weights(root, settings)
    check_promotion(settings, images)
    size, grid, bits = settings.shards.image_size, settings.grid, settings.tokenizer.code_bits
    generator, samples = settings.generator, settings.samples
    learned = settings.tokenizer, generator, settings.transcoder
    steps = str(samples.diffusion_steps).strip("[]").replace(",", " to")  # of a list: the first and the last
    return [
        f"{params.name} and dvc.yaml fit.",
        f"images      {size}×{size} from {settings.shards.source}" + _counted(images),
        f"tokens      {grid}×{grid} = {grid**2} an image, {bits} bits each: {grid**2 * bits / 8:g} bytes",
        f"generator   {generator.layers} layers of width {generator.dim}, {generator.heads} heads",
        f"samples     {samples.count} in {samples.iterations} iterations of {steps} diffusion steps"
        + (f", preset {samples.preset}" if samples.preset else ""),
        *presets_that_do_not_fit(values),
        f"training    {' + '.join(str(trained.steps if trained.trains else 0) for trained in learned)} steps "
        "(tokenizer, generator, transcoder)",
        *(f"ready       {key.split('.')[0]} from {path}" for key, path in settings.files.items() if ".from" in key),
    ]


def presets_that_do_not_fit(values: dict[str, Any]) -> list[str]:
    """A line for each preset that these settings do not allow to choose."""
    lines = []
    for name in values["samples"]["presets"]:
        try:
            config.validate({**values, "samples": {**values["samples"], "preset": name}}, "")
        except BigrError as error:
            lines.append(f"no preset   {name}: {str(error).removeprefix(': ')}")
    return lines


def _counted(images: ImagesFound | None) -> str:
    if images is None:
        return ""
    return f": {images.train:,} to train on, {images.val:,} held out, {images.classes:,} classes"
