"""docs/method.md, section 3, "Masked bits", transcribed line by line, for the sampler of tests/literal_sampler.py.

Each line is a method, so that a test can put one mistake in its place. Shapes: M images, K bits.
"""

from itertools import pairwise

import torch
from torch import Tensor

from tests.literal_sampler import Literal


class LiteralMaskedBits(Literal):
    """The sampler for a model of the target "mask"."""

    def counts(self) -> list[int]:
        """How many bits each step decides; not given, ⌊K·x·max(x, ½) + ½⌋ are known after the share x of the steps."""
        bits, steps = self.model.config.code_bits, self.count(self.iteration)
        known = [int(bits * x * max(x, 0.5) + 0.5) for x in (s / steps for s in range(steps + 1))]
        return list(self.how.bit_counts or (b - a for a, b in pairwise(known)))

    def masked_logits(self, x: Tensor, absent: int, h: Tensor) -> Tensor:
        """ℓ of bits x [M, K] (1, −1; 0 where absent) under h [M, D]; the time is the share of absent bits."""
        transcoder = self.model.transcoder
        time = transcoder.t_embedder(torch.tensor([self.time(absent / self.model.config.code_bits)]))
        return transcoder.denoise((x + 1) / 2, transcoder.c_embedder(h) + time)

    def time(self, share: float) -> float:
        """T·share − 1, the index of the step embedding."""
        return self.T * share - 1

    def certainty_of_bit(self, p: Tensor, drawn: Tensor) -> Tensor:
        """The log-probability of what was drawn."""
        return torch.log(torch.where(drawn == 1, p, 1 - p))

    def bit_noise(self, step: int) -> float:
        """From `bit_noise` linearly to 0."""
        return self.how.bit_noise * (1 - step / len(self.counts()))

    def bit_probabilities(self, h: Tensor, h_unconditional: Tensor, scale: float) -> Tensor:
        """One token of each image. The result holds two things: P of each bit, and 2 more where the bit is 1."""
        rows, bits = torch.arange(len(h)), self.model.config.code_bits
        x, p_at_decision = torch.zeros(len(h), bits), torch.zeros(len(h), bits)
        absent = bits
        for step, count in enumerate(self.counts()):
            with_label, without = (self.masked_logits(x, absent, given) for given in (h, h_unconditional))
            p = torch.sigmoid(self.guided(with_label, without, scale))
            drawn = super().bits(p)
            noise = torch.stack([self.gumbel(len(h)) for _ in range(bits)], dim=1)
            certainty = self.certainty_of_bit(p, drawn) + self.bit_noise(step) * noise
            for _ in range(count):
                kept = certainty.masked_fill(x != 0, -torch.inf).argmax(dim=1)
                x[rows, kept] = 2 * drawn[rows, kept] - 1
                p_at_decision[rows, kept] = p[rows, kept]
            absent -= count
        return self.decided(p_at_decision, p) + 2 * (x == 1)

    def decided(self, p_at_decision: Tensor, p: Tensor) -> Tensor:
        """What the order of tokens needs: the probability of each bit at the moment when it was decided."""
        return p_at_decision

    def certainty(self, probability: Tensor, token: int) -> Tensor:
        """That of P."""
        return super().certainty(torch.where(probability >= 2, probability - 2, probability), token)

    def bits(self, probability: Tensor) -> Tensor:
        """They were drawn in the process."""
        return (probability >= 2).float()
