"""What sampling costs: passes of backbone, transcoder and decoder (docs/method.md, section 4).

The transcoder runs on the tokens that are still masked, twice where guidance compares with the unconditional model.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from bigr.config import Settings
from bigr.imaging.options import Editing
from bigr.models.masked.generator import BiGR
from bigr.pipeline.planning.meter import Arithmetic, flops, peak_bytes
from bigr.pipeline.planning.networks import Networks, count
from bigr.sampling.decode import DECODED_TOGETHER, batched, decoded_together
from bigr.sampling.editing import CELL, group_sizes, in_proportion
from bigr.sampling.unmask import Sampling, guidance, noise_rows, still_masked, transcode

_FLOAT32 = 4  # bytes of a weight


@dataclass(frozen=True)
class Passes:
    """How often each network runs for one image: rows of the backbone, tokens of the transcoder, step embeddings."""

    backbone: int
    conditions: int
    denoised: int
    steps: float


@dataclass(frozen=True)
class SamplingCost:
    """FLOPs of one image by part, those of all images, and bytes of one process.

    decoder: in float32, as the stage decodes; its last batches are filled up. peak: weights, and the most that is alive
    at once in an iteration with every token masked and the most diffusion steps.
    """

    passes: Passes
    backbone: float
    transcoder: float
    decoder: float
    flops: float
    flops_float32: float
    images: int
    weights: int
    peak: int


@dataclass(frozen=True)
class InferenceMemory:
    """Bytes of one process of a stage that computes in float32 without gradients: weights, and the most at once."""

    stage: str
    images: int
    weights: int
    peak: int


def inference_memory(settings: Settings, networks: Networks, gpu: bool) -> list[InferenceMemory]:
    """Of the stages `codes` and `evaluation`, each at its batch size.

    evaluation: of its largest networks, the decoder, and the backbone with every layer's features.
    """
    model, tokenizer, size = networks.bigr.eval(), networks.tokenizer, settings.shards.image_size
    float32, coded, measured = (
        Arithmetic(gpu, bfloat16=False),
        settings.codes.batch_size,
        settings.evaluation.batch_size,
    )
    encoding = peak_bytes(lambda: tokenizer.codes(torch.zeros(coded, 3, size, size)), float32)
    codes = torch.zeros(measured, settings.grid**2, model.config.code_bits)
    decoding = peak_bytes(lambda: tokenizer.decode(codes), float32)
    looking = peak_bytes(lambda: torch.stack([layer.mean(1) for layer in model.features(codes)], 1), float32)
    weights = _FLOAT32 * count(tokenizer), _FLOAT32 * (count(tokenizer) + count(model))
    return [
        InferenceMemory("codes", coded, weights[0], weights[0] + encoding),
        InferenceMemory("evaluation", measured, weights[1], weights[1] + max(decoding, looking)),
    ]


def passes(sampling: Sampling, tokens: int, batch: int, *, direct: bool) -> Passes:
    """Of one image of a batch with `tokens` unknown tokens each; direct: the transcoder has the target "direct"."""
    backbone = conditions = denoised = 0
    steps, left = 0.0, tokens
    for i in range(sampling.iterations):
        ratio = (i + 1) / sampling.iterations
        stay = still_masked(tokens, ratio)
        if stay == left:
            continue
        guided = guidance(sampling, ratio) != 1.0
        rows = 2 if guided else 1
        backbone += rows
        conditions += rows * left
        denoised += rows * left * (1 if direct else sampling.steps(i))
        steps += rows * left if direct else sampling.steps(i) / batch
        left = stay
    return Passes(backbone, conditions, denoised, steps)


def sampling_cost(settings: Settings, networks: Networks, arithmetic: Arithmetic, processes: int) -> SamplingCost:
    """The cost of the stage `samples`."""
    section, model, tokenizer = settings.samples, networks.bigr.eval(), networks.tokenizer
    sampling, config, tokens = Sampling.of(section), model.config, settings.grid**2
    share = math.ceil(settings.images_drawn / processes)
    images = min(section.batch_size, share)
    run = passes(sampling, tokens, images, direct=config.target == "direct")
    codes = torch.zeros(1, tokens, config.code_bits)
    backbone, inner = network_flops(model, run)
    together = decoded_together(tokens, not arithmetic.gpu)
    decoded = sum(together * math.ceil(min(images, share - start) / together) for start in range(0, share, images))
    decoder = flops(lambda: tokenizer.decode(codes)) * decoded / share
    float32 = Arithmetic(arithmetic.gpu, bfloat16=False)
    decoding = peak_bytes(lambda: tokenizer.decode(codes.expand(together, -1, -1)), float32)
    weights = _FLOAT32 * (count(model) + count(tokenizer))
    peak = weights + max(_peak(model, sampling, images, arithmetic), decoding)
    return SamplingCost(
        passes=run,
        backbone=backbone,
        transcoder=inner,
        decoder=decoder,
        flops=settings.images_drawn * (backbone + inner),
        flops_float32=settings.images_drawn * decoder,
        images=images,
        weights=weights,
        peak=peak,
    )


def network_flops(model: BiGR, run: Passes) -> tuple[float, float]:
    """FLOPs of one image through the backbone and through the transcoder."""
    transcoder, config = model.transcoder, model.config
    c = torch.zeros(1, config.transcoder_dim)
    inner = (
        run.conditions * flops(lambda: transcoder.c_embedder(torch.zeros(1, config.dim)))
        + run.denoised * flops(lambda: transcoder.denoise(torch.zeros(1, config.code_bits), c))
        + run.steps * flops(lambda: transcoder.t_embedder(torch.zeros(1, dtype=torch.long)))
    )
    return run.backbone * backbone_flops(model), inner


def zero_shot_flops(settings: Settings, networks: Networks, images: int) -> float:
    """FLOPs of what the stage `evaluation` draws and decodes without further training, from so many images.

    An edited subject's box counts as the whole image. Left out: the encoder, the classifier.
    """
    model, tokenizer = networks.bigr.eval(), networks.tokenizer
    sampling = Sampling.of(settings.samples)
    free = replace(sampling, guidance_scale=1.0)
    guided = Editing.of(settings.editing).painting(sampling)
    grid, batch = settings.grid, min(images, settings.evaluation.batch_size)
    lower_half, whole = (grid - grid // 2) * grid, grid**2
    enriched = [(free, size) for size in group_sizes(grid, CELL)] * settings.editing.enrich_rounds
    drawings = [[(free, lower_half)], enriched]
    if settings.generator.use_labels:
        drawings += [[(guided, lower_half)], [(guided, whole)], [(guided, whole)]]
    decoder = flops(lambda: tokenizer.decode(torch.zeros(1, whole, model.config.code_bits)))
    decoded = DECODED_TOGETHER * sum(math.ceil(len(part) / DECODED_TOGETHER) for part in batched(images, batch))
    direct = model.config.target == "direct"
    drawn = [
        sum(network_flops(model, passes(in_proportion(how, unknown, whole), unknown, batch, direct=direct)))
        for drawing in drawings
        for how, unknown in drawing
    ]
    return images * sum(drawn) + len(drawings) * decoded * decoder


@lru_cache(maxsize=1)  # asked for by every drawing of the evaluation
def backbone_flops(model: BiGR) -> int:
    """The backbone's forward pass over one image under one label."""
    tokens = model.config.grid**2
    codes, mask = torch.zeros(1, tokens, model.config.code_bits), torch.zeros(1, tokens, dtype=torch.bool)
    return flops(lambda: model.hidden(codes, model.backbone.unconditional(1), mask))


