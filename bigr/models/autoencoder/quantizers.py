"""From the encoder's features to bits and back (docs/method.md, section 1): Bernoulli latent codes, and LFQ.

A quantizer turns features z [B,E,h,w] into real logits [B,K,h,w]. From these follow a bit's probability, a drawn bit
that gradients pass through, and penalties for the training loss. `embed_bits` maps bits to [B,E,h,w]. In both
quantizers the deterministic code is probability > 1/2.

Shapes: B images, E `embed_dim`, K `code_bits`, h×w tokens. Bits are 0 or 1.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigr.models.bits import entropy as binary_entropy


class Quantizer(nn.Module):
    """What both quantizers share: the 1×1 convolution E→K, and the interface that the tokenizer calls."""

    def __init__(self, embed_dim: int, code_bits: int) -> None:
        super().__init__()
        # A Sequential of one, so that the published key `quantize.proj.0.weight` is this module's own.
        self.proj = nn.Sequential(nn.Conv2d(embed_dim, code_bits, 1))

    def logits(self, z: Tensor) -> Tensor:
        """Features [B,E,h,w] -> real logits [B,K,h,w], float32 also under autocast, since bits are their signs."""
        logits: Tensor = self.proj(z).float()
        return logits

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits -> probabilities in [0, 1] that a bit is 1."""
        raise NotImplementedError

    def sample(self, logits: Tensor, generator: torch.Generator, part: tuple[int, int] = (0, 1)) -> Tensor:
        """Logits -> bits of exactly 0 or 1, with a straight-through gradient. All draws come from `generator`.

        part: (i, n), where the logits are part i of a batch in n equal parts; it gets its part of the batch's draws.
        """
        raise NotImplementedError

    def embed_bits(self, bits: Tensor) -> Tensor:
        """Bits [B,K,h,w], bool or float -> the decoder's input [B,E,h,w]."""
        raise NotImplementedError

    def penalties(self, logits: Tensor, of_batch: Callable[[Tensor], Tensor] = lambda mean: mean) -> dict[str, Tensor]:
        """Scalars to add to the training loss, unweighted, by name.

        of_batch: turns a mean over these logits into the mean over the whole batch that they are a part of.
        """
        raise NotImplementedError


class BernoulliQuantizer(Quantizer):
    """BiGR's binary latents: p = σ(logits), bits drawn from Bernoulli(p), embedded as Σₖ bₖ·E[k]."""

    def __init__(self, embed_dim: int, code_bits: int) -> None:
        super().__init__(embed_dim, code_bits)
        self.embed = nn.Embedding(code_bits, embed_dim)
        # A sum of K rows, half of them on, has a mean square of K·σ²/2: this σ makes it 1. The usual N(0, 1) is large
        # beside an optimiser's steps, and 0.1 to 0.3 dB behind in a short training on digits.
        nn.init.normal_(self.embed.weight, std=(2 / code_bits) ** 0.5)

    def probabilities(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits)

    def sample(self, logits: Tensor, generator: torch.Generator, part: tuple[int, int] = (0, 1)) -> Tensor:
        """Bits from Bernoulli(p) as b + p − stopgrad(p): the gradient is p's."""
        p = self.probabilities(logits)
        whole = (part[1], *p.shape)
        uniform = torch.rand(whole, generator=generator, device=generator.device)[part[0]].to(p.device)
        return _straight_through(uniform < p, p)

    def embed_bits(self, bits: Tensor) -> Tensor:
        weight = self.embed.weight
        return F.conv2d(bits.to(weight.dtype), weight.t()[:, :, None, None])

    def penalties(self, logits: Tensor, of_batch: Callable[[Tensor], Tensor] = lambda mean: mean) -> dict[str, Tensor]:
        """None: sampling noise alone keeps the bits in use."""
        return {}


class LookupFreeQuantizer(Quantizer):
    """MAGVIT-v2's lookup-free quantizer: a logit's sign, ±1, is its bit; a linear map leads back.

    The soft assignment of a logit v to the two values ±1 is softmax(−(v ∓ 1)²/τ), so a bit is 1 with σ(4v/τ). τ is 1:
    where the commitment loss has brought v to ±1 a bit is then 98 % sure, and up to there the entropy penalty has a
    gradient (with τ = 0.01, as often published, it has none beyond |v| ≈ 0.02).
    """

    temperature = 1.0

    def __init__(self, embed_dim: int, code_bits: int) -> None:
        super().__init__(embed_dim, code_bits)
        self.embed = nn.Conv2d(code_bits, embed_dim, 1)

    def probabilities(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(4 * logits / self.temperature)

    def sample(self, logits: Tensor, generator: torch.Generator, part: tuple[int, int] = (0, 1)) -> Tensor:
        """The signs as bits; nothing is drawn. The ±1 that the decoder sees has the logits' own gradient."""
        return _straight_through(self.probabilities(logits) > 0.5, logits / 2)

    def embed_bits(self, bits: Tensor) -> Tensor:
        embedded: Tensor = self.embed(2 * bits.to(self.embed.weight.dtype) - 1)
        return embedded

    def penalties(self, logits: Tensor, of_batch: Callable[[Tensor], Tensor] = lambda mean: mean) -> dict[str, Tensor]:
        """`entropy`: a bit's mean entropy minus the entropy of its mean, in nats, averaged over bits, in [−ln 2, 0].

        It is least when every bit is certain in each token, and 1 in half of them. Bit by bit, as 2^K codes cannot be
        enumerated: exact for the first term, an upper bound for the second. `commitment`: the mean of (v − sign v)².
        """
        p = self.probabilities(logits)
        entropy = binary_entropy(p).mean() - binary_entropy(of_batch(p.mean(dim=(0, 2, 3)))).mean()
        signs = 2 * (p.detach() > 0.5).to(logits.dtype) - 1
        return {"entropy": entropy * math.log(2), "commitment": F.mse_loss(logits, signs)}


def make_quantizer(name: str, embed_dim: int, code_bits: int) -> Quantizer:
    """The quantizer that `tokenizer.quantizer` names: bernoulli or lfq. Raises KeyError for another name."""
    kinds: dict[str, type[Quantizer]] = {"bernoulli": BernoulliQuantizer, "lfq": LookupFreeQuantizer}
    return kinds[name](embed_dim, code_bits)


def _straight_through(bits: Tensor, surrogate: Tensor) -> Tensor:
    """The value of `bits` and the gradient of `surrogate`. In this order of operations the value is exact."""
    return bits.to(surrogate.dtype) + (surrogate - surrogate.detach())
