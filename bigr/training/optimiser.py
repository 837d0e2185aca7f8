"""AdamW, its learning-rate schedule, and the EMA of the weights (docs/method.md, section 6)."""

import copy
import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from bigr.training.parallel import own_rows

if TYPE_CHECKING:
    from bigr.config import TrainingSettings


def adamw(module: nn.Module, settings: "TrainingSettings", undecayed: tuple[str, ...] = ()) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; no decay of vectors, biases, and names that begin with `undecayed`."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            # A vector has at most one side longer than 1, so that `ada_gss` [1, 1, 6, D] is a matrix.
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
    """The learning rate of a step, from 0: a linear warm-up, then constant, or a cosine to zero after the last step."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    done = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


class EMA:
    """The exponential moving average of a module's parameters; buffers are copied.

    module: the average, in evaluation mode, without gradients; decay: in [0, 1]; into: a copy of the module that
    becomes the average, where the module is sharded and cannot be copied.
    """

    def __init__(self, module: nn.Module, decay: float, into: nn.Module | None = None) -> None:
        self.module = (into or copy.deepcopy(module)).eval().requires_grad_(False)
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, source: nn.Module) -> None:
        """average ← decay·average + (1 − decay)·`source`, the module that the average was copied from."""
        ours, theirs = ([own_rows(p.detach()) for p in module.parameters()] for module in (self.module, source))
        self._average(ours, theirs, None)
        for buffer, new in zip(self.module.buffers(), source.buffers(), strict=True):
            buffer.copy_(new)
