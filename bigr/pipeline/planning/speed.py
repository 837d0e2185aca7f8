"""The speed that a device sustains: TFLOP/s of matrix products, measured here in a second or two."""

import time

import torch

_SECONDS = 1.0
_SIDES = {"cuda": 8192, "mps": 2048, "cpu": 1024}
"""Rows and columns of the matrices: large enough to fill the device."""


def measured_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of square matrix products on `device`, one after another for about a second, after a few warm ones."""
    side = _SIDES[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    _wait(device)
    products, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < _SECONDS or not products:
        for _ in range(10 if device.type == "cuda" else 1):
            a @ b
            products += 1
        _wait(device)
    return 2 * side**3 * products / elapsed / 1e12


def describe(device: torch.device) -> str:
    """How the speed was measured, in words."""
    side = _SIDES[device.type]
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' if count > 1 else ''}" if device.type == "cpu" else ""
    return f"measured here: products of {side}×{side} matrices on {device}{threads}"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
