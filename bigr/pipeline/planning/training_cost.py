"""What training costs: one step of each stage, as the stage's code takes it, on tensors without memory.

FLOPs are those of an average step: the transcoder runs on masked tokens only. Bytes are those of the largest: all
tokens masked, the discriminator at work. Everything here is called within `torch.device("meta")`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from bigr.config import Settings
from bigr.models.masked.generator import BiGR, masked_count
from bigr.models.masked.transcoder import Transcoder
from bigr.pipeline.planning.meter import Arithmetic, Cost, flops, measure
from bigr.pipeline.planning.networks import Networks, count
from bigr.training.autoencoding import Autoencoding, ImageBatch
from bigr.training.masked_batches import MaskedBatch, hidden_of

_FLOAT32 = 4  # bytes of a weight, a gradient, a moment: autocast leaves them in float32
_MOMENTS = 2  # AdamW's


@dataclass(frozen=True)
class PartCost:
    """FLOPs of one image through one part of a step."""

    name: str
    forward: float
    backward: float


@dataclass(frozen=True)
class Memory:
    """Bytes of one process. peak: all of them together.

    buckets: what processes exchange: under ddp the gradients that are averaged; under fsdp what is gathered of weights
    and gradients at a time.
    """

    weights: int
    average: int
    optimiser: int
    gradients: int
    buckets: int
    activations: int
    peak: int


@dataclass(frozen=True)
class TrainingCost:
    """A trained stage. images: of a part of the batch, in one process; flops: of all steps, images and processes.

    parallel: ddp or fsdp.
    """

    stage: str
    parallel: str
    images: int
    steps: int
    batch_size: int
    parts: list[PartCost]
    flops: float
    memory: Memory


def tokenizer_training(settings: Settings, networks: Networks, arithmetic: Arithmetic, processes: int) -> TrainingCost:
    """The stage `tokenizer`, before and after the discriminator's first step."""
    section, size = settings.tokenizer, settings.shards.image_size
    images = section.batch_size // processes // section.accumulate
    tokenizer, discriminator = networks.tokenizer, networks.discriminator
    batch = ImageBatch(torch.zeros(images, 3, size, size), torch.zeros(images, dtype=torch.long))
    objective = Autoencoding(section, settings.seed, tokenizer, networks.perceptual, discriminator)
    modules: list[nn.Module] = [m for m in (tokenizer, networks.perceptual, discriminator) if m is not None]
    trained_modules: list[nn.Module] = [m for m in (tokenizer, discriminator) if m is not None]

    late = section.steps - section.gan_start + 1 if discriminator is not None else 0
    late = min(max(late, 0), section.steps)
    parts, total, saved = [], 0.0, 0

    def cost(loss: Callable[..., Any], step: int) -> Cost:
        return measure(
            lambda: loss(batch, step, 0)["loss"], arithmetic, modules, _recomputed(settings, tokenizer.blocks())
        )

    def add(name: str, step: int, steps: int, losses: Sequence[Callable[..., Any]]) -> None:
        nonlocal total, saved
        costs = [cost(loss, step) for loss in losses]
        forward, backward = sum(one.forward for one in costs), sum(one.backward for one in costs)
        parts.append(PartCost(name, forward / images, backward / images))
        total += steps * (forward + backward)
        saved = max(saved, *(one.saved for one in costs))

    if late < section.steps:
        add("the autoencoder and its losses", 0, section.steps - late, [objective.tokenizer_loss])
    if late:
        both = [objective.tokenizer_loss, objective.discriminator_loss]
        add(f"with the discriminator, from step {section.gan_start:,}", section.gan_start - 1, late, both)
    memory = _memory(modules, tokenizer, trained_modules, saved, processes)
    total *= processes * section.accumulate
    return TrainingCost("tokenizer", "ddp", images, section.steps, section.batch_size, parts, total, memory)


def generator_training(settings: Settings, networks: Networks, arithmetic: Arithmetic, processes: int) -> TrainingCost:
    """The stage `generator`: the backbone and its joint transcoder."""
    section, model = settings.generator, networks.generator
    images, tokens = section.batch_size // processes // section.accumulate, settings.grid**2
    batch = _masked_batch(model, settings, images)
    blocks = _recomputed(settings, model.blocks())
    mode, arithmetic = _mode(settings, processes, arithmetic)
    cost = measure(lambda: model.loss(*batch, torch.Generator(), section.noise_draws), arithmetic, [model], blocks)
    inner = _transcoder_cost(model, images * tokens, settings, section.noise_draws, arithmetic, joint=True)
    backbone = PartCost("backbone", (cost.forward - inner.forward) / images, (cost.backward - inner.backward) / images)
    parts = [backbone, _transcoder_part(model, inner, images, tokens, arithmetic)]
    if mode == "fsdp":
        memory = _sharded_memory(model, model, model.blocks(), cost.saved, processes, arithmetic)
    else:
        memory = _memory([model], model, [model], cost.saved, processes)
    flops = _flops(parts, section)
    return TrainingCost("generator", mode, images, section.steps, section.batch_size, parts, flops, memory)


