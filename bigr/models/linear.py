"""The linear layer of the networks. On x86 CPUs oneDNN computes wide ones in float32, faster than torch's MKL does.

torch has no public function that does so. The one used here is the one that torch's compiler calls; where it is
missing, or fails on a small product, `nn.Linear` computes. Precisions below float32 and other devices are left alone.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

WIDE = 1024
"""From so many inputs and outputs on oneDNN is faster: by 1.05 to 1.25 times on an AMD EPYC with AVX512."""


class Linear(nn.Linear):
    """`nn.Linear`: x [..., K] → [..., N]."""

    def forward(self, x: Tensor) -> Tensor:
        if not self._by_onednn(x):
            return super().forward(x)
        return _Product.apply(x.flatten(0, -2), self.weight, self.bias).unflatten(0, x.shape[:-1])

    def _by_onednn(self, x: Tensor) -> bool:
        wide = ONEDNN and min(self.in_features, self.out_features) >= WIDE and x.ndim > 1 and x.numel() > 0
        on_cpu = wide and x.device.type == self.weight.device.type == "cpu"
        in_float32 = on_cpu and x.dtype == self.weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return in_float32 and bool(torch.backends.mkldnn.enabled)


class _Product(torch.autograd.Function):
    """x Wᵀ + b of x [M, K], W [N, K] and b [N] or None, and its gradients, by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        if len(x) == 1:  # one row alone would be summed in another order than one of many
            return onednn(x.repeat(2, 1), weight, bias)[:1]
        return onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            onednn(gradient, weight.t()) if of_x else None,
            onednn(gradient.t(), x.t()) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b, float32 on a CPU: x [M, K], weight [N, K], bias [N]."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _works() -> bool:
    """Whether this torch has the function, and it computes on this machine what it should."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")):
        return False
    x = torch.arange(6.0, device="cpu").view(2, 3)
    try:
        return torch.equal(onednn(x, x), x @ x.t())
    except (AttributeError, RuntimeError, TypeError):
        return False


ONEDNN = _works()
"""Whether oneDNN computes."""

if ONEDNN:

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(x: Any, weight: Any, *args: object, **kwargs: object) -> int:
        """Shapes [M, K] and [N, K]: 2·M·K·N, for torch's counter."""
        return 2 * x[0] * x[1] * weight[0]
