"""Where the arithmetic runs, and in which precision."""

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from bigr.runtime.distributed import local_rank
from bigr.runtime.errors import BigrError

# Below this width a CPU loses more by converting to bfloat16 than its matrix units win: benchmarks/precision.py.
CPU_BFLOAT16_WIDTH = 256


def resolve_device(name: str) -> torch.device:
    """The device for `run.device`: auto, cpu, mps, cuda or cuda:N. Raises `BigrError` where this machine has none."""
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


def autocast(device: torch.device, precision: str, width: int) -> AbstractContextManager[object]:
    """The context in which networks of this width compute, for `run.precision`: auto, float32 or bfloat16.

    `auto` is bfloat16 where the device has it: on GPUs, and on CPUs with AVX512-BF16 or AMX from a width on at which
    it pays.
    """
    if precision == "auto":
        precision = "bfloat16" if _bfloat16_pays(device, width) else "float32"
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def _bfloat16_pays(device: torch.device, width: int) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)  # emulated, it is slow, and convolutions fail
    if device.type == "cpu":
        capable = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return capable and width >= CPU_BFLOAT16_WIDTH
    return False
