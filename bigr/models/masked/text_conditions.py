"""Texts as conditions of the backbone (docs/text-to-image.md): tokens in front of the image's, and a vector.

A text is one tensor, so that it goes wherever a label goes. Learned: the numbers of its byte pairs, int64 [B, P], zeros
behind them. Frozen: the features of an encoder, float [B, P, C], zeros behind them; with `pooled` a row more in front,
the encoder's vector of the whole text. All zeros: no text.

Shapes: B texts, P places, C features, D width.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bigr.models.linear import Linear


class TextConditions(nn.Module):
    """Texts → [B, 1 + P, D]: the vector that takes the class's place in adaLN, then the prefix tokens.

    A place behind the end of a text is a row of zeros, which nothing attends to. No text is a row of P learned tokens.
    The vector is mapped from the encoder's own, else from the mean over the places. It has length √D, however training
    moves it: else it grows until all texts are nearly one vector.

    A learned encoder knows the order of a text by T5's relative attention bias (arXiv 1910.10683), [layers, heads,
    2P − 1]: what is added to the logits by how far one place is from the other. Attention starts out near a place.

    vocabulary: of byte pairs, whose embeddings and `layers` of a transformer are learned; 0: features are given, and a
    small MLP maps them to D.
    """

    def __init__(
        self, dim: int, *, tokens: int, width: int, pooled: bool, vocabulary: int, layers: int, heads: int
    ) -> None:
        super().__init__()
        self.pooled = pooled
        self.nothing = nn.Parameter(torch.empty(tokens, dim))
        self.no_vector = nn.Parameter(torch.empty(1, dim))
        self.to_vector = Linear(width if pooled else dim, dim)
        self.embedding = self.features = None
        if vocabulary:
            self.embedding = nn.Embedding(vocabulary, dim)
            self.relative_bias = nn.Parameter(torch.empty(layers, heads, 2 * tokens - 1))
            # Not GELU or ReLU: with these torch's fast path of inference takes a bias for a mask.
            self.layers = nn.ModuleList(
                nn.TransformerEncoderLayer(
                    dim, heads, 4 * dim, dropout=0.0, activation=F.silu, batch_first=True, norm_first=True
                )
                for _ in range(layers)
            )
            self.norm = nn.LayerNorm(dim)
        else:
            self.features = nn.Sequential(Linear(width, dim), nn.GELU(), Linear(dim, dim))

    def init_weights(self, std: float) -> None:
        """What is no linear layer and no table: N(0, std²). Of byte pairs, embeddings: N(0, 1); what the layers add to
        them is small at first, so that each keeps what it is. Each head attends around a place of its own: of 4, the
        second one before, the one before, itself, the next one.
        """
        for own in self.parameters(recurse=False):
            nn.init.normal_(own, std=std)
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight)
            _, heads, distances = self.relative_bias.shape
            away = torch.arange(distances) - distances // 2 - (torch.arange(heads) - heads // 2).unsqueeze(1)
            with torch.no_grad():
                self.relative_bias.copy_(-away.abs())
            for layer in cast("Iterable[nn.TransformerEncoderLayer]", self.layers):
                for added in (layer.self_attn.out_proj, layer.linear2):
                    nn.init.normal_(added.weight, std=std / (2 * len(self.layers)) ** 0.5)

    def forward(self, texts: Tensor) -> Tensor:
        """Texts [B, P], or [B, (1 +) P, C] → [B, 1 + P, D]."""
        if self.embedding is not None:
            real = texts > 0
            x = self._read(self.embedding(texts), real)
        else:
            assert self.features is not None
            if self.pooled:
                vector, texts = texts[:, 0], texts[:, 1:]
            real = (texts != 0).any(-1)
            x = self.features(texts)
        x = x * real.unsqueeze(-1)
        if not self.pooled:
            vector = x.sum(1) / real.sum(1, keepdim=True).clamp(min=1)
        v = self.to_vector(vector)
        given = real.any(1)
        vector = torch.where(given[:, None], F.rms_norm(v, v.shape[-1:]), self.no_vector.to(x.dtype))
        prefix = torch.where(given[:, None, None], x, self.nothing.to(x.dtype))
        return torch.cat([vector.unsqueeze(1), prefix], dim=1)

    def _read(self, told: Tensor, real: Tensor) -> Tensor:
        """The byte pairs' embeddings [B, P, D] through the transformer, [B, P, D]."""
        unread = ~real
        unread[:, 0] = False  # of no text: attention to nothing at all is not a number
        closed = torch.zeros_like(real, dtype=told.dtype).masked_fill(unread, -torch.inf)[:, None, None]  # [B, 1, 1, P]
        place = torch.arange(real.shape[1], device=real.device)
        away = place - place.unsqueeze(1) + self.relative_bias.shape[-1] // 2
        biases = self.relative_bias[:, :, away].to(told.dtype)  # [layers, heads, P, P]
        x = told
        for layer, bias in zip(self.layers, biases, strict=True):
            x = layer(x, src_mask=(closed + bias).flatten(0, 1))
        return self.norm(x)
