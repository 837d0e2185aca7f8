"""AdamW, its schedule, and the moving average of weights (docs/method.md, section 6)."""

import copy
import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from bigr.config import TrainingSettings


def adamw(module: nn.Module, settings: "TrainingSettings", undecayed: tuple[str, ...] = ()) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; no decay on vectors, biases, or names that start with one of `undecayed`."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            # A vector has one side longer than 1: `mask_tok` [1, D] and `ada_gss` [1, 1, 6, D] are counted by matrices.
            vector = sum(size > 1 for size in parameter.shape) < 2 or name.startswith(undecayed)
            (plain if vector else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=(settings.betas[0], settings.betas[1]),
        fused=True,
    )


def learning_rate(settings: "TrainingSettings", step: int) -> float:
    """The rate of a step counted from 0: a linear warm-up, then constant, or a cosine down to zero at the last step."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    done = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


class EMA:
    """The exponential moving average of a module's parameters; buffers are copied."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, source: nn.Module) -> None:
        """Move towards `source`, the module that this average was made from."""
        torch._foreach_lerp_(list(self.module.parameters()), [p.detach() for p in source.parameters()], 1 - self.decay)
        for ours, theirs in zip(self.module.buffers(), source.buffers(), strict=True):
            ours.copy_(theirs)
