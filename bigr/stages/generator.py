"""Stage `generator`: train the masked backbone jointly with its transcoder, the paper's objective, or take a ready one.

METHOD sections 2 and 3.

Reads data/codes, and with `generator.from` the model that it names; writes models/generator (the average of the
weights, backbone and joint transcoder) and outputs/curves/generator.csv.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from bigr.context import Context
from bigr.data.codes import CodesDataset
from bigr.errors import BigrError
from bigr.interop.folders import model_hash, save
from bigr.interop.generators import read_generator
from bigr.interop.ready import Ready
from bigr.models.bigr import BiGR, BiGRConfig
from bigr.seeds import derive_seed, generator
from bigr.training.device import resolve_device
from bigr.training.distributed import is_main, parallel, rank
from bigr.training.loop import (
    VALIDATION_IMAGES,
    Plan,
    Player,
    check_batch_size,
    forget_checkpoint,
    train,
    write_untrained,
)
from bigr.training.masked import FixedMasks, MaskedBatch, MaskedBatches
from bigr.training.optimiser import adamw

if TYPE_CHECKING:
    from bigr.config import Generator as Section
    from bigr.config import Settings

UNDECAYED = ("transcoder.",)  # the paper decays neither vectors and biases nor the transcoder

Validation = Callable[[nn.Module, int], dict[str, float]]


class Codes(Protocol):
    """What the codes say about the shape of their generator."""

    @property
    def code_bits(self) -> int: ...
    @property
    def grid(self) -> int: ...
    @property
    def num_classes(self) -> int: ...


def run(settings: "Settings", context: Context) -> None:
    """Train, and write the average of the weights; or write the model that `generator.from` names."""
    section, device = settings.generator, resolve_device(settings.run.device)
    folder = context.root / "data" / "codes"
    tokenizer = context.root / "models" / "tokenizer"
    made_by = model_hash(tokenizer) if (tokenizer / "config.json").exists() else None  # codes may come without it
    dataset = CodesDataset.open(folder, "train", made_by)
    fixed = FixedMasks(
        CodesDataset.open(folder, "val", None),
        *(VALIDATION_IMAGES, settings.seed, device, None if section.use_labels else dataset.num_classes),
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
        write_untrained("generator", validate(model, 0), context)
        save(context.root / "models" / "generator", model, dataset.tokenizer)


def take_over(section: "Section", dataset: CodesDataset, context: Context) -> BiGR:
    """The model that `generator.from` names. Raises `BigrError` where it is not of the shape that the settings
    describe, or not one for these codes: other tokens, another tokenizer's, or other classes."""
    ready, expected = ready_at(context.root, str(section.from_)), config_of(section, dataset)
    found = ready.find(expected)
    shape = found.config
    if (shape.grid, shape.code_bits) != (dataset.grid, dataset.code_bits):
        raise BigrError(
            f"generator.from is {section.from_}, for {shape.grid}×{shape.grid} tokens of {shape.code_bits} bits; "
            f"data/codes has {dataset.grid}×{dataset.grid} of {dataset.code_bits} bits; name the generator's own "
            "tokenizer in tokenizer.from"
        )
    if found.tokenizer not in (None, dataset.tokenizer):
        raise BigrError(other_tokenizer(ready.named, found.tokenizer, dataset.tokenizer))
    if shape.num_classes != dataset.num_classes:
        raise BigrError(other_classes(ready.named, shape.num_classes, dataset.num_classes))
    return ready.load(found, expected)


def ready_at(root: Path, named: str) -> Ready[BiGR]:
    """The model that `generator.from` names. Where a file does not tell the heads, the settings do."""
    return Ready("generator.from", root, named, BiGR, lambda path, shape: read_generator(path, like=shape))


def other_tokenizer(named: str, theirs: str, ours: str) -> str:
    """What is wrong where `generator.from` names a generator of another tokenizer's codes; both by their hash."""
    return (
        f"generator.from is {named}, trained on codes of the tokenizer {theirs[:12]}…; models/tokenizer is "
        f"{ours[:12]}…; name the generator's own tokenizer in tokenizer.from"
    )


def other_classes(named: str, theirs: int, ours: int) -> str:
    """What is wrong where `generator.from` names a generator of `theirs` classes, and the images have `ours`."""
    return (
        f"generator.from is {named}, which knows {theirs} classes; the images have {ours}; name a folder with its "
        "classes in shards.source, or train a generator (generator.from: null)"
    )


def learn(
    settings: "Settings", dataset: CodesDataset, device: torch.device, validate: Validation, context: Context
) -> None:
    """Train from nothing, and write the average of the weights."""
    section = settings.generator
    check_batch_size("generator", section.batch_size)
    torch.manual_seed(derive_seed(settings.seed, "generator", "init"))
    model = BiGR(config_of(section, dataset)).to(device)
    loss_of = parallel(model, "loss")

    def loss(batch: MaskedBatch, step: int) -> dict[str, Tensor]:
        noise = generator(settings.seed, "generator", "noise", step, rank(), device=device)
        return {"loss": loss_of(*batch, noise, section.noise_draws)}

    stream = MaskedBatches(
        dataset,
        section.batch_size,
        stage="generator",
        seed=settings.seed,
        label_dropout=section.label_dropout if section.use_labels else 1.0,
        unconditional=model.config.num_classes,
        device=device,
    )
    plan = Plan("generator", section, settings.run, settings.seed, device, width=section.dim)
    players = [Player("model", model, adamw(model, section, UNDECAYED), loss)]
    average = train(plan, players, stream.from_step, validate, context, stream.describe)
    if is_main():
        assert isinstance(average, BiGR)
        save(context.root / "models" / "generator", average, dataset.tokenizer)
    forget_checkpoint(plan, context)


def config_of(section: "Section", codes: Codes) -> BiGRConfig:
    """The shape that the settings describe, for such codes."""
    return BiGRConfig(
        code_bits=codes.code_bits,
        grid=codes.grid,
        num_classes=codes.num_classes,
        dim=section.dim,
        layers=section.layers,
        heads=section.heads,
        ffn_multiple_of=section.ffn_multiple_of,
        dropout=section.dropout,
        condition_rope=section.condition_rope,
        init_std=section.init_std,
        position_std=section.position_std,
        transcoder_dim=section.transcoder_dim,
        transcoder_blocks=section.transcoder_blocks,
        diffusion_steps=section.diffusion_steps,
        target=section.target,
    )
