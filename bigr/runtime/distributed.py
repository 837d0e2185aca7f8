"""The processes that torchrun started, and data parallelism over them.

Models hold no parallel code: `parallel` wraps them from outside.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bigr.runtime.errors import BigrError

T = TypeVar("T")


def rank() -> int:
    """This process's number among all, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """The number of processes that work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that writes and reports."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process has reached this call."""
    if dist.is_initialized():
        dist.barrier()


def local_rank() -> int:
    """This process's number on its machine, from 0: also the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def from_first(value: T) -> T:
    """The `value` of the first process, in every process. It must be picklable."""
    if world() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0)
    found: T = box[0]
    return found


def by_first(work: Callable[[], T]) -> T:
    """What `work` returns in the first process, which alone does it, in every process; so with its `BigrError`."""
    if world() == 1:
        return work()
    found: list[Any] = [None, None]
    if is_main():
        try:
            found[0] = work()
        except BigrError as error:
            found[1] = str(error)
    result, problem = from_first(found)
    if problem is not None:
        raise BigrError(problem)
    return cast("T", result)


def of_each(value: T) -> list[T]:
    """The `value` of each process, in the order of their numbers, in every process."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    return found


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Copy the first process's values into these tensors, of the same shapes and order in every process."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started, for the length of the block; without torchrun, do nothing."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)  # else a barrier guesses the GPU
    else:
        dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


class _Method(nn.Module):
    """A module whose forward is one method of another: DistributedDataParallel averages gradients of a forward only."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.module, self.method)(*args, **kwargs)


def parallel(module: nn.Module, method: str) -> Callable[..., Any]:
    """`module.method`, with gradients averaged over all processes where there are several."""
    if world() == 1:
        return getattr(module, method)
    return DistributedDataParallel(_Method(module, method))


def own_gradients(call: Callable[..., Any]) -> AbstractContextManager[object]:
    """Within the block, what `call` (of `parallel`) computes adds this process's own gradients, which are not averaged.

    The next call outside of it averages the sums.
    """
    return call.no_sync() if isinstance(call, DistributedDataParallel) else nullcontext()


def share(batch_size: int) -> slice:
    """This process's part of a global batch, whose size must be a multiple of the number of processes."""
    each = batch_size // world()
    return slice(rank() * each, (rank() + 1) * each)
