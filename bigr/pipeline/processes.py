"""The processes of a stage: torchrun's own library starts them, as `torchrun -m bigr run NAME` does by hand.

A process that torchrun started has LOCAL_RANK in its environment, also where torchrun was called by hand.
"""

import contextlib
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bigr.runtime.errors import BigrError

if TYPE_CHECKING:
    from bigr.config import RunSettings

log = logging.getLogger(__name__)
T = TypeVar("T")

_LAUNCHED = "BIGR_LAUNCHED"
"""A variable of the processes that `launch` starts: the folder in which they leave word for it."""
_REFUSED, _STOPPED = "refused", "stopped"
_FRESH_STORE = ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
"""A new store of addresses for each start: in a shared one, processes that are started again find those of the dead."""
_SHUTDOWN_S = 300
"""Seconds that processes have, once they are asked to end, to finish the step and write a checkpoint."""


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


def group(run: "RunSettings", *, on_device: bool) -> AbstractContextManager[None]:
    """The group of the processes that torchrun started, for the length of the block; without torchrun, nothing.

    on_device: whether they compute on `run.device`, or on the CPU.
    """
    if not joined():
        return contextlib.nullcontext()
    from bigr.runtime.device import resolve_device  # imports torch, which is slow
    from bigr.runtime.distributed import process_group

    return process_group(resolve_device(run.device if on_device else "cpu"), run.timeout_s)


def once_on_each_machine(work: Callable[[], T]) -> T:
    """What `work` returns; of the processes that torchrun started on a machine, in a group, one alone does it."""
    if not joined():
        return work()
    from bigr.runtime.distributed import by_first_of_machine

    return by_first_of_machine(work)


def launch(stage: str, root: Path, params: Path, run: "RunSettings") -> None:
    """Run `bigr run STAGE` in `run.processes` processes on this machine and wait for them.

    Where one of them dies, torchrun starts all of them again, `run.max_restarts` times. Raises `BigrError` where one of
    them does, and `StoppedOnRequest` where they were asked to end and have saved their state. Exits with the status of
    the first that failed otherwise.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from bigr.runtime.stop_requests import StoppedOnRequest

    # The processes have logged what went wrong; torchrun's report of it would bury that.
    for module in ("torch.distributed.elastic", "torch.distributed.run", "torch.distributed.launcher"):
        logging.getLogger(module).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // run.processes)))
    os.environ.setdefault(*_FRESH_STORE)
    options = {
        "nproc-per-node": run.processes,
        "max-restarts": run.max_restarts,
        "signals-to-handle": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
        "shutdown-timeout": _SHUTDOWN_S,
    }
    words = ["-m", "bigr", "run", stage, "--params", str(params.absolute())]
    with tempfile.TemporaryDirectory(prefix="bigr-run-") as folder:
        os.environ[_LAUNCHED] = folder
        try:
            with contextlib.chdir(root):
                given = [f"--{name}={value}" for name, value in options.items()]
                torchrun.run(torchrun.parse_args(["--standalone", *given, *words]))
        except (ChildFailedError, SignalException) as error:
            if (message := _word(_REFUSED)) is not None:
                raise BigrError(message) from None
            if _word(_STOPPED) is not None:
                raise StoppedOnRequest from None
            if isinstance(error, SignalException):
                if error.sigval == signal.SIGINT:
                    raise KeyboardInterrupt from None
                sys.exit(128 + int(error.sigval))
            first = min(error.failures.values(), key=lambda failure: (failure.timestamp, failure.local_rank))
            log.error("stage %s: process %d ended with exit status %d", stage, first.local_rank, first.exitcode)
            sys.exit(128 - first.exitcode if first.exitcode < 0 else first.exitcode)
        finally:
            del os.environ[_LAUNCHED]


def check_goes_on() -> None:
    """In a process that torchrun has started again: end as the others did, where that would only be repeated.

    Raises the `BigrError` of one of them, or `StoppedOnRequest`.
    """
    if (message := _word(_REFUSED)) is not None:
        raise BigrError(message)
    if _word(_STOPPED) is not None:
        from bigr.runtime.stop_requests import StoppedOnRequest

        raise StoppedOnRequest


def hand_up(error: BigrError) -> bool:
    """In a process that `launch` started, leave the error for the launcher to print once. False elsewhere."""
    return _leave_word(_REFUSED, str(error))


def hand_up_stop() -> None:
    """In a process that `launch` started, let the launcher know that the work ended on request and is saved."""
    _leave_word(_STOPPED, "")


def _leave_word(name: str, text: str) -> bool:
    if not launched():
        return False
    (Path(os.environ[_LAUNCHED]) / name).write_text(text, encoding="utf-8")
    return True


def _word(name: str) -> str | None:
    """What the processes of the launcher, or of this process's launcher, have left."""
    path = Path(os.environ.get(_LAUNCHED, "")) / name
    return path.read_text(encoding="utf-8") if _LAUNCHED in os.environ and path.exists() else None
