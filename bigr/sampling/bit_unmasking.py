"""The reverse process of masked bits: from absent bits to drawn ones, under guidance (docs/method.md, section 3).

Each step draws all absent bits of a token and keeps the most certain ones; the others stay absent. Which are kept is
partly random, and less so from step to step. After BAR (arXiv 2602.09024). No step waits for the device.

Shapes: M tokens, S steps, K bits, D width of h.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from bigr.models.masked.masked_bits import ABSENT, share_index
from bigr.models.masked.transcoder import Transcoder
from bigr.sampling.noise import gumbel
from bigr.sampling.reverse import guided_logits, halves


def bit_counts(code_bits: int, steps: int, chosen: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """How many of K bits each of S ≤ K steps decides: positive, growing, K in all; 2, 2, 5, 7 for K = 16, S = 4.

    They are the chosen ones where these are for S steps. Otherwise K·x·max(x, ½) bits are known after the part x of the
    steps, rounded, and at least one more after each step.
    """
    if chosen is not None and len(chosen) == steps:
        return chosen
    s = range(steps + 1)
    known = [max(i, (code_bits * i * max(2 * i, steps) + steps**2) // (2 * steps**2)) for i in s]
    return tuple(sorted(after - before for before, after in pairwise(known)))


@torch.no_grad()
def unmasked_bits(
    transcoder: Transcoder,
    hidden: Tensor,
    noise: Tensor,
    counts: Sequence[int],
    *,
    bit_noise: float = 0.0,
    deterministic: bool = False,
    hidden_unconditional: Tensor | None = None,
    guidance_scale: float = 1.0,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The bits of each token, bool [M, K], and the probability that each was 1 when it was decided, float32 [M, K].

    hidden: h [M, D]; hidden_unconditional: the same under the unconditional label, or None for no guidance; counts: how
    many bits each of S steps decides, K in all; noise: uniform draws [2·S, M, K] in [0, 1), S for the bits and S for
    the choice among them; bit_noise: the factor of the Gumbel noise on a bit's log-probability, in the first step; in
    step s, from 0, it is 1 − s/S of that; deterministic: bits are 1 where P > ½, instead of drawn.
    """
    both = hidden if hidden_unconditional is None else torch.cat([hidden, hidden_unconditional])
    code_bits, steps = transcoder.config.code_bits, len(counts)
    known = [0, *accumulate(counts[:-1])]  # before each step
    absent = torch.stack([torch.full((), code_bits - count, device=hidden.device) for count in known])
    index = share_index(absent, code_bits, transcoder.config.diffusion_steps)
    step_embeddings, condition = transcoder.t_embedder(index), transcoder.c_embedder(both)

    xt = torch.full(noise.shape[1:], ABSENT, device=hidden.device)
    probability = torch.full_like(xt, 0.5)
    for step, count in enumerate(counts):
        doubled = xt if hidden_unconditional is None else torch.cat([xt, xt])
        logits = transcoder.denoise(doubled, condition + step_embeddings[step])
        guided = guided_logits(*halves(logits, hidden_unconditional is not None), guidance_scale, temperature)
        p = guided.sigmoid()
        bits = p > (0.5 if deterministic else noise[step])
        certainty = F.logsigmoid(torch.where(bits, guided, -guided))
        certainty = certainty + bit_noise * (1 - step / steps) * gumbel(noise[steps + step])
        chosen = certainty.masked_fill(xt != ABSENT, -torch.inf).topk(count, dim=-1).indices
        kept = torch.zeros_like(bits).scatter(-1, chosen, True)
        xt, probability = torch.where(kept, bits, xt), torch.where(kept, p, probability)
    return xt > ABSENT, probability
