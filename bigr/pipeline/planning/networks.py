"""The networks that settings describe, and how many parameters they have."""

import contextlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bigr.config import Settings
from bigr.models.autoencoder.discriminator import PatchDiscriminator
from bigr.models.autoencoder.perceptual import STAGES, Lpips
from bigr.models.autoencoder.tokenizer import Tokenizer, TokenizerConfig
from bigr.models.masked.generator import BiGR, BiGRConfig

_VGG16_WIDTHS = (64, 128, 256, 512, 512)


@dataclass(frozen=True)
class Networks:
    """All networks of the pipeline. perceptual, discriminator: None where no training uses them.

    generator: the backbone with its joint transcoder; bigr: the complete model, whose transcoder may be another one.
    """

    tokenizer: Tokenizer
    perceptual: Lpips | None
    discriminator: PatchDiscriminator | None
    generator: BiGR
    bigr: BiGR


def build(settings: Settings, classes: int, root: Path = Path()) -> Networks:
    """The networks of these settings, for the project at `root`; within `torch.device("meta")` they take no memory."""
    section = settings.tokenizer
    tokenizer = Tokenizer(TokenizerConfig.of(section, image_size=settings.shards.image_size)).train()
    discriminator = section.trains and section.gan_weight > 0
    generator = BiGR(generator_config(settings, classes, root)).train()
    complete = complete_config(settings, generator.config)
    return Networks(
        tokenizer=tokenizer,
        perceptual=_perceptual() if section.trains and section.perceptual_weight > 0 else None,
        discriminator=PatchDiscriminator(section.gan_base_channels).train() if discriminator else None,
        generator=generator,
        bigr=generator if complete == generator.config else BiGR(complete).train(),
    )


def generator_config(settings: Settings, classes: int, root: Path = Path()) -> BiGRConfig:
    """The shape of the stage `generator`'s model, for codes of these settings."""
    bits, text = settings.tokenizer.code_bits, text_fields(settings, root)
    return BiGRConfig.of(settings.generator, code_bits=bits, grid=settings.grid, num_classes=classes, text=text)


def text_fields(settings: Settings, root: Path = Path()) -> dict[str, Any] | None:
    """What of the model's shape follows from the section `text`; a frozen encoder's width is that of its config.json.

    Where that is not here: 768, of CLIP ViT-L/14, or 4096, of T5-XXL.
    """
    section = settings.text
    if not section.used:
        return None
    if section.frozen is None:
        return {"text_tokens": section.tokens, "text_vocabulary": section.vocabulary}
    key, width = {"clip": ("hidden_size", 768), "t5": ("d_model", 4096)}[section.encoder]
    with contextlib.suppress(OSError, ValueError, AttributeError):
        known = json.loads((root / section.frozen / "config.json").read_text(encoding="utf-8"))
        width = int(known.get("text_config", known).get(key, width))
    return {"text_tokens": section.tokens, "text_width": width, "text_pooled": section.encoder == "clip"}


def complete_config(settings: Settings, config: BiGRConfig) -> BiGRConfig:
    """The shape of the complete model: with the joint transcoder, or that of the section `transcoder`."""
    section = settings.transcoder
    if section.start == "joint":
        return config
    return replace(
        config,
        transcoder_dim=section.dim,
        transcoder_blocks=section.blocks,
        diffusion_steps=section.diffusion_steps,
        target=section.target,
    )


def parameters(networks: Networks) -> dict[str, dict[str, int]]:
    """How many parameters each part of each network has."""
    tokenizer, backbone = networks.tokenizer, networks.generator.backbone
    losses = {"LPIPS (VGG-16)": networks.perceptual, "discriminator": networks.discriminator}
    transcoders = {"transcoder": networks.bigr.transcoder}
    if networks.bigr is not networks.generator:
        transcoders = {"joint transcoder": networks.generator.transcoder, "transcoder": networks.bigr.transcoder}
    return {
        "tokenizer": {name: count(getattr(tokenizer, name)) for name in ("encoder", "quantizer", "decoder")},
        "tokenizer's losses": {name: count(module) for name, module in losses.items() if module is not None},
        "generator": {
            "token and mask embedding": count(backbone.tok_embeddings) + backbone.mask_tok.numel(),
            **({"class embedding": count(backbone.cls_embedding)} if backbone.cls_embedding is not None else {}),
            **({"text conditions": count(backbone.text)} if backbone.text is not None else {}),
            "shared adaLN": count(backbone.adaLN),
            f"{len(backbone.layers)} blocks": count(backbone.layers),
            "norm, positions": count(backbone.norm) + backbone.position.numel(),
            **{name: count(module) for name, module in transcoders.items()},
        },
    }


def count(module: nn.Module, *, trainable: bool = False) -> int:
    """How many parameters a module has; trainable: of those that learn."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def _perceptual() -> Lpips:
    """LPIPS over VGG-16 as published, whatever the file of its weights holds: it need not be there yet."""
    tensors, width = {}, 3
    with torch.device("cpu"):  # its constructor looks at values
        for index, (numbers, channels) in enumerate(zip(STAGES, _VGG16_WIDTHS, strict=True)):
            for number in numbers:
                tensors[f"features.{number}.weight"] = torch.zeros(channels, width, 3, 3)
                tensors[f"features.{number}.bias"] = torch.zeros(channels)
                width = channels
            tensors[f"lin{index}.model.1.weight"] = torch.zeros(1, channels, 1, 1)
        return Lpips(tensors).to("meta")
