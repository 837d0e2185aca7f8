"""The speed that a device sustains: TFLOP/s of matrix products, measured here in a second or two."""

import torch
from torch.utils.benchmark import Timer

from bigr.models.linear import ONEDNN, onednn

_SIDES = {"cuda": 8192, "mps": 2048, "cpu": 1024}
"""Rows and columns of the matrices: large enough to fill the device."""


def measured_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of square matrix products on `device`: the median of a second, of the faster way."""
    side = _SIDES[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    wait = "" if device.type == "cpu" else "; torch.accelerator.synchronize()"
    ways = [f"torch.mm(a, b){wait}"]
    if device.type == "cpu" and dtype == torch.float32 and ONEDNN:  # wide layers have it, narrow ones the other
        ways.append("onednn(a, b)")
    known = {"a": a, "b": b, "torch": torch, "onednn": onednn}
    timers = (Timer(way, globals=known, num_threads=torch.get_num_threads()) for way in ways)
    return max(float(2 * side**3 / timer.blocked_autorange(min_run_time=1.0).median / 1e12) for timer in timers)


def describe(device: torch.device) -> str:
    """How the speed was measured, in words."""
    side, count = _SIDES[device.type], torch.get_num_threads()
    threads = f", {count} thread{'s' if count > 1 else ''}" if device.type == "cpu" else ""
    return f"measured here: products of {side}×{side} matrices on {device}{threads}"
