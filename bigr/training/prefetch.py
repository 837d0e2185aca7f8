"""The next batches, made while the device computes."""

import itertools
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import TypeVar

import torch
from torch import Tensor

from bigr.runtime.threads import map_ahead

Batch = TypeVar("Batch", bound=tuple[Tensor, ...])

AHEAD = 2
"""Batches that wait in pinned memory for a GPU."""


def on_device(batches: Iterator[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """The batches of an endless stream of named tuples on the CPU, in order, on `device`.

    For a GPU one thread makes the next ones, in pinned memory, and copies do not wait for the GPU. An error of the
    stream is raised where its batch would have been. The thread ends when this iterator is closed. On a CPU nothing is
    made ahead: the networks use every core.
    """
    if device.type != "cuda":
        yield from (_moved(batch, device) for batch in batches)
        return
    with closing(map_ahead(lambda _: _pinned(next(batches)), itertools.repeat(None), 1, AHEAD)) as made_ahead:
        for batch in made_ahead:
            yield _moved(batch, device)


def _pinned(batch: Batch) -> Batch:
    return type(batch)(*(tensor.pin_memory() for tensor in batch))


def _moved(batch: Batch, device: torch.device) -> Batch:
    return type(batch)(*(tensor.to(device, non_blocking=True) for tensor in batch))
