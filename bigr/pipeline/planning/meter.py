"""What a computation costs, without computing it: it runs on the device `meta`, whose tensors have no memory.

Counted are the FLOPs of matrix products, convolutions and attention, 2 for a multiplication with its addition, and the
bytes of every storage that autograd keeps for the backward pass, once, parameters left out. `meta` has neither autocast
nor fused kernels: `_Kernels` puts both in.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

_IN_BFLOAT16 = {F.linear, F.conv2d, F.scaled_dot_product_attention}
"""Operations of the networks that autocast runs in bfloat16."""


@dataclass(frozen=True)
class Arithmetic:
    """gpu: with a GPU's kernels; bfloat16: under autocast."""

    gpu: bool
    bfloat16: bool


@dataclass(frozen=True)
class Cost:
    """FLOPs of the forward and the backward pass, and saved bytes, of one call."""

    forward: int
    backward: int
    saved: int


def measure(work: Callable[[], Tensor], arithmetic: Arithmetic, modules: Sequence[nn.Module] = ()) -> Cost:
    """The cost of `work` and of the backward pass from the scalar that it returns. `work` runs twice, on `meta`.

    modules: those whose parameters do not count as saved.
    """
    saved = _saved_bytes(work, arithmetic, modules)
    with _counter() as counter:
        result = work()
        forward = counter.get_total_flops()
        result.backward()
    return Cost(forward, counter.get_total_flops() - forward, saved)


def flops(work: Callable[[], object]) -> int:
    """The FLOPs of `work` without gradients, on `meta` or on a CPU."""
    with _counter() as counter, torch.no_grad():
        work()
    return counter.get_total_flops()


@contextmanager
def _counter() -> Iterator[FlopCounterMode]:
    # Attention as matrix products: the counter does not know the CPU's fused kernel.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        yield counter


def _saved_bytes(work: Callable[[], Tensor], arithmetic: Arithmetic, modules: Sequence[nn.Module]) -> int:
    saved: dict[int, torch.UntypedStorage] = {}  # keeps the storages alive, so that no id is given twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[id(storage)] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _Kernels(arithmetic):
        work()
    parameters = {id(p.untyped_storage()) for module in modules for p in module.parameters()}
    return sum(storage.nbytes() for key, storage in saved.items() if key not in parameters)


class _Kernels(TorchFunctionMode):
    """Makes `meta` compute in, and save for the backward pass, what a device's autocast and fused kernels do."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.arithmetic = arithmetic
        self._cast_parameters: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        gpu, bfloat16 = self.arithmetic.gpu, self.arithmetic.bfloat16
        if bfloat16 and func in _IN_BFLOAT16:
            args = tuple(self._cast(value) for value in args)
            kwargs = {name: self._cast(value) for name, value in kwargs.items()}
        if bfloat16 and gpu and func in (F.layer_norm, F.group_norm):
            args = (args[0].float(), *args[1:])
        if func is F.scaled_dot_product_attention and all(t.stride(-1) == 1 for t in args):  # what fused kernels take
            return _FusedAttention.apply(*args)
        if gpu and func is F.dropout:
            p, training = kwargs.get("p", args[1] if len(args) > 1 else 0.5), kwargs.get("training", True)
            return torch.native_dropout(args[0], p, training)[0]
        if func is F.layer_norm:
            return _FusedNorm.apply(args[0], 2)
        if gpu and func is F.rms_norm:
            return _FusedNorm.apply(args[0], 1)
        return func(*args, **kwargs)

    def _cast(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.bfloat16()
        # autocast keeps one copy of a parameter
        return self._cast_parameters.setdefault(id(value), value.bfloat16())


class _FusedAttention(torch.autograd.Function):
    """Saves queries, keys, values [B, H, L, d], the result and one number a query, but no attention matrix."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result = torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        ctx.save_for_backward(q, k, v, result, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return result


class _FusedNorm(torch.autograd.Function):
    """Saves its input and so many numbers a row, of the input's type."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, numbers: int) -> Tensor:
        ctx.save_for_backward(x, x.new_empty(numbers, *x.shape[:-1]))
        return torch.empty_like(x)
