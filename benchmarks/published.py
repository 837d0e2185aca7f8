"""The published algorithm over this project's networks, written as it is published: what speed is compared with.

Each iteration of sampling runs every token through the transcoder, known ones too. The two parts of guidance are
separate calls, in the backbone and in each diffusion step. Each diffusion step embeds h and its step again. A training
step runs every token through the transcoder and drops the loss of known ones; the moving average is one parameter
after another, and the loss is read back in each step. Linear layers are torch's own.

The distribution is that of bigr/sampling: tests/test_benchmarks.py compares the bit probabilities for equal noise.
Shapes: B images, N tokens, K bits, S diffusion steps.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn

from bigr.models.linear import Linear
from bigr.models.masked.diffusion import weighted_bce
from bigr.models.masked.generator import BiGR
from bigr.sampling.unmask import Sampling

Draw = Callable[[tuple[int, ...]], Tensor]


@contextmanager
def plain_linear() -> Iterator[None]:
    """The networks' linear layers are torch's own, as in the published code."""
    with patch.object(Linear, "forward", nn.Linear.forward):
        yield


@torch.no_grad()
def bit_probabilities(
    model: BiGR, h: Tensor, h_unconditional: Tensor | None, how: Sampling, i: int, scale: float, draw: Draw
):
    """P of every token in iteration i, float [B·N, K]; h: [B·N, D]; draw: uniform numbers of a shape, once a step."""
    transcoder, diffusion = model.transcoder, model.transcoder.diffusion
    steps = diffusion.reverse_steps(how.steps(i))
    xt = (draw((len(h), model.config.code_bits)) < 0.5).float()
    for i, step in enumerate(steps):
        t = torch.full((len(h),), step, device=h.device)
        logits = transcoder(xt, t, h) / how.temperature
        if h_unconditional is not None:
            unconditional = transcoder(xt, t, h_unconditional) / how.temperature
            logits = unconditional + scale * (logits - unconditional)
        p = logits.sigmoid()
        x0 = xt * (1 - p) + (1 - xt) * p if model.config.target == "flip" else p
        if i + 1 < len(steps):
            s = torch.full((len(h),), steps[i + 1], device=h.device)
            xt = (draw(tuple(xt.shape)) < diffusion.posterior(x0, xt, t, s)).float()
    return x0


@plain_linear()
@torch.no_grad()
def sample_codes(model: BiGR, labels: Tensor, how: Sampling, generator: torch.Generator) -> Tensor:
    """Codes bool [B, N, K] for labels [B], all on one device; orders `entropy` and `margin`, constant Gumbel noise."""
    device, batch, tokens, bits = labels.device, len(labels), model.config.grid**2, model.config.code_bits
    codes = torch.zeros(batch, tokens, bits, device=device)
    masked = torch.ones(batch, tokens, dtype=torch.bool, device=device)
    unconditional = torch.full_like(labels, model.config.num_classes)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    for i in range(how.iterations):
        ratio = (i + 1) / how.iterations
        scale = 1 + (how.guidance_scale - 1) * ratio if how.guidance_schedule == "linear" else how.guidance_scale
        h = model.hidden(codes, labels, masked).flatten(0, 1)
        h_unconditional = model.hidden(codes, unconditional, masked).flatten(0, 1) if scale != 1 else None
        p = bit_probabilities(model, h, h_unconditional, how, i, scale, draw).view(batch, tokens, bits)
        if how.order == "margin":
            certainty = (2 * p - 1).abs().mean(-1)
        else:
            certainty = (torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).mean(-1) / math.log(2)
        gumbel = -torch.log(-torch.log(draw((batch, tokens)).clamp(1e-20, 1 - 1e-7)))
        certainty = (certainty + how.gumbel_temperature * gumbel).masked_fill(~masked, math.inf)
        stay = math.floor(tokens * math.cos(math.pi / 2 * ratio))
        left = certainty.argsort(dim=1)[:, :stay]
        masked_next = torch.zeros_like(masked).scatter_(1, left, True)
        drawn = (draw((batch, tokens, bits)) < p).float()
        codes = torch.where((masked & ~masked_next).unsqueeze(-1), drawn, codes)
        masked = masked_next
    return codes.bool()


class TrainingStep:
    """A training step of the generator: AdamW, gradient clipping, and the moving average."""

    def __init__(self, model: BiGR, learning_rate: float, decay: float, clip: float) -> None:
        self.model, self.decay, self.clip = model, decay, clip
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95))

    @plain_linear()
    def loss(self, codes: Tensor, labels: Tensor, masked: Tensor, generator: torch.Generator) -> Tensor:
        """The mean wBCE of masked tokens: codes [B, N, K], labels [B], masked int64 [B, m]."""
        mask = torch.zeros(codes.shape[:2], dtype=torch.bool, device=codes.device).scatter_(1, masked, True)
        h, x0 = self.model.hidden(codes, labels, mask).flatten(0, 1), codes.flatten(0, 1)
        transcoder = self.model.transcoder
        t = torch.randint(1, self.model.config.diffusion_steps + 1, (len(x0),), generator=generator, device=x0.device)
        noise = torch.rand(x0.shape, generator=generator, device=x0.device)
        xt = (noise < transcoder.diffusion.noisy_probability(x0, t)).float()
        target = (x0 - xt).abs() if self.model.config.target == "flip" else x0
        loss = weighted_bce(transcoder(xt, t, h), target).mean(-1)
        chosen = mask.flatten().float()
        return (loss * chosen).sum() / chosen.sum()

    def update(self, loss: Tensor) -> float:
        """One update of the weights and their average; returns the loss."""
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimiser.step()
        with torch.no_grad():
            for ours, theirs in zip(self.average.parameters(), self.model.parameters(), strict=True):
                ours.mul_(self.decay).add_(theirs, alpha=1 - self.decay)
        return loss.item()
