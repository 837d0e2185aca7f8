"""What the measurements ran on."""

import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bigr.pipeline.planning.speed import measured_tflops


@dataclass(frozen=True)
class Machine:
    """The device, its precision, and the TFLOP/s of a large matrix product in it."""

    device: str
    threads: int
    instructions: str
    precision: str
    tflops: float
    torch: str
    python: str

    @classmethod
    def measured(cls, device: torch.device, precision: torch.dtype) -> "Machine":
        """This machine."""
        name, instructions = platform.processor() or platform.machine(), torch.backends.cpu.get_cpu_capability()
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            name, instructions = properties.name, f"sm_{properties.major}{properties.minor}"
        elif (cpuinfo := Path("/proc/cpuinfo")).exists():
            models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
            name = models[0] if models else name
        return cls(
            device=name,
            threads=torch.get_num_threads(),
            instructions=instructions,
            precision=str(precision).removeprefix("torch."),
            tflops=measured_tflops(device, precision),
            torch=torch.__version__,
            python=platform.python_version(),
        )

    def as_json(self) -> dict[str, object]:
        """The fields."""
        return asdict(self)

    def __str__(self) -> str:
        threads = f", {self.threads} threads" if "sm_" not in self.instructions else ""
        return (
            f"{self.device}{threads} ({self.instructions}), {self.precision}: {self.tflops:.3f} TFLOP/s of a matrix "
            f"product; torch {self.torch}, Python {self.python}"
        )


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
