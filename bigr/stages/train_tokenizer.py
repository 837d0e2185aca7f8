"""Stage `tokenizer`: train the binary autoencoder on the shards (docs/method.md, section 1), or take a trained one.

Reads data/shards, and with `tokenizer.from` the model that it names; writes models/tokenizer,
outputs/curves/tokenizer.csv and outputs/reconstructions.png (images of the validation split above their
reconstructions, and their captions where there are any).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bigr.data.image_batches import ImageBatches
from bigr.data.picture_grid import pairs, save_captioned_grid, save_grid
from bigr.data.shards import ShardIndex, first_captions, load_split
from bigr.interop.folders import save
from bigr.interop.lpips import load_lpips
from bigr.interop.published.published_tokenizer import OF_SHARDS, pretrained_tokenizer
from bigr.models import bits
from bigr.models.autoencoder.discriminator import PatchDiscriminator
from bigr.models.autoencoder.tokenizer import Tokenizer, TokenizerConfig
from bigr.models.psnr import psnr
from bigr.runtime.context import Context
from bigr.runtime.device import resolve_device
from bigr.runtime.distributed import is_main, rank, world
from bigr.runtime.seeds import derive_seed
from bigr.training.autoencoding import Autoencoding, ImageBatch
from bigr.training.loop import (
    VALIDATION_IMAGES,
    TrainedModule,
    TrainingPlan,
    check_batch_size,
    forget_checkpoint,
    train,
    write_untrained,
)
from bigr.training.optimiser import adamw

if TYPE_CHECKING:
    from bigr.config import Settings

PICTURED = 16

Validation = Callable[[nn.Module, int], dict[str, float]]


def run(settings: "Settings", context: Context) -> None:
    """Train, and write the EMA of the weights; or write the model that `tokenizer.from` names."""
    section, device = settings.tokenizer, resolve_device(settings.run.device)
    shards = context.root / "data" / "shards"
    validate = validation(shards, section.batch_size, device, context)
    if section.from_ is None:
        learn(settings, shards, device, validate, context)
    elif is_main():
        source = pretrained_tokenizer(context.root, section.from_)
        expected = TokenizerConfig.of(section, image_size=ShardIndex.load(shards).image_size)
        tokenizer = source.load(source.find(expected), expected, OF_SHARDS).to(device)
        write_untrained("tokenizer", validate(tokenizer, 0), context)
        save(context.root / "models" / "tokenizer", tokenizer)


def validation(shards: Path, batch_size: int, device: torch.device, context: Context) -> Validation:
    """A function that measures a tokenizer on fixed images, and writes them above their reconstructions."""
    originals = load_split(shards, "val", limit=VALIDATION_IMAGES)[0].to(device) / 255
    picture = context.root / "outputs" / "reconstructions.png"
    captions = first_captions(ShardIndex.load(shards), "val", min(PICTURED, len(originals)))

    def validate(model: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(model, Tokenizer)
        metrics, restored = reconstruct(model, originals, batch_size)
        shown = pairs(originals[:PICTURED], restored[:PICTURED])
        if any(captions):
            save_captioned_grid(picture, shown, captions, columns=PICTURED // 2)
        else:
            save_grid(picture, shown, columns=PICTURED)
        context.report.picture("reconstructions", picture, step)
        return metrics

    return validate


def learn(settings: "Settings", shards: Path, device: torch.device, validate: Validation, context: Context) -> None:
    """Train from random weights, and write their EMA."""
    section = settings.tokenizer
    check_batch_size("tokenizer", section)
    torch.manual_seed(derive_seed(settings.seed, "tokenizer", "init"))
    tokenizer = Tokenizer(TokenizerConfig.of(section, image_size=ShardIndex.load(shards).image_size))
    tokenizer.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster convolutions
    perceptual = discriminator = None
    if section.perceptual_weight > 0:
        perceptual = load_lpips(context.root / str(section.perceptual_weights)).to(device)
    if section.gan_weight > 0:
        discriminator = PatchDiscriminator(section.gan_base_channels).to(device)
    objective = Autoencoding(section, settings.seed, tokenizer, perceptual, discriminator)
    trained_modules = [
        TrainedModule(
            "model",
            tokenizer,
            adamw(tokenizer, section),
            objective.tokenizer_loss,
            call=objective.autoencode,
            blocks=tokenizer.blocks(),
        )
    ]
    if discriminator is not None and objective.discriminate is not None:
        trained_modules.append(
            TrainedModule(
                "discriminator",
                discriminator,
                adamw(discriminator, section),
                objective.discriminator_loss,
                call=objective.discriminate,
                blocks=[],
            )
        )

    stream = ImageBatches(
        shards,
        "train",
        section.batch_size // world(),
        seed=derive_seed(settings.seed, "tokenizer", "order"),
        horizontal_flip=section.horizontal_flip,
        rank=rank(),
        world=world(),
        workers=settings.run.workers,
    )

    def batches(step: int) -> Iterator[ImageBatch]:
        for images, labels in stream.from_step(step):
            yield ImageBatch(images, labels)

    plan = TrainingPlan("tokenizer", section, settings.run, settings.seed, device, width=tokenizer.width)
    ema = train(
        plan, trained_modules, batches, validate, context, lambda step: f"(batch {step} of the training shards)"
    )
    if is_main():
        assert isinstance(ema, Tokenizer)
        save(context.root / "models" / "tokenizer", ema)
    forget_checkpoint(plan, context)


@torch.no_grad()
def reconstruct(tokenizer: Tokenizer, images: Tensor, batch_size: int) -> tuple[dict[str, float], Tensor]:
    """Metrics of the deterministic codes of images [n, 3, H, W] in [0, 1], and the reconstructions.

    val_l1; val_psnr: the mean over images, in dB; val_bit_entropy: the mean over bits of the entropy of each bit's
    frequency, in bits; val_dead_bits: how many bits are on in less than 1 % or more than 99 % of all tokens.
    """
    codes = torch.cat([tokenizer.codes(batch) for batch in images.split(batch_size)])
    restored = torch.cat([tokenizer.decode(batch).clamp(0, 1) for batch in codes.split(batch_size)])
    frequency = codes.double().mean(dim=(0, 1))
    metrics = {
        "val_l1": float((restored - images).abs().mean()),
        "val_psnr": float(psnr(restored, images).mean()),
        "val_bit_entropy": float(bits.entropy(frequency).mean()),
        "val_dead_bits": float(bits.dead(frequency)),
    }
    return metrics, restored
