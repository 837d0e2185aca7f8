"""The processes that torchrun started, and what they tell each other."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

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
    return from_process(0, value)


def from_process(number: int, value: T) -> T:
    """The `value` of that process, in every process. It must be picklable, its tensors on the CPU."""
    if world() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=number)
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


def by_first_of_machine(work: Callable[[], T]) -> T:
    """What `work` returns in the first process of each machine, which alone does it there; so with its `BigrError`."""
    if world() == 1:
        return work()
    found: list[Any] = [None, None]
    if local_rank() == 0:
        try:
            found[0] = work()
        except BigrError as error:
            found[1] = str(error)
    answers = of_each(found)
    for _, problem in answers:  # of any machine: all processes end together
        if problem is not None:
            raise BigrError(problem)
    return cast("T", answers[rank() - local_rank()][0])


def host_group(timeout_s: float) -> dist.ProcessGroup | None:
    """A new group of all processes for tensors on the CPU, whose calls wait for no GPU and for no other group's.

    All processes must call it. None where there is one. timeout_s: as in `process_group`.
    """
    if world() == 1:
        return None
    return cast("dist.ProcessGroup", dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s)))


class ProcessLost(BaseException):
    """Another process has ended. Not an `Exception`: nothing goes on without it."""


def together(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """What `work` returns in this process, when all processes have done theirs. Where it fails in one, it fails in all.

    So none waits for results of another that has none. group: of `host_group`, with a time limit of its own. Raises in
    the others `BigrError` where that process did, else `RuntimeError`, with the message; and `ProcessLost` where a
    process has ended.
    """
    if world() == 1:
        return work()
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:  # told to the others, and raised again below
        failure = error
    told = None if failure is None else (isinstance(failure, BigrError), str(failure) or type(failure).__name__)
    try:
        failures = [one for one in of_each(told, group) if one is not None]
    except RuntimeError as error:
        raise ProcessLost("another process ended; this one cannot go on without it") from error
    if failure is not None:
        raise failure
    if failures:
        expected, message = failures[0]
        raise BigrError(message) if expected else RuntimeError(f"in another process: {message}")
    return result


def my_range(count: int, unit: int = 1) -> range:
    """This process's contiguous share of 0..count, cut at multiples of `unit`; together the shares are all of it."""
    units = -(-count // unit)
    start, stop = (units * number // world() * unit for number in (rank(), rank() + 1))
    return range(min(start, count), min(stop, count))


def of_each(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """The `value` of each process, in the order of their numbers, in every process. group: of `host_group`."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value, group=group)
    return found


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Copy the first process's values into these tensors, of the same shapes and order in every process."""
    if world() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


@contextmanager
def process_group(device: torch.device, timeout_s: float = 1800) -> Iterator[None]:
    """Join the processes that torchrun started, for the length of the block; without torchrun, do nothing.

    timeout_s: how long a process waits for the others, in seconds, before it ends with an error.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # device_id: else a barrier guesses the GPU
        dist.init_process_group("nccl", device_id=device, timeout=timedelta(seconds=timeout_s))
    else:
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout_s))
    try:
        yield
    finally:
        dist.destroy_process_group()


def share(batch_size: int) -> slice:
    """This process's part of a global batch, whose size must be a multiple of the number of processes."""
    each = batch_size // world()
    return slice(rank() * each, (rank() + 1) * each)


def part_of_batch(part: int, parts: int) -> tuple[int, int]:
    """(i, n): part number `part` (from 0) of the `parts` of this process's share is part i of n of the global batch."""
    return rank() * parts + part, world() * parts


def mean_over_processes(tensor: Tensor) -> Tensor:
    """The mean of the tensors of all processes, of one shape, in every process; differentiable."""
    if world() == 1:
        return tensor
    mean: Tensor = _Mean.apply(tensor)
    return mean


class _Mean(torch.autograd.Function):
    """The mean over processes; each one's gradient reaches the tensors of all of them."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total / world()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Mean.forward(ctx, gradient)
