"""The processes of a stage: torchrun's own library starts them, as `torchrun -m bigr run NAME` does by hand.

A process that torchrun started has LOCAL_RANK in its environment, also where torchrun was called by hand.
"""

import contextlib
import json
import logging
import os
import signal
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from bigr.runtime.errors import EXIT_USER_ERROR, BigrError

if TYPE_CHECKING:
    from bigr.config import RunSettings

log = logging.getLogger(__name__)

_LAUNCHED = "BIGR_LAUNCHED"
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


def joined() -> bool:
    """Whether torchrun started this process."""
    return "LOCAL_RANK" in os.environ


def launched() -> bool:
    """Whether `launch` started this process, which has checked what there is to check before."""
    return joined() and _LAUNCHED in os.environ


def is_first() -> bool:
    """Whether this process is the first of those that torchrun started, or there is no other."""
    return os.environ.get("RANK", "0") == "0"


def check_joined(run: "RunSettings") -> None:
    """Raise `BigrError` where torchrun started several processes on this machine and the settings name one GPU."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)
    if joined() and run.one_gpu and here > 1:
        raise BigrError(
            f"run.device is {run.device}, which the {here} processes that torchrun started on this machine "
            "would share; set run.device to cuda, which gives each process its own GPU"
        )


def group(device: str) -> AbstractContextManager[None]:
    """The group of the processes that torchrun started, for the length of the block; without torchrun, nothing.

    device: on which they compute, as `run.device`.
    """
    if not joined():
        return contextlib.nullcontext()
    from bigr.runtime.device import resolve_device  # imports torch, which is slow
    from bigr.runtime.distributed import process_group

    return process_group(resolve_device(device))


def launch(stage: str, root: Path, params: Path, processes: int) -> None:
    """Run `bigr run STAGE` in `processes` processes on this machine and wait for them.

    Raises `BigrError` where one of them does. Exits with the status of the first that failed otherwise.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # The processes have logged what went wrong; torchrun's report of it would bury that.
    for module in ("torch.distributed.elastic", "torch.distributed.run", "torch.distributed.launcher"):
        logging.getLogger(module).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ[_LAUNCHED] = "1"
    words = ["-m", "bigr", "run", stage, "--params", str(params.absolute())]
    try:
        with contextlib.chdir(root):
            torchrun.run(torchrun.parse_args(["--standalone", f"--nproc-per-node={processes}", *words]))
    except ChildFailedError as error:
        failures = sorted(error.failures.values(), key=lambda failure: (failure.timestamp, failure.local_rank))
        for failure in failures:
            if failure.exitcode == EXIT_USER_ERROR and isinstance(failure.message, dict):
                raise BigrError(failure.message["message"]) from None
        first = failures[0].exitcode
        log.error("stage %s: process %d ended with exit status %d", stage, failures[0].local_rank, first)
        sys.exit(128 - first if first < 0 else first)
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        sys.exit(128 + int(error.sigval))


def hand_up(error: BigrError) -> bool:
    """In a process that `launch` started, leave the error for the launcher to print once. False elsewhere."""
    file = os.environ.get(_ERROR_FILE)
    if _LAUNCHED not in os.environ or not file:
        return False
    message = {"message": str(error), "extraInfo": {"timestamp": str(int(time.time()))}}
    Path(file).write_text(json.dumps({"message": message}), encoding="utf-8")
    return True
