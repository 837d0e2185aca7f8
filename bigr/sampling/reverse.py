"""The reverse process: from fair coins to bit probabilities, under guidance (docs/method.md, section 3).

What does not depend on the diffusion step (the embedding of h) is computed once; what depends on the step alone (its
embedding, the schedule) is computed once for all tokens. No step waits for the device.

Shapes: M tokens, S steps, K bits, D width of h.
"""

import torch
from torch import Tensor

from bigr.models.masked.transcoder import Transcoder


def guided_logits(
    conditional: Tensor, unconditional: Tensor | None, guidance_scale: float, temperature: float
) -> Tensor:
    """ℓᵤ + s(ℓ_c − ℓᵤ), each divided by the temperature; without an unconditional part, the conditional one alone."""
    conditional = conditional.float() / temperature
    if unconditional is None:
        return conditional
    unconditional = unconditional.float() / temperature
    return unconditional + guidance_scale * (conditional - unconditional)


def halves(logits: Tensor, guided: bool) -> tuple[Tensor, Tensor | None]:
    """The conditional and the unconditional part of logits [2·M, K]; without guidance all of them, and None."""
    return (logits[: len(logits) // 2], logits[len(logits) // 2 :]) if guided else (logits, None)


def x0_probability(x0_logits: Tensor) -> Tensor:
    """x̂₀ = P(x₀ = 1) from the (guided) logits of x₀.

    For the flip target this is xₜ(1−p) + (1−xₜ)p with p = σ(ℓ), since negating ℓ where xₜ = 1 is the same.
    """
    return x0_logits.sigmoid()


@torch.no_grad()
def bit_probabilities(
    transcoder: Transcoder,
    hidden: Tensor,
    noise: Tensor,
    *,
    hidden_unconditional: Tensor | None = None,
    guidance_scale: float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """The probability that each bit of each token is 1, [M, K] in float32.

    hidden: h [M, D]; hidden_unconditional: the same under the unconditional label, or None for no guidance;
    noise: uniform draws [S, M, K] in [0, 1): noise[0] starts x_T, noise[i] decides the step into the i-th of S steps.
    For the target "direct" there is one pass, and the noise is not used.
    """
    guided = hidden_unconditional is not None
    both = hidden if hidden_unconditional is None else torch.cat([hidden, hidden_unconditional])
    if transcoder.config.target == "direct":
        direct = halves(transcoder.direct_logits(both), guided)
        return x0_probability(guided_logits(*direct, guidance_scale, temperature))

    steps = transcoder.diffusion.reverse_steps_on_device(len(noise))
    step_embeddings = transcoder.t_embedder(steps - 1)
    condition = transcoder.c_embedder(both)
    xt = (noise[0] < 0.5).float()
    x0 = xt
    for i in range(len(steps)):
        logits = transcoder.denoise(torch.cat([xt, xt]) if guided else xt, condition + step_embeddings[i])
        combined = guided_logits(*halves(logits, guided), guidance_scale, temperature)
        x0 = x0_probability(transcoder.x0_logits(combined, xt))
        if i + 1 < len(steps):
            xt = (noise[i + 1] < transcoder.diffusion.posterior(x0, xt, steps[i], steps[i + 1])).float()
    return x0
