"""What is wrong with params.yaml, dvc.yaml, or the files that settings name, or else what they amount to.

`bigr check` says it without running anything; a stage and the flow look for the files before they begin.
"""

from collections.abc import Iterable
from pathlib import Path

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
    size, grid, bits = settings.shards.image_size, settings.grid, settings.tokenizer.code_bits
    generator, samples = settings.generator, settings.samples
    return [
        f"{params.name} and dvc.yaml fit.",
        f"images      {size}×{size} from {settings.shards.source}",
        f"tokens      {grid}×{grid} = {grid**2} an image, {bits} bits each: {grid**2 * bits / 8:g} bytes",
        f"generator   {generator.layers} layers of width {generator.dim}, {generator.heads} heads",
        f"samples     {samples.count} in {samples.iterations} iterations of {samples.diffusion_steps} diffusion steps",
        f"training    {settings.tokenizer.steps} + {generator.steps} + {settings.transcoder.steps} steps "
        "(tokenizer, generator, transcoder)",
    ]
