"""Copies from the CPU to a device that do not block the CPU."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of the CPU tensor `tensor`, of any shape and type, on `device`.

    A copy from ordinary memory to a GPU waits until the GPU has finished its queue. One from pinned memory is put in
    the queue, and the CPU continues.
    """
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
