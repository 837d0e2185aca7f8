"""In which precision networks compute."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock

import torch

# Below this width a CPU loses more by converting to bfloat16 than its matrix units win: benchmarks/precision.py.
CPU_BFLOAT16_WIDTH = 256

_TF32 = Lock()
"""Held while TF32 is on, which is a switch of the whole process: one thread at a time turns it on and back."""


def autocast(device: torch.device, precision: str, width: int) -> AbstractContextManager[object]:
    """The context in which networks of this width compute, for `run.precision`: auto, float32 or bfloat16.

    `auto` is bfloat16 where the device has it: on GPUs, and on CPUs with AVX512-BF16 or AMX from a width on at which
    it pays.
    """
    if not in_bfloat16(device, precision, width):
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def in_bfloat16(device: torch.device, precision: str, width: int) -> bool:
    """Whether `autocast` with these arguments is on."""
    return precision == "bfloat16" or (precision == "auto" and _bfloat16_pays(device, width))


@contextmanager
def decoding(device: torch.device, precision: str) -> Iterator[None]:
    """The context in which the tokenizer decodes, for `run.decode_precision`: float32, tf32 or bfloat16.

    tf32: a GPU rounds the factors of matrix products and convolutions to 10 bits; elsewhere it is float32.
    """
    if precision == "tf32" and device.type == "cuda":
        with _TF32, torch.autocast(device.type, enabled=False):
            before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
            try:
                yield
            finally:
                torch.set_float32_matmul_precision(before[0])
                torch.backends.cudnn.allow_tf32 = before[1]
    else:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            yield


def _bfloat16_pays(device: torch.device, width: int) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)  # emulated, it is slow, and convolutions fail
    if device.type == "cpu":
        capable = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return capable and width >= CPU_BFLOAT16_WIDTH
    return False
