"""Data parallelism, applied to a finished module from outside: `run.parallel`. Models hold no code for it.

ddp: every process holds the whole module, and gradients are averaged (DistributedDataParallel).
fsdp: every process holds its rows of each parameter, gradient, moment and average (FSDP2's `fully_shard`). A block is
    gathered when it computes and let go afterwards.

Both compute the gradient of the global batch, up to the order of sums.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from bigr.runtime.distributed import copy_from_first, is_main, rank, world


class _Method(nn.Module):
    """A module whose forward is one method of another: DistributedDataParallel averages gradients of a forward only."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.module, self.method)(*args, **kwargs)


class Sharded:
    """A module whose parameters are sharded over the processes, in place; called, it computes `method`.

    blocks: what is gathered at a time; all the rest of the module is gathered together. bfloat16: whether blocks are
    gathered in bfloat16, as autocast would convert their matrices; gradients are summed in float32.
    copy: sharded in the same way, in evaluation mode and without gradients, for the average.
    """

    def __init__(self, module: nn.Module, method: str, blocks: Callable[[Any], Sequence[nn.Module]], bfloat16: bool):
        copy_from_first(module.state_dict().values())  # also where the processes did not draw the same weights
        self.module, self.method = module, method
        self.copy = copy.deepcopy(module).eval().requires_grad_(False)
        self._unsharded = copy.deepcopy(self.copy).cpu() if is_main() else None
        mesh = init_device_mesh(next(module.parameters()).device.type, (world(),))
        policy = MixedPrecisionPolicy()
        if bfloat16:  # inputs stay: the residual stream is float32, as without shards
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        for part in (self.module, self.copy):
            for block in blocks(part):
                fully_shard(block, mesh=mesh, mp_policy=policy)
            fully_shard(part, mesh=mesh, reshard_after_forward=True if part is self.copy else None)
            register_fsdp_forward_method(part, method)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.module, self.method)(*args, **kwargs)

    @torch.no_grad()
    def gathered(self) -> nn.Module:
        """The copy, in the first process whole and on the CPU. All must call it."""
        for name, tensor in self.copy.state_dict().items():
            full = whole(tensor)
            if self._unsharded is not None:
                self._unsharded.state_dict()[name].copy_(full)
        return self._unsharded or self.copy


def parallel(
    module: nn.Module,
    method: str,
    mode: Literal["ddp", "fsdp"] = "ddp",
    blocks: Callable[[Any], Sequence[nn.Module]] = lambda module: [],
    bfloat16: bool = False,
) -> Callable[..., Any]:
    """`module.method`, whose gradients are those of the global batch; with one process, the plain method.

    Build the optimiser afterwards: fsdp replaces the parameters. blocks, bfloat16: as in `Sharded`.
    """
    if world() == 1:
        return cast("Callable[..., Any]", getattr(module, method))
    if mode == "fsdp":
        return Sharded(module, method, blocks, bfloat16)
    return DistributedDataParallel(_Method(module, method))


def own_gradients(call: Callable[..., Any]) -> AbstractContextManager[object]:
    """Within the block, what `call` (of `parallel`) computes adds this process's own gradients, which are not averaged.

    The next call outside of it averages the sums. Shards are summed over the processes each time, so that no process
    holds the gradients of a whole module.
    """
    return call.no_sync() if isinstance(call, DistributedDataParallel) else nullcontext()


def own_rows(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: its rows of a sharded one, else all."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def row_range(length: int) -> tuple[int, int]:
    """The rows [start, stop) of `length` that this process holds of a sharded tensor, as `fully_shard` divides them."""
    each = -(-length // world())
    return min(rank() * each, length), min((rank() + 1) * each, length)


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its rows. Of a sharded one, all processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_sharded(modules: Iterable[nn.Module]) -> bool:
    """Whether a parameter of one of the modules is sharded."""
    return any(isinstance(p, DTensor) for module in modules for p in module.parameters())
