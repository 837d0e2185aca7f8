"""In which precision networks compute."""

from contextlib import AbstractContextManager, nullcontext

import torch

# Below this width a CPU loses more by converting to bfloat16 than its matrix units win: benchmarks/precision.py.
CPU_BFLOAT16_WIDTH = 256


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
