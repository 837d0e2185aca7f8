"""Stage `transcoder`: train the transcoder further on the frozen backbone, and write the complete model.

Several noise draws share one pass of the backbone, so that a new transcoder (width, depth, steps, target) takes minutes
instead of days. With `transcoder.steps: 0` the joint one is written unchanged: the paper's model.
Reads data/codes, data/text and models/generator; writes models/bigr and outputs/curves/transcoder.csv, whose row 0 is
the validation loss before training.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bigr.data.codes import CodesDataset
from bigr.interop.folders import load_model, save, tokenizer_of
from bigr.models.masked.compiled import compile_blocks, log_compile_time
from bigr.models.masked.generator import BiGR, gather_tokens
from bigr.models.masked.transcoder import Transcoder
from bigr.runtime.context import Context
from bigr.runtime.device import resolve_device
from bigr.runtime.distributed import is_main, part_of_batch
from bigr.runtime.precision import in_bfloat16
from bigr.runtime.seeds import WHOLE_BATCH, derive_seed, generator
from bigr.training.loop import (
    VALIDATION_IMAGES,
    TrainedModule,
    TrainingPlan,
    check_batch_size,
    forget_checkpoint,
    train,
    write_curves,
)
from bigr.training.masked_batches import FixedMasks, MaskedBatch, MaskedBatches, hidden_of
from bigr.training.optimiser import adamw
from bigr.training.parallel import parallel

if TYPE_CHECKING:
    from bigr.config import Settings


def run(settings: "Settings", context: Context) -> None:
    """Train, and write backbone and transcoder as one model."""
    section, device = settings.transcoder, resolve_device(settings.run.device)
    check_batch_size("transcoder", section)
    folder, texts = context.root / "data" / "codes", context.root / "data" / "text"
    model = load_model(context.root / "models" / "generator", BiGR).to(device).requires_grad_(False)
    joint = model.transcoder
    if section.start == "scratch":
        torch.manual_seed(derive_seed(settings.seed, "transcoder", "init"))
        model = with_new_transcoder(model, section.dim, section.blocks, section.diffusion_steps, section.target)
    model.transcoder.absent_std = joint.absent_std = section.absent_std
    dataset = CodesDataset.open(folder, "train", tokenizer_of(context.root / "models" / "generator"))
    dataset.with_texts(texts, "train")
    fixed = FixedMasks(
        CodesDataset.open(folder, "val", None).with_texts(texts, "val"),
        *(VALIDATION_IMAGES, settings.seed, device, settings.generator.use_labels),
    )
    hidden = [(batch, hidden_of(model, batch)) for batch in fixed.batches]

    @torch.no_grad()
    def validate(transcoder: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(transcoder, Transcoder)
        noise = fixed.noise()
        losses = [transcoder.loss(gather_tokens(b.codes, b.masked), h, noise).mean() for b, h in hidden]
        return {"val_loss": float(torch.stack(losses).mean())}

    before = {"step": 0, **validate(model.transcoder, 0)}
    if joint.config.target == model.config.target:  # losses of different targets do not compare
        context.report.metrics({"val_loss_joint": validate(joint, 0)["val_loss"]})
    if section.steps == 0:
        if is_main():
            write_curves(context.root / "outputs" / "curves" / "transcoder.csv", [before])
            save(context.root / "models" / "bigr", model, dataset.tokenizer, dataset.text_encoder)
        return

    compiled = compile_blocks(model, settings.run.compile, device)
    transcoder = model.transcoder.train().requires_grad_(True)
    bfloat16 = in_bfloat16(device, settings.run.precision, model.config.dim)
    loss_of = parallel(transcoder, "loss", settings.run.parallel, lambda module: [*module.blocks], bfloat16)

    def loss(batch: MaskedBatch, step: int, part: int) -> dict[str, Tensor]:
        h, x0 = hidden_of(model, batch), gather_tokens(batch.codes, batch.masked)
        noise = generator(settings.seed, "transcoder", "noise", step, WHOLE_BATCH, device=device)
        return {"loss": loss_of(x0, h, noise, section.noise_draws, part_of_batch(part, section.accumulate)).mean()}

    stream = MaskedBatches(
        dataset,
        section.batch_size,
        stage="transcoder",
        seed=settings.seed,
        label_dropout=settings.generator.dropout_of_labels(texts=dataset.texts is not None),
        input_flip=settings.generator.input_flip,
    )
    plan = TrainingPlan("transcoder", section, settings.run, settings.seed, device, model.config.dim, compiled)
    trained_modules = [
        TrainedModule("model", transcoder, adamw(transcoder, section), loss, loss_of, [*transcoder.blocks])
    ]
    ema = train(plan, trained_modules, stream.from_step, validate, context, stream.describe, first_row=before)
    if is_main():
        assert isinstance(ema, Transcoder)
        model.transcoder = ema
        save(context.root / "models" / "bigr", model, dataset.tokenizer, dataset.text_encoder)
    log_compile_time()
    forget_checkpoint(plan, context)


def with_new_transcoder(model: BiGR, dim: int, blocks: int, diffusion_steps: int, target: str) -> BiGR:
    """The same backbone with an untrained transcoder of another shape, on the same device."""
    config = replace(
        model.config, transcoder_dim=dim, transcoder_blocks=blocks, diffusion_steps=diffusion_steps, target=target
    )
    renewed = BiGR(config).to(model.backbone.mask_tok.device).eval().requires_grad_(False)
    renewed.backbone.load_state_dict(model.backbone.state_dict())
    return renewed
