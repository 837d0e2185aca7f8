"""torch.compile of the generator's blocks, applied to a finished model from outside: `run.compile`.

The blocks alone, each in its place: equal blocks share what was compiled, names of weights stay, and a copy of the
model (the EMA) is not compiled. Element-wise work between two matrix products becomes one kernel; results differ by
rounding.
"""

import logging
import os
import shutil
import sys
from importlib.util import find_spec

import torch

from bigr.models.masked.backbone import Block
from bigr.models.masked.generator import BiGR
from bigr.models.masked.transcoder import FinalLayer, TranscoderBlock

log = logging.getLogger(__name__)

COMPILED_WIDTH = 512
"""D from which on `auto` compiles. Narrower models train in minutes, and compiling takes about one; the published
models begin at 1024. Not measured."""


def compiles(setting: str, device: torch.device, width: int) -> bool:
    """Whether `run.compile` = `setting` (auto or off) compiles a model of this width (D) here.

    `auto` does on GPUs where torch's compiler finds what it needs: Triton, and a C compiler.
    """
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    able = device.type == "cuda" and find_spec("triton") is not None and compiler is not None
    return setting == "auto" and able and width >= COMPILED_WIDTH


def compile_blocks(model: BiGR, setting: str, device: torch.device) -> bool:
    """Compile the blocks of backbone and transcoder in place where `compiles` says so; returns whether.

    Torch compiles at the first call. Rows of the transcoder change with every iteration of sampling and every step of
    training, so its blocks are compiled for any number of rows; a block of the backbone for the first number of images,
    and, where another comes, once more for any.
    """
    if not compiles(setting, device, model.config.dim):
        return False
    for part in model.modules():
        if isinstance(part, Block):
            part.compile()
        elif isinstance(part, TranscoderBlock | FinalLayer):
            part.compile(dynamic=True)
    log.info("compiling the generator's blocks, which takes a minute or two; run.compile: off leaves it out")
    return True


def log_compile_time() -> None:
    """Say how long torch.compile took in this process, if it was used."""
    if (compiler := sys.modules.get("torch._dynamo.utils")) is None:
        return
    if seconds := compiler.calculate_time_spent()["total_wall_time"]:
        log.info("torch.compile took %.0f s", seconds)
