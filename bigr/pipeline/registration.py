"""A finished pipeline's model becomes a version in MLflow's registry: after the evaluation, and in `bigr promote`."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bigr.pipeline import closure, dvcfile
from bigr.pipeline.stage_table import STAGES
from bigr.runtime.masking import masked
from bigr.tracking.executions import is_experiment
from bigr.tracking.registry.versions import METRICS, Candidate, Registry
from bigr.tracking.store import Store, read_tags

if TYPE_CHECKING:
    from bigr.config import Settings

log = logging.getLogger(__name__)

EVALUATION = "evaluation"
"""The stage that ends a pipeline: it measures the model."""
_MODEL = "models/bigr"
_MEASURING = ("bigr/evaluation/", "bigr/stages/")


def register_finished(root: Path, settings: "Settings", hashes: Mapping[str, str], execution: str) -> None:
    """Register what the pipeline at `root` has made. An experiment of DVC makes no version.

    hashes: path → DVC hash of all that the evaluation read and wrote; execution: the id of its run in MLflow, empty
    where MLflow did not answer: it is not waited for again. A failure is logged: `bigr promote` tries again.
    """
    if is_experiment(root) or _MODEL not in hashes:
        return
    if not execution:
        log.warning("the model is not registered, since its run could not be recorded; `bigr promote` will try again")
        return
    try:
        Registry(Store(root)).register(candidate(root, settings, hashes), execution)
    except Exception as error:  # a stage does not fail for it
        log.warning("the model could not be registered, which `bigr promote` will try again: %s", masked(str(error)))


def candidate(root: Path, settings: "Settings", hashes: Mapping[str, str]) -> Candidate:
    """The model at `root`, with its metrics. hashes: as for `register_finished`.

    The code that it was measured with is found by the imports of the stage: what only `bigr evaluate` uses is left out.
    """
    code = [path for path in closure.modules(root, STAGES[EVALUATION].path) if path.startswith(_MEASURING)]
    return Candidate(root, settings, hashes, dvcfile.content_hashes(root, sorted(code)))


def execution_of(offered: Candidate, store: Store) -> str:
    """The run of the pipeline execution that measured the candidate; a new one where MLflow has no record of it."""
    tag = {f"dvc.out.{METRICS}": offered.hashes[METRICS], f"dvc.dep.{_MODEL}": offered.hashes[_MODEL]}
    if found := store.runs(**tag, bigr__kind="stage"):
        return str(found[0].data.tags.get("mlflow.parentRunId", found[0].info.run_id))
    run = create_run(store, "registration", offered, read_tags(offered.hashes))
    store.code(run, offered.hashes)
    return run


def create_run(store: Store, name: str, offered: Candidate, tags: dict[str, str]) -> str:
    """A finished run `name` of the promotion that names the data which the candidate was measured on: its id."""
    run = store.create(name, {"bigr.kind": "promotion", "mlflow.source.name": "bigr promote", **tags})
    data = {path: md5 for path, md5 in offered.hashes.items() if path.startswith("data/")}
    store.inputs(run, data, EVALUATION)
    store.client.set_terminated(run, "FINISHED")
    return run
