"""Files as BiGR publishes them (docs/method.md, section 7), small: of the golden vectors' weights, or of any shape."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from bigr.interop.published.weight_names import SCHEDULE, published_generator, published_tokenizer
from bigr.models.autoencoder.tokenizer import Tokenizer, TokenizerConfig
from bigr.models.masked.diffusion import BernoulliDiffusion
from bigr.models.masked.generator import BiGR, BiGRConfig

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """A vector's header, its published state, and all else in it."""
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        header = {key: json.loads(text) for key, text in file.metadata().items()}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    state = {key.removeprefix("state."): t for key, t in tensors.items() if key.startswith("state.")}
    return header, state, {key: t for key, t in tensors.items() if not key.startswith("state.")}


def tokenizer_config(**changes: Any) -> TokenizerConfig:
    """A small tokenizer, built like the published ones: f = 4, attention at 16."""
    shape = {
        "image_size": 64,
        "code_bits": 6,
        "embed_dim": 32,
        "base_channels": 32,
        "channel_multipliers": (1, 1, 2),
        "res_blocks": 1,
        "attention_resolutions": (16,),
    }
    return TokenizerConfig(**(shape | changes))


def generator_config(**changes: Any) -> BiGRConfig:
    """A small generator that goes with `tokenizer_config()`."""
    shape = {
        "code_bits": 6,
        "grid": 16,
        "num_classes": 3,
        "dim": 64,
        "layers": 2,
        "heads": 1,
        "transcoder_dim": 32,
        "transcoder_blocks": 2,
        "ffn_multiple_of": 256,
        "diffusion_steps": 16,
    }
    return BiGRConfig(**(shape | changes))


def tokenizer_tensors(config: TokenizerConfig, seed: int = 0) -> dict[str, Tensor]:
    """All that a published tokenizer's file holds."""
    draws = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(t.shape, generator=draws) for name, t in Tokenizer(config).state_dict().items()}
    unused = {"ae.generator.logsigma.0.weight": torch.zeros(4), "disc.main.0.weight": torch.zeros(4, 3, 4, 4)}
    return published_tokenizer(state) | unused | {"perceptual.lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}


def generator_tensors(config: BiGRConfig, seed: int = 0) -> dict[str, Tensor]:
    """The entry `ema` of a published generator's file."""
    draws = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(t.shape, generator=draws) for name, t in BiGR(config).state_dict().items()}
    schedule = BernoulliDiffusion(config.diffusion_steps)
    tables = {"k_final": schedule.k, "b_final": schedule.b, "beta": schedule.beta, "cumbeta": schedule.k}
    return published_generator(state) | {SCHEDULE + name: table for name, table in tables.items()}


def save_tokenizer(path: Path, tensors: dict[str, Tensor]) -> Path:
    """A flat dict of tensors, as torch writes a state dict."""
    torch.save(OrderedDict(tensors), path)
    return path


def save_generator(path: Path, tensors: dict[str, Tensor], **entries: Any) -> Path:
    """A dict whose entry `ema` is the state dict."""
    torch.save({"ema": OrderedDict(tensors), **entries}, path)
    return path
