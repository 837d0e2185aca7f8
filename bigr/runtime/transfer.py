"""From the CPU to where networks run, without waiting for it."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor`, of the CPU, on `device`; of any shape and type.

    A copy to a GPU out of ordinary memory first waits until the GPU has done all that it was asked to do. Out of pinned
    memory it takes its place in the queue, and the CPU goes on.
    """
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
