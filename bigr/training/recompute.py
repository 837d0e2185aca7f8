"""Activation checkpointing: less memory for more work, applied from outside. Models hold no code for it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputed(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Within the context, each of `blocks` keeps its inputs alone and computes the rest again in the backward pass.

    Results and gradients are the same, dropout's draws included. The work grows by the blocks' forward pass.
    """
    with ExitStack() as stack:
        for block in blocks:
            again = partial(checkpoint, block.forward, use_reentrant=False)
            stack.enter_context(patched_forward(block, again))
        yield


@contextmanager
def patched_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within the context, `module` computes `forward`."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before
