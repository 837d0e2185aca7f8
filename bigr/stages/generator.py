"""Stage `generator`: train the masked backbone jointly with its transcoder: the paper's objective.

METHOD sections 2 and 3.

Reads data/codes; writes models/generator (the average of the weights, backbone and joint transcoder) and
outputs/curves/generator.csv.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bigr.context import Context
from bigr.data.codes import CodesDataset
from bigr.interop.folders import model_hash, save
from bigr.models.bigr import BiGR, BiGRConfig
from bigr.seeds import derive_seed, generator
from bigr.training.device import resolve_device
from bigr.training.distributed import is_main, parallel, rank
from bigr.training.loop import Plan, Player, check_batch_size, forget_checkpoint, train
from bigr.training.masked import FixedMasks, MaskedBatch, MaskedBatches
from bigr.training.optimiser import adamw

if TYPE_CHECKING:
    from bigr.config import Generator as Section
    from bigr.config import Settings

VALIDATION_IMAGES = 512  # at most: these figures are points of a curve
UNDECAYED = ("transcoder.",)  # the paper decays neither vectors and biases nor the transcoder


def run(settings: "Settings", context: Context) -> None:
    """Train, and write the average of the weights."""
    section, device = settings.generator, resolve_device(settings.run.device)
    check_batch_size("generator", section.batch_size)
    folder = context.root / "data" / "codes"
    tokenizer = context.root / "models" / "tokenizer"
    expected = model_hash(tokenizer) if (tokenizer / "config.json").exists() else None  # codes may come without it
    dataset = CodesDataset.open(folder, "train", expected)
    torch.manual_seed(derive_seed(settings.seed, "generator", "init"))
    model = BiGR(config_of(section, dataset)).to(device)
    loss_of = parallel(model, "loss")
    unconditional = model.config.num_classes

    def loss(batch: MaskedBatch, step: int) -> dict[str, Tensor]:
        noise = generator(settings.seed, "generator", "noise", step, rank(), device=device)
        return {"loss": loss_of(*batch, noise, section.noise_draws)}

    fixed = FixedMasks(
        CodesDataset.open(folder, "val", None),
        *(VALIDATION_IMAGES, settings.seed, device, None if section.use_labels else unconditional),
    )

    @torch.no_grad()
    def validate(average: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(average, BiGR)
        noise = fixed.noise()
        losses = [average.loss(*batch, noise) for batch in fixed.batches]
        return {"val_loss": float(torch.stack(losses).mean())}

    stream = MaskedBatches(
        dataset,
        section.batch_size,
        stage="generator",
        seed=settings.seed,
        label_dropout=section.label_dropout if section.use_labels else 1.0,
        unconditional=unconditional,
        device=device,
    )
    plan = Plan("generator", section, settings.run, settings.seed, device, width=section.dim)
    players = [Player("model", model, adamw(model, section, UNDECAYED), loss)]
    average = train(plan, players, stream.from_step, validate, context, stream.describe)
    if is_main():
        assert isinstance(average, BiGR)
        save(context.root / "models" / "generator", average, dataset.tokenizer)
    forget_checkpoint(plan, context)


def config_of(section: "Section", dataset: CodesDataset) -> BiGRConfig:
    """The shape that the settings describe, for these codes."""
    return BiGRConfig(
        code_bits=dataset.code_bits,
        grid=dataset.grid,
        num_classes=dataset.num_classes,
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
