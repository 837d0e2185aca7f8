"""What is wrong with params.yaml, dvc.yaml, or the files that settings name, or else what they amount to.

`bigr check` says it without running anything; a stage and the flow look for the files before they begin.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from bigr import closure, config, pipeline
from bigr.errors import BigrError

MADE = ("models/tokenizer", "models/generator", "models/bigr")
"""Models that the stages write: DVC removes them before it runs the stage, so that none can be taken over."""


def check_files(root: Path, settings: config.Settings, stages: Iterable[str] = config.STAGES) -> None:
    """Raise `BigrError`, a line for each file or folder that the settings name for `stages` and that is not there.

    Paths are below the project's folder `root`, or absolute. The embedded digits may be missing: a stage writes them.
    """
    problems = []
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


def check_models(
    root: Path, settings: config.Settings, stages: Iterable[str] = config.STAGES, classes: int | None = None
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
    from bigr.stages.tokenizer import OF_SHARDS, config_of, ready_at  # imports torch, which is slow

    ready, expected = ready_at(root, named), config_of(settings.tokenizer, settings.shards.image_size)
    return ready.differences(ready.find(expected), expected, OF_SHARDS)


class _Codes(NamedTuple):
    code_bits: int
    grid: int
    num_classes: int


def _generator_problems(
    root: Path, settings: config.Settings, named: str, classes: int | None, tokenizer: str | None
) -> list[str]:
    from bigr.interop.folders import model_hash
    from bigr.stages import generator as stage

    ready = stage.ready_at(root, named)
    bits, grid, size = settings.tokenizer.code_bits, settings.grid, settings.shards.image_size
    expected = stage.config_of(settings.generator, _Codes(bits, grid, classes or 0))
    found = ready.find(expected)
    theirs = found.config
    problems = []
    if theirs.grid != grid:
        problems.append(
            f"shards.image_size is {size}, {grid}×{grid} tokens, but {named} has {theirs.grid}×{theirs.grid}; set it "
            f"to {size // grid * theirs.grid}, or name another generator"
        )
    if classes not in (None, theirs.num_classes):
        problems.append(stage.other_classes(named, theirs.num_classes, classes))
    if (
        tokenizer
        and (root / tokenizer).is_dir()
        and found.tokenizer not in (None, ours := model_hash(root / tokenizer))
    ):
        problems.append(stage.other_tokenizer(named, found.tokenizer, ours))
    expected = replace(expected, grid=theirs.grid, num_classes=theirs.num_classes)
    return problems + ready.differences(found, expected, {"code_bits": "tokenizer.code_bits"})


def summary(root: Path, params: Path) -> list[str]:
    """Lines that describe the pipeline at `root` under these settings. Raises `BigrError`, a line per misfit."""
    values = config.read(params)
    settings = config.validate(values, params.name)
    described = pipeline.stages(root, values)
    problems = [f"dvc.yaml: has no stage {name}" for name in config.STAGES if name not in described]
    problems += [f"dvc.yaml: {name} is not a stage" for name in described if name not in config.STAGES]
    for spec in described.values():
        for key in spec.params:
            pipeline.setting(values, key, f"dvc.yaml: stage {spec.name}")
    if not problems and (root / closure.PACKAGE / "stages").is_dir():
        problems = [f"dvc.yaml: {line} (`make deps` does)" for line in closure.differences(root)]
    if problems:
        raise BigrError("\n".join(problems))
    check_files(root, settings)
    check_models(root, settings, classes=_classes(root, values) if settings.generator.from_ else None)
    size, grid, bits = settings.shards.image_size, settings.grid, settings.tokenizer.code_bits
    generator, samples = settings.generator, settings.samples
    learned = settings.tokenizer, generator, settings.transcoder
    return [
        f"{params.name} and dvc.yaml fit.",
        f"images      {size}×{size} from {settings.shards.source}",
        f"tokens      {grid}×{grid} = {grid**2} an image, {bits} bits each: {grid**2 * bits / 8:g} bytes",
        f"generator   {generator.layers} layers of width {generator.dim}, {generator.heads} heads",
        f"samples     {samples.count} in {samples.iterations} iterations of {samples.diffusion_steps} diffusion steps",
        f"training    {' + '.join(str(trained.steps if trained.trains else 0) for trained in learned)} steps "
        "(tokenizer, generator, transcoder)",
        *(f"ready       {key.split('.')[0]} from {path}" for key, path in settings.files.items() if ".from" in key),
    ]


def _classes(root: Path, values: dict[str, Any]) -> int | None:
    """How many classes the shards have, where they are there and made under these settings."""
    from bigr.data.shards import ShardIndex

    index, lock = root / "data" / "shards" / "index.json", root / "dvc.lock"
    if not (index.is_file() and lock.is_file()):
        return None
    made = config.read(lock).get("stages", {}).get("shards", {}).get("params", {}).get("params.yaml", {})
    if made.get("shards") != values["shards"]:
        return None
    return len(ShardIndex.load(index.parent).classes)