def transcoder_training(settings: Settings, networks: Networks, arithmetic: Arithmetic, processes: int) -> TrainingCost:
    """The stage `transcoder`: the backbone is frozen, and only its forward pass runs."""
    section, model = settings.transcoder, networks.bigr
    images, tokens = section.batch_size // processes // section.accumulate, settings.grid**2
    batch = _masked_batch(model, settings, images)
    mode, arithmetic = _mode(settings, processes, arithmetic)
    forward = flops(lambda: hidden_of(model, batch))
    inner = _transcoder_cost(model, images * tokens, settings, section.noise_draws, arithmetic, joint=False)
    parts = [
        PartCost("backbone, frozen", forward / images, 0.0),
        _transcoder_part(model, inner, images, tokens, arithmetic),
    ]
    transcoder = model.transcoder
    if mode == "fsdp":
        blocks = [*transcoder.blocks]
        memory = _sharded_memory(model, transcoder, blocks, inner.saved, processes, arithmetic)
    else:
        memory = _memory([model], transcoder, [transcoder], inner.saved, processes)
    work = _flops(parts, section)
    return TrainingCost("transcoder", mode, images, section.steps, section.batch_size, parts, work, memory)


def mean_masked_share(tokens: int) -> float:
    """The share of tokens that an average training step masks."""
    return sum(masked_count(u, tokens) for u in range(tokens)) / tokens**2


def _masked_batch(model: BiGR, settings: Settings, images: int) -> MaskedBatch:
    """A batch with every token masked."""
    tokens = settings.grid**2
    codes = torch.zeros(images, tokens, settings.tokenizer.code_bits)
    masked = torch.zeros(images, tokens, dtype=torch.long)
    return MaskedBatch(codes, model.backbone.unconditional(images), masked)


def _recomputed(settings: Settings, blocks: list[nn.Module]) -> list[nn.Module]:
    return blocks if settings.run.activation_checkpointing else []


def _transcoder_cost(
    model: BiGR, rows: int, settings: Settings, noise_draws: int, arithmetic: Arithmetic, *, joint: bool
) -> Cost:
    transcoder: Transcoder = model.transcoder
    bits, hidden = torch.zeros(rows, model.config.code_bits), torch.zeros(rows, model.config.dim, requires_grad=joint)
    blocks = _recomputed(settings, [*transcoder.blocks])
    return measure(
        lambda: transcoder.loss(bits, hidden, torch.Generator(), noise_draws).mean(), arithmetic, [transcoder], blocks
    )


def _transcoder_part(model: BiGR, cost: Cost, images: int, tokens: int, arithmetic: Arithmetic) -> PartCost:
    """The transcoder's part of a step. Its work on tokens counts for the share that is masked; the embeddings of the
    diffusion steps, computed once for all tokens, count fully."""
    transcoder, share = model.transcoder, mean_masked_share(tokens)
    if transcoder.config.target == "direct":
        once = Cost(0, 0, 0)
    else:
        once = measure(lambda: transcoder.t_embedder(transcoder.levels()).sum(), arithmetic, [transcoder])
    forward, backward = (
        (whole - alone) / images * share + alone / images
        for whole, alone in ((cost.forward, once.forward), (cost.backward, once.backward))
    )
    return PartCost("transcoder", forward, backward)


def _flops(parts: list[PartCost], section: object) -> float:
    steps, batch_size = section.steps, section.batch_size  # type: ignore[attr-defined]
    return steps * batch_size * sum(part.forward + part.backward for part in parts)


def _mode(settings: Settings, processes: int, arithmetic: Arithmetic) -> tuple[str, Arithmetic]:
    """ddp or fsdp; and the arithmetic, in which sharded weights are gathered as the blocks compute with them."""
    sharded = settings.run.parallel == "fsdp" and processes > 1
    return ("fsdp", replace(arithmetic, casts_weights=False)) if sharded else ("ddp", arithmetic)


def _sharded_memory(
    model: nn.Module,
    trained: nn.Module,
    blocks: Sequence[nn.Module],
    saved: int,
    processes: int,
    arithmetic: Arithmetic,
) -> Memory:
    """Of a module whose blocks are sharded; what of `model` is not in it is frozen, and whole in every process.

    Gathered at a time: what is outside of the blocks, and two blocks, the next while one computes; and the gradients of
    a block with the buffer that adds them up.
    """
    own, largest = count(trained), max(count(block) for block in blocks)
    outside = own - sum(count(block) for block in blocks)
    shard = -(-own // processes)
    gathered = _FLOAT32 * outside + 2 * largest * (2 if arithmetic.bfloat16 else _FLOAT32)
    parts = {
        "weights": _FLOAT32 * (count(model) - own + shard),
        "average": _FLOAT32 * shard,
        "optimiser": _MOMENTS * _FLOAT32 * shard,
        "gradients": _FLOAT32 * shard,
        "buckets": gathered + 2 * _FLOAT32 * max(largest, outside),
        "activations": saved,
    }
    return Memory(**parts, peak=sum(parts.values()))


def _memory(
    modules: list[nn.Module], averaged: nn.Module, trained_modules: list[nn.Module], saved: int, processes: int
) -> Memory:
    learning = _FLOAT32 * sum(count(module, trainable=True) for module in trained_modules)
    parts = {
        "weights": _FLOAT32 * sum(count(module) for module in modules),
        "average": _FLOAT32 * count(averaged),
        "optimiser": _MOMENTS * learning,
        "gradients": learning,
        "buckets": learning if processes > 1 else 0,  # in which gradients are averaged over the processes
        "activations": saved,
    }
    return Memory(**parts, peak=sum(parts.values()))
