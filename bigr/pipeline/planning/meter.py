"""What a computation costs, without computing it: the real code runs on tensors that have shapes and no memory.

Fake tensors (torch's own: meta tensors that know a device) pass through the project's models, losses and autograd,
under autocast where the settings ask for it, so that the figures follow the code when it changes. Counted are

- FLOPs of matrix products, convolutions and attention, 2 for a multiplication with its addition, by torch's
  `FlopCounterMode`; element-wise work is not, and attention as four matmuls backwards, though fused kernels repeat one;
- saved bytes: every storage that autograd keeps for the backward pass, once, parameters left out;
- peak bytes: the most that was alive at once of what the computation made: activations, gradients, passing values.

A CPU stands in for the device. Where that is to be a GPU, what its autocast and its kernels keep differently is made to
agree: norms in float32, dropout's mask as bools, one fused RMSNorm.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Arithmetic:
    """In what networks compute. gpu: with a GPU's kernels; bfloat16: under autocast."""

    gpu: bool
    bfloat16: bool


@dataclass(frozen=True)
class Cost:
    """FLOPs of the forward and the backward pass, saved and peak bytes, of one call."""

    forward: int
    backward: int
    saved: int
    peak: int

    @property
    def flops(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward


@contextmanager
def shapes_only() -> Iterator[FakeTensorMode]:
    """Within it, tensors and models that are made take no memory."""
    with FakeTensorMode() as mode:
        yield mode


def measure(work: Callable[[], Tensor], arithmetic: Arithmetic, modules: Sequence[nn.Module] = ()) -> Cost:
    """The cost of `work`, and of the backward pass from the scalar that it returns where that needs a gradient.

    Call it within `shapes_only`; modules: those whose parameters are not to be counted as saved.
    """
    own = {id_of(p) for module in modules for p in module.parameters()}
    saved: dict[int, Tensor] = {}  # the tensors are kept, so that no storage's address comes twice

    def keep(tensor: Tensor) -> Tensor:
        saved[id_of(tensor)] = tensor
        return tensor

    counter, live = _counter(), _Live()
    with counter, live:
        with ExitStack() as stack:
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
            if arithmetic.gpu:
                stack.enter_context(_LikeGpu())
            if arithmetic.bfloat16:
                stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
            result = work()
        forward = counter.get_total_flops()
        size = sum(tensor.untyped_storage().nbytes() for key, tensor in saved.items() if key not in own)
        saved.clear()
        if result.requires_grad:
            result.backward()
    return Cost(forward, counter.get_total_flops() - forward, size, live.peak)


def flops(work: Callable[[], object]) -> int:
    """The FLOPs of `work` alone, which gets no gradients. Call it within `shapes_only`."""
    counter = _counter()
    with counter, torch.no_grad():
        work()
    return counter.get_total_flops()


def id_of(tensor: Tensor) -> int:
    """What tells a storage from any other that is alive."""
    return int(tensor.untyped_storage()._cdata)


def _counter() -> FlopCounterMode:
    def forward(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return 2 * sdpa_flop_count(query, key, value)

    # torch counts the attention kernels of GPUs, but not the one that fake CPU tensors take.
    return FlopCounterMode(display=False, custom_mapping={_ATTENTION: forward, _ATTENTION_BACKWARD: backward})


class _Live(TorchDispatchMode):
    """Follows the bytes of all storages that are made while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor) and id_of(t) not in self._known]
        given = {id_of(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)} if made else set()
        for tensor in made:  # views of parameters and inputs are not new
            if (key := id_of(tensor)) not in given and key not in self._known:
                storage = tensor.untyped_storage()
                self._known.add(key)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, key, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _LikeGpu(TorchFunctionMode):
    """Makes CPU tensors keep for the backward pass what a GPU's kernels under autocast keep."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (F.layer_norm, F.group_norm) and torch.is_autocast_enabled("cpu"):
            return func(args[0].float(), *args[1:], **kwargs)
        if func is F.dropout:
            p, training = kwargs.get("p", args[1] if len(args) > 1 else 0.5), kwargs.get("training", True)
            return torch.native_dropout(args[0], p, training)[0]
        if func is F.rms_norm:
            return torch.ops.aten._fused_rms_norm(args[0], list(args[1]), None, kwargs.get("eps"))[0]
        return func(*args, **kwargs)
