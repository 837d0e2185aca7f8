"""`bigr check`: what is wrong with params.yaml or dvc.yaml, or else what they amount to. Nothing is run."""

from pathlib import Path

from bigr import closure, config, pipeline
from bigr.errors import BigrError


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
