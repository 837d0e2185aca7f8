"""The binary tokenizer: an autoencoder whose latent is a grid of K-bit tokens (docs/method.md, section 1).

Encoder and decoder are flat lists of blocks, as in the published files, so that a block's index is its name there.
Images are RGB in [0, 1] on both sides; the decoder has no final activation. Knows nothing about losses or training.

Shapes: B images, g×g grid of N = g² tokens in row-major order, K bits, E embed_dim, C channels of a feature map.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigr.models.autoencoder.quantizers import make_quantizer
from bigr.models.described import described


@dataclass(frozen=True)
class TokenizerConfig:
    """The shape of a tokenizer. `image_size` is in pixels; one level of downsampling between two multipliers."""

    image_size: int
    code_bits: int
    embed_dim: int
    base_channels: int
    channel_multipliers: tuple[int, ...]
    res_blocks: int
    attention_resolutions: tuple[int, ...]
    norm_first: bool = True
    quantizer: str = "bernoulli"

    @classmethod
    def of(cls, section: object, *, image_size: int) -> "TokenizerConfig":
        """The shape that the section `tokenizer` of params.yaml describes, for images of `image_size` pixels."""
        return described(cls, section, image_size=image_size)

    @property
    def downsampling(self) -> int:
        """f: pixels along one side of a token."""
        return int(2 ** (len(self.channel_multipliers) - 1))

    @property
    def grid(self) -> int:
        """g: tokens along one side of an image."""
        return self.image_size // self.downsampling


def norm(channels: int) -> nn.GroupNorm:
    """The normalisation of every block: 32 groups, eps 1e-6."""
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """[B, C_in, h, w] → [B, C_out, h, w]: two norm–SiLU–conv passes, plus the input (1×1 conv where widths differ)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = norm(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        # The published files hold `conv_out` for every block; it is kept, and idle where the widths are equal.
        self.conv_out = nn.Conv2d(channels_in, channels_out, 1)
        self.widens = channels_in != channels_out
        self.conv_out.requires_grad_(self.widens)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return (self.conv_out(x) if self.widens else x) + self.conv2(F.silu(self.norm2(y)))


class AttentionBlock(nn.Module):
    """[B, C, h, w] → same: one head over the h·w positions, scale 1/√C, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (conv(y).flatten(2).mT.unsqueeze(1) for conv in (self.q, self.k, self.v))  # [B, 1, h·w, C]
        y = F.scaled_dot_product_attention(q, k, v).squeeze(1).mT.reshape(x.shape)
        return x + self.proj_out(y)


class Downsample(nn.Module):
    """Halves both sides: zeros on the right and bottom, conv 3×3 with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles both sides: nearest neighbour, conv 3×3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Encoder(nn.Module):
    """[B, 3, H, W] → [B, E, g, g]."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        width, resolution = config.base_channels, config.image_size
        blocks: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
        for level, multiplier in enumerate(config.channel_multipliers):
            if level:
                blocks.append(Downsample(width))
                resolution //= 2
            for _ in range(config.res_blocks):
                blocks.append(ResidualBlock(width, config.base_channels * multiplier))
                width = config.base_channels * multiplier
                if resolution in config.attention_resolutions:
                    blocks.append(AttentionBlock(width))
        blocks += [ResidualBlock(width, width), AttentionBlock(width), ResidualBlock(width, width)]
        blocks += [norm(width), nn.Conv2d(width, config.embed_dim, 3, padding=1)]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Decoder(nn.Module):
    """[B, E, g, g] → [B, 3, H, W], without a final activation."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        width = config.base_channels * config.channel_multipliers[-1]
        resolution = config.grid
        blocks: list[nn.Module] = [norm(config.embed_dim)] if config.norm_first else []
        blocks += [nn.Conv2d(config.embed_dim, width, 3, padding=1)]
        blocks += [ResidualBlock(width, width), AttentionBlock(width), ResidualBlock(width, width)]
        for level in reversed(range(len(config.channel_multipliers))):
            for _ in range(config.res_blocks):
                blocks.append(ResidualBlock(width, config.base_channels * config.channel_multipliers[level]))
                width = config.base_channels * config.channel_multipliers[level]
                if resolution in config.attention_resolutions:
                    blocks.append(AttentionBlock(width))
            if level:
                blocks.append(Upsample(width))
                resolution *= 2
        blocks += [norm(width), nn.Conv2d(width, 3, 3, padding=1)]
        self.blocks = nn.ModuleList(blocks)

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last conv, at which the adaptive GAN weight is measured."""
        return cast(nn.Conv2d, self.blocks[-1]).weight

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Tokenizer(nn.Module):
    """Images to bits and back."""

    kind: ClassVar[str] = "tokenizer"
    config_class: ClassVar[type[Any]] = TokenizerConfig

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = make_quantizer(config.quantizer, config.embed_dim, config.code_bits)
        self.decoder = Decoder(config)

    @property
    def grid(self) -> int:
        """g: tokens along one side of an image."""
        return self.config.grid

    @property
    def width(self) -> int:
        """Terms in the widest sums of its convolutions, 3·3·channels: the width of the equivalent matrix product."""
        return 9 * self.config.base_channels * max(self.config.channel_multipliers)

    def blocks(self) -> list[nn.Module]:
        """The residual and attention blocks of encoder and decoder."""
        return [module for module in self.modules() if isinstance(module, ResidualBlock | AttentionBlock)]

    def logits(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] → bit logits [B, K, g, g]."""
        return self.quantizer.logits(self.encoder(images))

    def decode_bits(self, bits: Tensor) -> Tensor:
        """Bits as floats [B, K, g, g] → images [B, 3, H, W], not clamped; differentiable in the bits."""
        return self.decoder(self.quantizer.embed_bits(bits))

    def autoencode(
        self, images: Tensor, generator: torch.Generator, part: tuple[int, int] = (0, 1)
    ) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] → images decoded from drawn bits, and bit logits [B, K, g, g]; differentiable.

        part: as in `Quantizer.sample`.
        """
        logits = self.logits(images)
        return self.decode_bits(self.quantizer.sample(logits, generator, part)), logits

    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] → bit probabilities [B, N, K]."""
        return self.quantizer.probabilities(self.logits(images)).flatten(2).mT

    def codes(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] → the deterministic codes, bool [B, N, K]: probability > 1/2."""
        return self.encode(images) > 0.5

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, N, K] (bool, or floats in [0, 1]) → images [B, 3, H, W], not clamped to [0, 1]."""
        weight = self.decoder.last_weight
        bits = codes.to(weight.dtype).mT.unflatten(2, (self.grid, self.grid))
        return self.decode_bits(bits)

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] → images of their deterministic codes, clamped to [0, 1]."""
        return self.decode(self.codes(images)).clamp(0, 1)


def to_uint8(images: Tensor) -> Tensor:
    """Floats in [0, 1] (clamped) → uint8, rounded to the nearest."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
