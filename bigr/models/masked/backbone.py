"""The bidirectional LLaMA backbone: masked tokens of bits in, h per token out (docs/method.md, section 2).

One condition token (a class, or "unconditional") stands in front of the N image tokens; in a text-to-image model P
tokens of a text do (bigr/models/masked/text_conditions.py). Attention is full; only the places behind the end of a text
are masked. The transcoder (bigr/models/masked/transcoder.py) turns h into bit probabilities.

Shapes: B images, N tokens, P prefix tokens (1 of a class), L = P + N, K bits, D width, H heads, d = D/H.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigr.models.linear import Linear
from bigr.models.masked.text_conditions import TextConditions
from bigr.models.text_shape import text_shape


@dataclass(frozen=True)
class BackboneConfig:
    """The shape of a backbone. `grid` is g, with N = g² tokens; `num_classes` leaves out the unconditional row.

    text_tokens: P of a model that takes texts, 0 of one that takes classes; text_width, text_pooled: of the features of
    a frozen encoder; text_vocabulary, text_layers, text_heads: of a learned one.
    """

    code_bits: int
    grid: int
    num_classes: int
    dim: int
    layers: int
    heads: int
    _: KW_ONLY
    ffn_multiple_of: int = 256
    dropout: float = 0.1
    condition_rope: bool = False
    init_std: float = 0.02
    position_std: float = 0.02
    text_tokens: int = 0
    text_width: int = 0
    text_pooled: bool = False
    text_vocabulary: int = 0
    text_layers: int = 0
    text_heads: int = 0

    @property
    def tokens(self) -> int:
        """N."""
        return self.grid**2

    @property
    def unconditional(self) -> int:
        """What stands for "no class", the last row of the class table; or for no text, in all its places."""
        return 0 if self.text_tokens else self.num_classes

    @property
    def ffn_dim(self) -> int:
        """SwiGLU's hidden size: int(8D/3), rounded up to a multiple of `ffn_multiple_of`."""
        return math.ceil(int(8 * self.dim / 3) / self.ffn_multiple_of) * self.ffn_multiple_of


