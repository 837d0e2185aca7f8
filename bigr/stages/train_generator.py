"""Stage `generator`: train the masked backbone jointly with its transcoder, or take a trained model.

docs/method.md, sections 2 and 3; docs/text-to-image.md. Reads data/codes and data/text, and with `generator.from` the
model that it names; writes models/generator (the EMA of the weights of backbone and joint transcoder) and
outputs/curves/generator.csv.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bigr.data.codes import CodesDataset
from bigr.interop.belonging import generator_problems, text_problems
from bigr.interop.folders import model_hash, save, text_encoder_of
from bigr.interop.published.published_generator import pretrained_generator
from bigr.models.masked.compiled import compile_blocks, log_compile_time
from bigr.models.masked.generator import BiGR, BiGRConfig
from bigr.models.text_shape import in_words
from bigr.runtime.context import Context
from bigr.runtime.device import resolve_device
from bigr.runtime.distributed import is_main, part_of_batch
from bigr.runtime.errors import BigrError
from bigr.runtime.precision import in_bfloat16
from bigr.runtime.seeds import WHOLE_BATCH, derive_seed, generator
from bigr.training.loop import (
    VALIDATION_IMAGES,
    TrainedModule,
    TrainingPlan,
    check_batch_size,
    forget_checkpoint,
    train,
    write_untrained,
)
from bigr.training.masked_batches import FixedMasks, MaskedBatch, MaskedBatches
from bigr.training.optimiser import adamw
from bigr.training.parallel import parallel

if TYPE_CHECKING:
    from bigr.config import GeneratorSettings as Section
    from bigr.config import Settings

UNDECAYED = ("transcoder.",)  # the paper decays neither vectors and biases nor the transcoder

Validation = Callable[[nn.Module, int], dict[str, float]]


def run(settings: "Settings", context: Context) -> None:
    """Train, and write the EMA of the weights; or write the model that `generator.from` names."""
    section, device = settings.generator, resolve_device(settings.run.device)
    folder, texts = context.root / "data" / "codes", context.root / "data" / "text"
    tokenizer = context.root / "models" / "tokenizer"
    made_by = model_hash(tokenizer) if (tokenizer / "config.json").exists() else None  # data/codes alone will do
    dataset = CodesDataset.open(folder, "train", made_by).with_texts(texts, "train")
    fixed = FixedMasks(
        CodesDataset.open(folder, "val", None).with_texts(texts, "val"),
        *(VALIDATION_IMAGES, settings.seed, device, section.use_labels),
    )

    @torch.no_grad()
    def validate(model: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(model, BiGR)
        noise = fixed.noise()
        losses = [model.loss(*batch, noise) for batch in fixed.batches]
        return {"val_loss": float(torch.stack(losses).mean())}

    if section.from_ is None:
        learn(settings, dataset, device, validate, context)
    elif is_main():
        model = take_over(section, dataset, context).to(device)
        model.transcoder.absent_std = section.absent_std
        write_untrained("generator", validate(model, 0), context)
        save(context.root / "models" / "generator", model, dataset.tokenizer)


def take_over(section: "Section", dataset: CodesDataset, context: Context) -> BiGR:
    """The model that `generator.from` names.

    Raises `BigrError` where its shape is not that of the settings, or where it is for other codes: another grid, number
    of bits, tokenizer, or other classes.
    """
    source, expected = pretrained_generator(context.root, str(section.from_)), BiGRConfig.of(section, **dataset.shape)
    found = source.find(expected)
    shape = found.config
    if lines := text_problems(str(section.from_), shape, texts=dataset.texts is not None):
        raise BigrError("\n".join(lines))
    read_by = text_encoder_of(found.path) if found.path.is_dir() else None
    if read_by not in (None, dataset.text_encoder):
        raise BigrError(
            f"generator.from is {section.from_}, trained on texts of another encoder than that of data/text; name the "
            "same encoder in the section text"
        )
    theirs, ours = in_words(vars(shape)), in_words(vars(expected))
    if theirs != ours:
        raise BigrError(
            f"generator.from is {section.from_}, for texts of {theirs}; data/text has {ours}; name the encoder that it "
            "was trained with in the section text"
        )
    if (shape.grid, shape.code_bits) != (dataset.grid, dataset.code_bits):
        raise BigrError(
            f"generator.from is {section.from_}, for {shape.grid}×{shape.grid} tokens of {shape.code_bits} bits; "
            f"data/codes has {dataset.grid}×{dataset.grid} of {dataset.code_bits} bits; name the generator's own "
            "tokenizer in tokenizer.from"
        )
    if problems := generator_problems(source.named, found, dataset.tokenizer, dataset.num_classes):
        raise BigrError("\n".join(problems))
    return source.load(found, expected)


def learn(
    settings: "Settings", dataset: CodesDataset, device: torch.device, validate: Validation, context: Context
) -> None:
    """Train from random weights, and write their EMA."""
    section = settings.generator
    check_batch_size("generator", section)
    torch.manual_seed(derive_seed(settings.seed, "generator", "init"))
    model = BiGR(BiGRConfig.of(section, **dataset.shape)).to(device)
    model.transcoder.absent_std = section.absent_std
    compiled = compile_blocks(model, settings.run.compile, device)
    bfloat16 = in_bfloat16(device, settings.run.precision, section.dim)
    loss_of = parallel(model, "loss", settings.run.parallel, BiGR.blocks, bfloat16)

    def loss(batch: MaskedBatch, step: int, part: int) -> dict[str, Tensor]:
        noise = generator(settings.seed, "generator", "noise", step, WHOLE_BATCH, device=device)
        return {"loss": loss_of(*batch, noise, section.noise_draws, part_of_batch(part, section.accumulate))}

    stream = MaskedBatches(
        dataset,
        section.batch_size,
        stage="generator",
        seed=settings.seed,
        label_dropout=section.dropout_of_labels(texts=dataset.texts is not None),
        input_flip=section.input_flip,
    )
    plan = TrainingPlan("generator", section, settings.run, settings.seed, device, section.dim, compiled)
    trained_modules = [TrainedModule("model", model, adamw(model, section, UNDECAYED), loss, loss_of, model.blocks())]
    ema = train(plan, trained_modules, stream.from_step, validate, context, stream.describe)
    if is_main():
        assert isinstance(ema, BiGR)
        save(context.root / "models" / "generator", ema, dataset.tokenizer, dataset.text_encoder)
    log_compile_time()
    forget_checkpoint(plan, context)
