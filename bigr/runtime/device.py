"""On which device networks compute."""

import os

import torch

from bigr.runtime.distributed import local_rank
from bigr.runtime.errors import BigrError


def resolve_device(name: str) -> torch.device:
    """The device that `run.device` names: auto, cpu, mps, cuda or cuda:N. Raises `BigrError` where it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to repeat itself to the bit
        torch.backends.cudnn.allow_tf32 = False  # as for matrix products: float32 is float32, and codes are compared
        if not torch.cuda.is_available():
            raise BigrError(f"run.device is {name}, but torch sees no CUDA device here; set run.device to auto or cpu")
        count = torch.cuda.device_count()
        device = torch.device("cuda", local_rank() if device.index is None else device.index)
        if device.index >= count:
            remedy = "set it to cuda or cpu" if ":" in name else f"set run.processes to {count} at most"
            raise BigrError(f"run.device is {name}, but there is no cuda:{device.index} here, of {count}; {remedy}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise BigrError("run.device is mps, but torch sees no Metal device here; set run.device to auto or cpu")
    return device