class Backbone(nn.Module):
    """Codes, labels or texts, and masks to h."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = Linear(config.code_bits, config.dim)
        self.mask_tok = nn.Parameter(torch.empty(1, config.dim))
        self.cls_embedding: nn.Embedding | None = None
        self.text: TextConditions | None = None
        if config.text_tokens:
            self.text = TextConditions(
                config.dim,
                tokens=config.text_tokens,
                width=config.text_width,
                pooled=config.text_pooled,
                vocabulary=config.text_vocabulary,
                layers=config.text_layers,
                heads=config.text_heads,
            )
        else:
            self.cls_embedding = nn.Embedding(config.num_classes + 1, config.dim)
        self.adaLN = nn.Sequential(nn.SiLU(), Linear(config.dim, 6 * config.dim))
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim)
        self.position = nn.Parameter(torch.empty(1, config.tokens, config.dim))
        cos, sin = rope_tables(config)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Linears, embeddings N(0, init_std²); positions N(0, position_std²); `ada_gss` N(0, 1/D); `mask_tok` N(0, 1).

        Biases and adaLN's linear are zero.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.init_std)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(cast(nn.Linear, self.adaLN[1]).weight)
        nn.init.normal_(self.mask_tok)
        nn.init.normal_(self.position, std=self.config.position_std)
        if self.text is not None:
            self.text.init_weights(self.config.init_std)
        for block in self.blocks():
            nn.init.normal_(block.ada_gss, std=self.config.dim**-0.5)

    def blocks(self) -> Iterable["Block"]:
        """The transformer blocks, typed."""
        return self.layers  # type: ignore[return-value]

    def condition(self, given: Tensor) -> Tensor:
        """Labels int64 [B] (num_classes = unconditional) → condition embeddings [B, D]; texts → [B, 1 + P, D].

        Texts are those of `TextConditions`, the result too.
        """
        if self.text is not None:
            return self.text(given)
        assert self.cls_embedding is not None
        return self.cls_embedding(given)

    def unconditional(self, count: int, device: torch.device | str | None = None) -> Tensor:
        """What `condition` takes for no class or no text, `count` times."""
        dtype = torch.float32 if self.config.text_width else torch.int64
        shape = (count, *text_shape(vars(self.config)))
        return torch.full(shape, self.config.unconditional, dtype=dtype, device=device)

    def embed(self, codes_BNK: Tensor, mask_BN: Tensor | None) -> Tensor:
        """Codes [B, N, K] and mask bool [B, N] (True = masked; None: nothing masked) → token embeddings [B, N, D]."""
        x_BND = self.tok_embeddings(codes_BNK.to(self.tok_embeddings.weight.dtype))
        if mask_BN is None:
            return x_BND
        return torch.where(mask_BN.unsqueeze(-1), self.mask_tok.to(x_BND.dtype), x_BND)

    def forward(self, codes_BNK: Tensor, condition: Tensor, mask_BN: Tensor | None) -> Tensor:
        """Codes [B, N, K], condition embeddings (of `condition`), mask bool [B, N] → h [B, N, D]."""
        for x_BND in self.streams(codes_BNK, condition, mask_BN):  # noqa: B007 - the last one, and no other in memory
            pass
        return self.norm(x_BND) + self.position

    def streams(self, codes_BNK: Tensor, condition: Tensor, mask_BN: Tensor | None) -> Iterator[Tensor]:
        """The residual stream of the image's tokens after each block, [B, N, D] each."""
        x_BND = self.embed(codes_BNK, mask_BN)
        keys = None
        if condition.ndim == 2:
            vector_BD, prefix_BPD = condition, condition.unsqueeze(1)
        else:
            vector_BD, prefix_BPD = condition[:, 0], condition[:, 1:]
            real_BP = (prefix_BPD != 0).any(-1)
            keys = F.pad(real_BP, (0, x_BND.shape[1]), value=True)[:, None, None]  # [B, 1, 1, L]
        places = prefix_BPD.shape[1]
        x_BLD = torch.cat([prefix_BPD, x_BND], dim=1)
        gss = self.adaLN(vector_BD).unflatten(-1, (6, -1))  # [B, 6, D]
        for block in self.layers:
            x_BLD = block(x_BLD, gss, self.rope_cos, self.rope_sin, keys)
            yield x_BLD[:, places:]

    def features(self, codes_BNK: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        """Codes [B, N, K], nothing masked → the residual stream after each block, [B, N, D] each.

        labels: int64 [B], or texts; None is unconditional, as for representation (docs/method.md, section 5).
        """
        if labels is None:
            labels = self.unconditional(len(codes_BNK), codes_BNK.device)
        return list(self.streams(codes_BNK, self.condition(labels), None))


class Block(nn.Module):
    """[B, L, D] → same: attention, then SwiGLU, each modulated and gated by the shared adaLN plus the block's table."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.dim)
        self.feed_forward = FeedForward(config)
        self.ada_gss = nn.Parameter(torch.empty(1, 1, 6, config.dim))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, gss: Tensor, cos: Tensor, sin: Tensor, keys: Tensor | None = None) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (gss.unsqueeze(1) + self.ada_gss).unbind(2)
        attended = self.attention(modulate(self.attention_norm(x), shift_a, scale_a), cos, sin, keys)
        x = x + gate_a * self.dropout(attended)
        return x + gate_m * self.dropout(self.feed_forward(modulate(self.ffn_norm(x), shift_m, scale_m)))


class Attention(nn.Module):
    """Full attention over L tokens with 2-D rotary positions; fused [q; k; v], no biases.

    keys: bool [B, 1, 1, L], the tokens that are attended to; None: all.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.wqkv = Linear(config.dim, 3 * config.dim, bias=False)
        self.wo = Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, keys: Tensor | None) -> Tensor:
        qkv_BL3Hd = self.wqkv(x).unflatten(-1, (3, self.heads, -1))
        q, k = rotate(qkv_BL3Hd[:, :, :2], cos, sin).to(x.dtype).unbind(2)
        v = qkv_BL3Hd[:, :, 2]
        q, k, v = (t.transpose(1, 2) for t in (q, k, v.to(q.dtype)))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        return self.wo(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) · w3 x), no biases."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.w1 = Linear(config.dim, config.ffn_dim, bias=False)
        self.w2 = Linear(config.ffn_dim, config.dim, bias=False)
        self.w3 = Linear(config.dim, config.ffn_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class RMSNorm(nn.Module):
    """x / √(mean x² + 1e-5) · weight, computed in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), eps=1e-5).to(x.dtype) * self.weight


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x · (1 + scale) + shift."""
    return torch.addcmul(x + shift, x, scale)


def rope_tables(config: BackboneConfig) -> tuple[Tensor, Tensor]:
    """cos and sin [L, d/2] of 2-D RoPE, base 10000: half of the pairs turns with the row, half with the column.

    The class token's entries are zero, as in the published models, so that its query and key vanish; with
    `condition_rope`, and for the tokens of a text, they are those of position 0 (no rotation).
    """
    half = config.dim // config.heads // 2
    frequencies = 10000.0 ** (-torch.arange(0, half, 2).float() / half)  # [d/4]
    position = torch.arange(config.grid).float()
    rows = position.repeat_interleave(config.grid)
    columns = position.repeat(config.grid)
    angles = torch.cat([torch.outer(rows, frequencies), torch.outer(columns, frequencies)], dim=1)  # [N, d/2]
    prefix = torch.full((config.text_tokens or 1, half), 1.0 if config.condition_rope or config.text_tokens else 0.0)
    return torch.cat([prefix, angles.cos()]), torch.cat([torch.zeros_like(prefix), angles.sin()])


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn adjacent pairs of x [B, L, 2, H, d] by the tables cos, sin [L, d/2], in float32."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None, None], sin[:, None, None]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