def _peak(model: BiGR, sampling: Sampling, images: int, arithmetic: Arithmetic) -> int:
    """The most bytes that are alive in an iteration with every token masked: its noise, and backbone or transcoder."""
    config, rows = model.config, images * (2 if sampling.guidance_scale != 1.0 else 1)
    tokens = config.grid**2
    codes, mask = torch.zeros(rows, tokens, config.code_bits), torch.zeros(rows, tokens, dtype=torch.bool)
    hidden = torch.zeros(images * tokens, config.dim)
    noise_of = max(noise_rows(model, sampling, i) for i in range(sampling.iterations))
    noise = torch.zeros(noise_of, images * tokens, config.code_bits)
    few = noise[:4]  # a step needs no more memory than the one before it
    backbone = peak_bytes(lambda: model.hidden(codes, model.backbone.unconditional(rows), mask), arithmetic)
    other, scale = (hidden if rows > images else None), sampling.guidance_scale
    transcoder = peak_bytes(
        lambda: transcode(model.transcoder, hidden, other, few, noise[0], sampling, scale), arithmetic
    )
    drawn = 2 * _FLOAT32 * noise.numel()  # as it was drawn, and gathered by the tokens' positions
    return drawn + max(backbone, rows // images * hidden.nbytes + transcoder)
