"""A stage ends with what started it, however that ended: `dvc repro`, or the process that called torchrun."""

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

from bigr.pipeline.processes import launched
from bigr.runtime.extras import require

if TYPE_CHECKING:
    import psutil

_EVERY_S = 0.5


def end_with_starter() -> None:
    """From now on this process gets SIGTERM, which lets a training write a checkpoint, once what started it has ended.

    What starts it is the launcher of `run.processes`, or the `dvc` above it. A stage that a shell started goes on
    without that shell.
    """
    require("pipeline", "running a stage")
    import psutil

    from bigr.tracking.executions import dvc_above

    starter = psutil.Process().parent() if launched() else dvc_above()
    if starter is not None:
        threading.Thread(target=_watch, args=(starter,), name="parent", daemon=True).start()


def _watch(process: "psutil.Process") -> None:
    import psutil

    try:
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(_EVERY_S)
    except psutil.NoSuchProcess:
        pass
    os.kill(os.getpid(), signal.SIGTERM)
