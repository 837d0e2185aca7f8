"""What a computation costs, without computing it: it runs on the device `meta`, whose tensors have no memory.

The project's own models, losses and backward passes run, so that the results follow the code when it changes. Counted:

- FLOPs of matrix products, convolutions and attention, 2 for a multiplication with its addition, by torch's
  `FlopCounterMode`; element-wise work is not counted;
- saved bytes: every storage that autograd keeps for the backward pass, once, parameters left out; with activation
  checkpointing, the blocks' inputs, and what the largest block keeps while it is computed again;
- peak bytes: the most that is alive at once of what a computation without gradients makes.

`meta` has neither autocast nor fused kernels. `_Kernels` puts both in: what they compute in, and what they save.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from bigr.training.recompute import patched_forward, recomputed

_IN_BFLOAT16 = {F.linear, F.conv2d, F.scaled_dot_product_attention}
"""Operations of the networks that autocast runs in bfloat16."""


@dataclass(frozen=True)
class Arithmetic:
    """gpu: with a GPU's kernels; bfloat16: under autocast; casts_weights: and keeps copies of weights."""

    gpu: bool
    bfloat16: bool
    casts_weights: bool = True


@dataclass(frozen=True)
class Cost:
    """FLOPs of the forward and the backward pass, and saved bytes, of one call."""

    forward: int
    backward: int
    saved: int


def measure(
    work: Callable[[], Tensor],
    arithmetic: Arithmetic,
    modules: Sequence[nn.Module] = (),
    blocks: Sequence[nn.Module] = (),
) -> Cost:
    """The cost of `work` and of the backward pass from the scalar that it returns. `work` runs twice, on `meta`.

    modules: those whose parameters do not count as saved; blocks: those that the backward pass computes again.
    """
    saved = _saved_bytes(work, arithmetic, modules, blocks)
    with recomputed(blocks), _counter() as counter:
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


def _saved_bytes(
    work: Callable[[], Tensor], arithmetic: Arithmetic, modules: Sequence[nn.Module], blocks: Sequence[nn.Module]
) -> int:
    parameters = {id(p.untyped_storage()) for module in modules for p in module.parameters()}
    saved, largest = _Saved(), 0

    def block_alone(forward: Callable[..., Tensor], *args: Tensor) -> Tensor:
        nonlocal largest
        own = _Saved()
        with own:
            result = forward(*args)
        largest = max(largest, own.bytes(parameters | saved.storages.keys()))
        return result

    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(patched_forward(block, partial(block_alone, block.forward)))
        stack.enter_context(recomputed(blocks))
        stack.enter_context(saved)
        kernels = stack.enter_context(_Kernels(arithmetic))
        work()
    known = parameters if arithmetic.casts_weights else parameters | kernels.casts()
    return saved.bytes(known) + largest


class _Saved(torch.autograd.graph.saved_tensors_hooks):
    """Follows what autograd keeps while it is on. storages: by id; kept alive, so that no id is given twice."""

    def __init__(self) -> None:
        super().__init__(self._keep, lambda tensor: tensor)
        self.storages: dict[int, torch.UntypedStorage] = {}

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.storages[id(storage)] = storage
        return tensor

    def bytes(self, known: Set[int]) -> int:
        """Of all storages but those `known` by their id."""
        return sum(storage.nbytes() for key, storage in self.storages.items() if key not in known)


@torch.no_grad()
def peak_bytes(work: Callable[[], object], arithmetic: Arithmetic) -> int:
    """The most bytes that are alive at once of what `work` makes on `meta`, without gradients."""
    with _Live() as live, _Kernels(arithmetic):
        work()
    return live.peak


class _Live(TorchFunctionMode):
    """Follows the bytes of all storages that are made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {id(tensor.untyped_storage()) for tensor in _tensors((args, kwargs or {}))}
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if id(storage) not in self._known | given:  # views of parameters and inputs are not new
                self._known.add(id(storage))
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, id(storage), storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


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

    def casts(self) -> set[int]:
        """The storages of the copies of parameters, by id."""
        return {id(tensor.untyped_storage()) for tensor in self._cast_parameters.values()}


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


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, tuple | list):
        return []
    return [tensor for item in value for tensor in _tensors(item)]
