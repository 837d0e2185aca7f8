"""The tokenizer's loss: L1 + LPIPS + λ·hinge-GAN + the quantizer's penalties (docs/method.md, section 1).

The weights of the terms are settings; a term of weight 0 is not computed. The discriminator is a second trained module
of the same loop; it is trained on the reconstructions that the tokenizer made in the same step.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.runtime.distributed import mean_over_processes, part_of_batch
from bigr.runtime.seeds import WHOLE_BATCH, generator
from bigr.training.adversarial import (
    adaptive_weight,
    diff_augment,
    discriminator_loss,
    generator_loss,
    normalise_whole_batches,
)
from bigr.training.parallel import parallel

if TYPE_CHECKING:
    from bigr.config import TokenizerSettings as Section


class ImageBatch(NamedTuple):
    """images: float [B, 3, H, W] in [0, 1]; labels: int64 [B]."""

    images: Tensor
    labels: Tensor


class Autoencoding:
    """The losses of the tokenizer and of the discriminator, of a batch.

    perceptual: LPIPS; discriminator: [B, 3, H, W] → logits; each None where its term has weight 0.
    """

    def __init__(
        self,
        section: "Section",
        seed: int,
        tokenizer: Tokenizer,
        perceptual: nn.Module | None,
        discriminator: nn.Module | None,
    ) -> None:
        self.section, self.seed = section, seed
        self.tokenizer, self.perceptual, self.discriminator = tokenizer, perceptual, discriminator
        self.autoencode = parallel(tokenizer, "autoencode")
        self.discriminate = None
        if discriminator is not None:
            normalise_whole_batches(discriminator)
            self.discriminate = parallel(discriminator, "forward")
        self._restored: Tensor | None = None

    def tokenizer_loss(self, batch: ImageBatch, step: int, part: int) -> dict[str, Tensor]:
        """The terms by name, scalars, and their weighted sum "loss"; step: from 0; part: as in `TrainedModule`."""
        images, section = batch.images, self.section
        draws = self._generator("bits", step, images)
        restored, logits = self.autoencode(images, draws, part_of_batch(part, section.accumulate))
        losses = {"l1": F.l1_loss(restored, images)}
        loss = section.reconstruction_weight * losses["l1"]
        if self.perceptual is not None:
            losses["lpips"] = self.perceptual(restored, images).mean()
            loss = loss + section.perceptual_weight * losses["lpips"]
        if self._adversarial(step):
            assert self.discriminator is not None
            losses["gan"] = generator_loss(self.discriminator(self._augment(restored, "fake for the tokenizer", step)))
            losses["gan_adaptive"] = adaptive_weight(loss, losses["gan"], self.tokenizer.decoder.last_weight)
            loss = loss + section.gan_weight * losses["gan_adaptive"] * losses["gan"]
            self._restored = restored.detach()
        weights = {"entropy": section.lfq_entropy_weight, "commitment": section.lfq_commitment_weight}
        for name, penalty in self.tokenizer.quantizer.penalties(logits, mean_over_processes).items():
            losses[name] = penalty
            loss = loss + weights[name] * penalty
        return {"loss": loss, **losses}

    def discriminator_loss(self, batch: ImageBatch, step: int, part: int) -> dict[str, Tensor] | None:
        """The hinge loss {"loss": scalar} of the batch and its reconstructions; None before `gan_start`.

        part: 0, since the settings allow no parts of a batch with a discriminator.
        """
        if not self._adversarial(step) or self.discriminate is None or self._restored is None:
            return None
        real = self.discriminate(self._augment(batch.images, "real", step))
        fake = self.discriminate(self._augment(self._restored, "fake", step))
        return {"loss": discriminator_loss(real, fake)}

    def _adversarial(self, step: int) -> bool:
        return self.discriminator is not None and step + 1 >= self.section.gan_start

    def _augment(self, images: Tensor, place: str, step: int) -> Tensor:
        if not self.section.gan_augment:
            return images
        return diff_augment(images, self._generator(place, step, images), part_of_batch(0, 1))

    def _generator(self, place: str, step: int, images: Tensor) -> torch.Generator:
        return generator(self.seed, "tokenizer", place, step, WHOLE_BATCH, device=images.device)
