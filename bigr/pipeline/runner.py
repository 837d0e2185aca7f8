"""One execution of one stage: settings, check, processes, stage, record.

A stage that computes with networks works in `run.processes` processes (`processes.py`); the other stages work in one.
"""

import difflib
import importlib
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bigr import config
from bigr.pipeline import dvcfile, processes, registration
from bigr.pipeline.check import check_stages, check_weights
from bigr.pipeline.stage_table import NAMES, STAGES
from bigr.runtime.context import Context
from bigr.runtime.copies import set_bound
from bigr.runtime.errors import BigrError
from bigr.runtime.locks import only_one
from bigr.tracking import Tracker

if TYPE_CHECKING:
    from bigr.config import Settings
    from bigr.pipeline.dvcfile import StageSpec

log = logging.getLogger(__name__)


def run_stage(name: str, root: Path, params: Path) -> None:
    """Run the stage `name` in the project folder `root` with the settings of the file `params`: what `bigr run` does.

    Raises `BigrError` for an unknown stage, invalid settings, a missing input, and whatever the stage finds wrong.
    """
    # Settings, and what dvc.yaml says of the stage.
    if name not in NAMES:
        raise BigrError(f"{name} is not a stage; {_hint(name)}")
    stage, root, values = STAGES[name], root.absolute(), config.read(params)
    settings = config.validate(values, params.name)
    set_bound(settings.run.cache_gb)
    described = dvcfile.stages(root, values)
    if name not in described:
        raise BigrError(f"dvc.yaml: has no stage {name}")
    spec = described[name].reading(path for key, path in settings.files.items() if key.split(".")[0] == name)

    # Check this stage and all after it, so that no error of a later one comes after hours of training.
    processes.check_goes_on()
    if stage.in_processes and stage.on_device:
        processes.check_joined(settings.run)
    if not processes.launched():
        onwards = NAMES[NAMES.index(name) :]
        check_stages(root, settings, onwards)
        check_weights(root, settings, onwards[1:])  # the stage reads its own first
    dvcfile.check_inputs(root, spec, described)

    # Processes: torchrun starts them, and each comes here again; of a stage that works in one, the first goes on.
    if stage.in_processes and stage.launched and settings.run.processes > 1 and not processes.joined():
        processes.launch(name, root, params, settings.run)
        return
    if not stage.in_processes and not processes.is_first():
        return
    with processes.group(settings.run, on_device=stage.on_device) if stage.in_processes else nullcontext():
        # Stage: what it reads is hashed, so that a checkpoint of other code, settings or inputs is not resumed.
        inputs = processes.once_on_each_machine(lambda: dvcfile.content_hashes(root, spec.deps))
        context = Context(root, dvcfile.fingerprint(spec, values, inputs))
        run = function_of(name)
        if not processes.is_first():
            run(settings, context)
            return

        # Record: the first process writes and reports. A run whose `dvc` was killed may still be writing: wait for it.
        with only_one(root / ".dvc" / "tmp" / f"bigr-{name}.lock", lambda process: _say_waiting(name, process)):
            tracker = Tracker(root, name, settings, inputs, spec.about, stage.shares)
            try:
                run(settings, replace(context, report=tracker))
                outputs = _outputs(root, spec)
            except BaseException as error:
                tracker.finish("FAILED" if isinstance(error, Exception) else "KILLED")
                raise
            execution = tracker.finish("FINISHED", outputs)
    if name == registration.EVALUATION:
        registration.register_finished(root, settings, {**inputs, **outputs}, execution)


def _hint(name: str) -> str:
    close = difflib.get_close_matches(name, NAMES, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(NAMES)}"


def _say_waiting(name: str, process: str) -> None:
    log.warning("stage %s is already running here (process %s); waiting for it to end", name, process)


def _outputs(root: Path, spec: "StageSpec") -> dict[str, str]:
    """Path → DVC hash of all that the stage wrote. Raises `RuntimeError` where an output is missing."""
    if missing := [out for out in spec.outs if not (root / out).exists()]:
        raise RuntimeError(f"stage {spec.name} did not write {', '.join(missing)}, as dvc.yaml says it does")
    return dvcfile.content_hashes(root, spec.outs)


def function_of(name: str) -> Callable[["Settings", Context], None]:
    """The stage's function `run`. Nothing else imports a stage."""
    run: Callable[[Settings, Context], None] = importlib.import_module(f"bigr.stages.{STAGES[name].module}").run
    return run
