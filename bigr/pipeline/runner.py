"""One execution of one stage: check settings and inputs, start the processes, track, run.

A stage that computes with networks works in `run.processes` processes, which torchrun's own library starts (a stage
started through `torchrun -m bigr run NAME` by hand joins those it finds); the other stages work in one.
"""

import contextlib
import dataclasses
import difflib
import fcntl
import importlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bigr import config
from bigr.pipeline import dvcfile
from bigr.pipeline.check import check_device, check_files, check_images, check_models, check_weights, images_of
from bigr.pipeline.stage_table import NAMES, STAGES
from bigr.runtime.context import Context
from bigr.runtime.errors import EXIT_USER_ERROR, BigrError
from bigr.tracking import Tracker

if TYPE_CHECKING:
    from bigr.config import Settings
    from bigr.pipeline.dvcfile import StageSpec

log = logging.getLogger(__name__)

_LAUNCHED = "BIGR_LAUNCHED"
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


def run_stage(name: str, root: Path, params: Path) -> None:
    """Run the stage `name` in the project folder `root` with the settings of the file `params`: what `bigr run` does.

    Raises `BigrError` for an unknown stage, invalid settings, a missing input, and whatever the stage finds wrong.
    """
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(NAMES)}"
        raise BigrError(f"{name} is not a stage; {hint}")
    root = root.absolute()
    values = config.read(params)
    settings = config.validate(values, params.name)
    described = dvcfile.stages(root, values)
    if name not in described:
        raise BigrError(f"dvc.yaml: has no stage {name}")
    if "LOCAL_RANK" in os.environ and STAGES[name].in_processes:
        _check_joined(settings)
    onwards = NAMES[NAMES.index(name) :]  # not hours later, for a stage after it
    check_files(root, settings, onwards)
    check_device(settings, onwards)
    images = images_of(root, settings, onwards)
    check_images(root, settings, images, onwards)
    check_models(root, settings, onwards, images.classes if images else None)
    if "LOCAL_RANK" not in os.environ:  # else whoever started the processes has looked
        check_weights(root, settings, onwards[1:])  # the stage itself reads its own first
    dvcfile.check_inputs(root, described[name], described)
    if "LOCAL_RANK" in os.environ:
        if STAGES[name].in_processes:
            with _process_group(settings):
                _execute(described[name], root, settings, values)
        elif os.environ["RANK"] == "0":
            _execute(described[name], root, settings, values)
    elif settings.run.processes > 1 and STAGES[name].in_processes:
        _launch(name, root, params, settings.run.processes)
    else:
        _execute(described[name], root, settings, values)


def _check_joined(settings: "Settings") -> None:
    """Raise `BigrError` where torchrun was told to put several processes on a machine, and the settings one GPU."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("WORLD_SIZE") or 1)
    if settings.run.one_gpu and here > 1:
        raise BigrError(
            f"run.device is {settings.run.device}, which the {here} processes that torchrun started on this machine "
            "would share; set run.device to cuda, which gives each process its own GPU"
        )


def _execute(spec: "StageSpec", root: Path, settings: "Settings", values: dict[str, object]) -> None:
    spec = dataclasses.replace(spec, deps=tuple(dict.fromkeys((*spec.deps, *_files(spec.name, settings)))))
    hashes = dvcfile.content_hashes(root, spec.deps)
    fingerprint = dvcfile.fingerprint(spec, values, hashes)
    stage = importlib.import_module(f"bigr.stages.{STAGES[spec.name].module}")
    if os.environ.get("RANK", "0") != "0":
        stage.run(settings, Context(root, fingerprint))
        return
    with _alone(root, spec.name):
        tracker = Tracker(root, spec.name, settings, hashes, spec.about)
        try:
            stage.run(settings, Context(root, fingerprint, tracker))
            missing = [out for out in spec.outs if not (root / out).exists()]
            if missing:
                raise RuntimeError(f"stage {spec.name} did not write {', '.join(missing)}, as dvc.yaml says it does")
            outputs = dvcfile.content_hashes(root, spec.outs)
        except BaseException as error:
            tracker.finish("FAILED" if isinstance(error, Exception) else "KILLED")
            raise
        tracker.finish("FINISHED", outputs)


def _files(name: str, settings: "Settings") -> tuple[str, ...]:
    """The models and weights of others that the stage reads: not in dvc.yaml, whose deps cannot be null."""
    return tuple(path for key, path in settings.files.items() if key.split(".")[0] == name)


@contextlib.contextmanager
def _alone(root: Path, name: str) -> Iterator[None]:
    """Hold the stage: a run whose `dvc` was killed may still be writing, and must end before the next begins."""
    path = root / ".dvc" / "tmp" / f"bigr-{name}.lock"
    path.parent.mkdir(exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            log.warning("stage %s is already running here (process %s); waiting for it to end", name, file.read())
            fcntl.lockf(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def _process_group(settings: "Settings") -> Iterator[None]:
    from bigr.runtime.device import resolve_device
    from bigr.runtime.distributed import process_group

    with process_group(resolve_device(settings.run.device)):
        yield


def _launch(name: str, root: Path, params: Path, processes: int) -> None:
    """Run this stage in `processes` processes on this machine and wait for them."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # The processes have told what went wrong; torchrun's report of it would bury that.
    for module in ("torch.distributed.elastic", "torch.distributed.run", "torch.distributed.launcher"):
        logging.getLogger(module).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    os.environ[_LAUNCHED] = "1"
    words = ["-m", "bigr", "run", name, "--params", str(params.absolute())]
    try:
        with contextlib.chdir(root):
            torchrun.run(torchrun.parse_args(["--standalone", f"--nproc-per-node={processes}", *words]))
    except ChildFailedError as error:
        failures = sorted(error.failures.values(), key=lambda failure: (failure.timestamp, failure.local_rank))
        for failure in failures:
            if failure.exitcode == EXIT_USER_ERROR and isinstance(failure.message, dict):
                raise BigrError(failure.message["message"]) from None
        first = failures[0].exitcode
        log.error("stage %s: process %d ended with exit status %d", name, failures[0].local_rank, first)
        sys.exit(128 - first if first < 0 else first)
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        sys.exit(128 + int(error.sigval))


def hand_up(error: BigrError) -> bool:
    """In a process that `run_stage` launched, leave the error for the launcher to say once. False elsewhere."""
    file = os.environ.get(_ERROR_FILE)
    if _LAUNCHED not in os.environ or not file:
        return False
    message = {"message": str(error), "extraInfo": {"timestamp": str(int(time.time()))}}
    Path(file).write_text(json.dumps({"message": message}), encoding="utf-8")
    return True
