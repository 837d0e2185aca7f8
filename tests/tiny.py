"""Settings under which the whole pipeline takes seconds: every stage does its real work, and learns nothing.

`OVERRIDES` maps dotted keys of params.yaml to values; the Prefect flow takes it as its parameter `settings`, DVC with
`-S key=value`, a test that writes params.yaml through `apply`.
"""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

OVERRIDES: dict[str, Any] = {
    "run.checkpoint_every": 2,
    "dataset.image_size": 16,
    "shards.image_size": 16,
    "tokenizer.quantizer": "bernoulli",
    "tokenizer.code_bits": 24,
    "tokenizer.embed_dim": 32,
    "tokenizer.base_channels": 32,
    "tokenizer.channel_multipliers": [1, 1, 2],
    "tokenizer.res_blocks": 1,
    "tokenizer.attention_resolutions": [4],
    "tokenizer.steps": 5,
    "tokenizer.batch_size": 16,
    "tokenizer.warmup_steps": 1,
    "tokenizer.validate_every": 5,
    "generator.dim": 32,
    "generator.layers": 2,
    "generator.heads": 2,
    "generator.ffn_multiple_of": 32,
    "generator.transcoder_dim": 32,
    "generator.transcoder_blocks": 1,
    "generator.diffusion_steps": 256,
    "generator.target": "flip",
    "generator.noise_draws": 2,
    "generator.steps": 5,
    "generator.batch_size": 16,
    "generator.warmup_steps": 1,
    "generator.validate_every": 5,
    "transcoder.start": "joint",
    "transcoder.noise_draws": 2,
    "transcoder.steps": 3,
    "transcoder.batch_size": 16,
    "transcoder.warmup_steps": 1,
    "transcoder.validate_every": 3,
    "samples.count": 40,
    "samples.train_captions": 12,
    "samples.batch_size": 40,
    "samples.iterations": 2,
    "samples.diffusion_steps": 2,
    "samples.guidance_scale": 1.5,
    "samples.grid_rows": 2,
    "evaluation.kid_subset_size": 20,
    "evaluation.kid_subsets": 2,
    "evaluation.classifier_channels": 8,
    "evaluation.classifier_steps": 5,
    "evaluation.probe_epochs": 1,
    "evaluation.tsne_images": 20,
    "evaluation.zero_shot_images": 12,
    "evaluation.judge_steps": 5,
    "evaluation.judge_batch_size": 16,
    "evaluation.judge_width": 32,
    "evaluation.scene_reader_steps": 5,
    "evaluation.scene_reader_scenes": 64,
}


def apply(params: Path, overrides: dict[str, Any] = OVERRIDES) -> None:
    """Write `overrides` into a params.yaml in place, comments kept."""
    yaml = YAML()
    values = yaml.load(params)
    for key, value in overrides.items():
        section, name = key.split(".")
        values[section][name] = value
    yaml.dump(values, params)
