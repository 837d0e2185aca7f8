"""One process or many: torchrun says which, and the rest of the code asks here.

Parallelism is put round the models from outside (`parallel`), so that they carry none.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that writes and reports."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def local_rank() -> int:
    """This process's number on its machine: which of the machine's GPUs is its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started, for the length of the block; alone, do nothing."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


class _Method(nn.Module):
    """A module whose forward is one method of another, since gradients are only averaged behind a forward."""

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


def share(batch_size: int) -> slice:
    """This process's part of a global batch; the caller has checked that it divides."""
    each = batch_size // world()
    return slice(rank() * each, (rank() + 1) * each)
