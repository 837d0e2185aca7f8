"""BiGR: the masked backbone and its transcoder as one model (docs/method.md, sections 2 and 3).

`loss` is the paper's training objective; sampling is in bigr/sampling. Knows nothing about files or optimisers.
"""

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bigr.models.described import described
from bigr.models.masked.backbone import Backbone, BackboneConfig
from bigr.models.masked.transcoder import Transcoder, TranscoderConfig

TEXT_FIELDS = tuple(field.name for field in fields(BackboneConfig) if field.name.startswith("text_"))
"""The fields of a shape that are zero in a model of classes."""


@dataclass(frozen=True)
class BiGRConfig(BackboneConfig):
    """The shape of the model: the backbone's fields, and those of the transcoder."""

    transcoder_dim: int
    transcoder_blocks: int
    _: KW_ONLY
    diffusion_steps: int = 256
    target: str = "flip"

    @classmethod
    def of(
        cls, section: object, *, code_bits: int, grid: int, num_classes: int, text: Mapping[str, Any] | None = None
    ) -> "BiGRConfig":
        """The shape that the section `generator` of params.yaml describes, for such codes.

        text: the fields that follow from the texts' encoder, of a model that takes texts.
        """
        given = dict.fromkeys(TEXT_FIELDS, 0) | {"text_pooled": False} | dict(text or {})
        if given["text_vocabulary"]:
            given |= {name: getattr(section, name) for name in ("text_layers", "text_heads")}
        return described(cls, section, code_bits=code_bits, grid=grid, num_classes=num_classes, **given)

    @property
    def transcoder(self) -> TranscoderConfig:
        """The transcoder's part."""
        return TranscoderConfig(
            code_bits=self.code_bits,
            condition_dim=self.dim,
            dim=self.transcoder_dim,
            blocks=self.transcoder_blocks,
            diffusion_steps=self.diffusion_steps,
            target=self.target,
            init_std=self.init_std,
        )


class BiGR(nn.Module):
    """The complete generator: codes, labels and masks to bit probabilities."""

    kind: ClassVar[str] = "bigr"
    config_class: ClassVar[type[Any]] = BiGRConfig

    def __init__(self, config: BiGRConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.transcoder = Transcoder(config.transcoder)

    def blocks(self) -> list[nn.Module]:
        """The blocks of backbone and transcoder."""
        return [*self.backbone.layers, *self.transcoder.blocks]

    def hidden(self, codes: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Codes [B, N, K], labels (of `Backbone.condition`), mask bool [B, N] → h [B, N, D]."""
        return self.backbone(codes, self.backbone.condition(labels), mask)

    def features(self, codes: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        """Codes [B, N, K] → the residual stream after each block, [B, N, D] each; see `Backbone.features`."""
        return self.backbone.features(codes, labels)

    def loss(
        self,
        codes: Tensor,
        labels: Tensor,
        masked: Tensor,
        generator: torch.Generator,
        noise_draws: int = 1,
        part: tuple[int, int] = (0, 1),
    ) -> Tensor:
        """Mean wBCE over the masked tokens, a scalar (docs/method.md, sections 2 and 3).

        codes: [B, N, K]; labels: int64 [B], or texts; masked: int64 [B, m], the positions masked in each image;
        generator: on the codes' device, for steps and corruptions; noise_draws: draws for each pass of the
        backbone; more lower the variance of the gradient, not its mean; part: as in `Transcoder.loss`.
        """
        mask = torch.zeros(codes.shape[:2], dtype=torch.bool, device=codes.device).scatter_(1, masked, True)
        h = gather_tokens(self.hidden(codes, labels, mask), masked)
        x0 = gather_tokens(codes, masked)
        return self.transcoder.loss(x0, h, generator, noise_draws, part).mean()

    forward = loss


def gather_tokens(x: Tensor, positions: Tensor) -> Tensor:
    """Tokens of x [B, N, C] at positions int64 [B, m], as rows [B·m, C]."""
    return torch.take_along_dim(x, positions.unsqueeze(-1), dim=1).flatten(0, 1)


def masked_count(u: float, tokens: int) -> int:
    """How many of N tokens a training batch masks, for u in {0..N−1}: max(1, ⌊N·cos(π/2 · u/N)⌋).

    Source: docs/method.md, section 2.
    """
    return max(1, math.floor(tokens * math.cos(math.pi / 2 * u / tokens)))
