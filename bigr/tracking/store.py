"""MLflow's store: its address, the experiment, and the runs in it."""

import contextlib
import getpass
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigr.evaluation.headline import HEADLINE
from bigr.runtime.errors import BigrError
from bigr.runtime.masking import masked
from bigr.runtime.paths import is_code, normal
from bigr.tracking import executions

if TYPE_CHECKING:
    from mlflow.entities import Run

DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # not of model files: see `uploading`
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
"""MLflow's environment where the user has not set it: no telemetry, few messages, short timeouts."""

CODE = "code.json"
"""A stage run's artifact: path → DVC hash of the code that it ran with."""

RUN_PAGE = "workflowType=machine_learning"
RUN_LIST = f"{RUN_PAGE}&viewStateShareKey=headline"
"""Of the addresses of MLflow's pages: for training rather than language models, the list with the headline metrics."""

_VIEW = "mlflow.sharedViewState.headline"
_COLUMNS = json.dumps({"selectedColumns": [f"metrics.`{name}`" for name in HEADLINE.values()]})
"""The experiment's tag that `RUN_LIST` names, and its value: what *Share* on MLflow's page of runs would write."""

_LONGEST_NAME = 500  # of a dataset, in MLflow
_LONGEST_DIGEST = 36  # too, which DVC's hash of a folder has; that of a file on the web may be longer
_LONGEST_REASON = 300
_SQLITE = "sqlite:///"
_UPLOAD_S, _UPLOAD_BYTES_PER_S = 60, 5_000_000
_TIMEOUT, _UPLOAD_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT"
_FINAL = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST", "PERMISSION_DENIED", "INVALID_STATE")


def home(root: Path) -> Path:
    """The project folder that records belong to: `root`, or its project where DVC made `root` for an experiment."""
    return next((folder.parent for folder in root.absolute().parents if folder.name == ".dvc"), root.absolute())


def location(root: Path) -> str:
    """The tracking URI. A relative path of a database is below the project folder, wherever the stage runs."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}mlflow.db"
    return f"{_SQLITE}{home(root) / uri.removeprefix(_SQLITE)}" if uri.startswith(_SQLITE) else uri


def shown(root: Path) -> str:
    """The store, for messages: its URI without user and password."""
    return f"MLflow ({masked(location(root))})"


@contextlib.contextmanager
def asking(root: Path) -> Iterator[None]:
    """Raise `BigrError` where a call of MLflow in the block fails: no server, or not a database of MLflow."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, ModuleNotFoundError) as error:  # no driver: the last
        said = masked(" ".join(str(error).split()))[:_LONGEST_REASON] or type(error).__name__
        # No cause: its own words may have the store's password.
        raise BigrError(f"{shown(root)} could not be asked: {said}; is it running?") from None


@contextlib.contextmanager
def uploading(folder: Path) -> Iterator[None]:
    """Within the block, let MLflow's server take its time with the files of `folder`.

    It answers only when it has stored a file whole, in an object store perhaps. It has as many seconds as
    MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT says; where that is not set, a minute more than the largest file takes at
    5 MB/s.
    """
    largest = max((path.stat().st_size for path in folder.rglob("*") if path.is_file()), default=0)
    seconds = os.environ.get(_UPLOAD_TIMEOUT) or str(_UPLOAD_S + largest // _UPLOAD_BYTES_PER_S)
    before = os.environ.get(_TIMEOUT)
    os.environ[_TIMEOUT] = seconds
    try:
        yield
    finally:
        if before is None:
            del os.environ[_TIMEOUT]
        else:
            os.environ[_TIMEOUT] = before


def read_tags(hashes: Mapping[str, str]) -> dict[str, str]:
    """Tags of a run that read `hashes`, path → DVC hash: `dvc.dep.<path>` of data, and `bigr.code` for all code."""
    data = ((normal(path), md5) for path, md5 in hashes.items() if not is_code(path))
    return {f"dvc.dep.{tag_name(path)}": md5 for path, md5 in data} | {"bigr.code": code_digest(hashes)}


def code_digest(hashes: Mapping[str, str]) -> str:
    """SHA-256 over the code among `hashes`, path → DVC hash; empty where there is none."""
    code = _code(hashes)
    return hashlib.sha256(json.dumps(code, sort_keys=True).encode()).hexdigest() if code else ""


def _code(hashes: Mapping[str, str]) -> dict[str, str]:
    return {normal(path): md5 for path, md5 in hashes.items() if is_code(path)}


def tag_name(text: str) -> str:
    """`text` with the characters that MLflow does not allow in a name replaced by _."""
    return re.sub(r"[^\w\-./ :]", "_", text)


def _user() -> str:
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container's user without a name
        return "unknown"


def permanent(error: Exception) -> bool:
    """Whether MLflow refuses a call for good, so that it need not be repeated."""
    return getattr(error, "error_code", None) in _FINAL


class Store:
    """The experiment in the store. The constructor connects, and creates the experiment where missing.

    Methods raise MLflow's own exceptions.
    """

    def __init__(self, root: Path) -> None:
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # else a line for each try while the server is stopped
        self.uri = location(root)
        self.client = MlflowClient(self.uri)
        self.experiment  # noqa: B018 - connects

    @cached_property
    def experiment(self) -> str:
        """The experiment's id."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "bigr"
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        # A server says where files go; a database alone cannot, so they go beside it.
        beside = None
        if self.uri.startswith(_SQLITE):
            beside = (Path(self.uri.removeprefix(_SQLITE)).absolute().parent / "mlartifacts").as_uri()
        return str(self.client.create_experiment(name, artifact_location=beside))

    def runs(self, **tags: str) -> list["Run"]:
        """Runs with these tags, the newest first; `__` in a name stands for a dot."""
        return self.search(" and ".join(f"tags.`{key.replace('__', '.')}` = '{value}'" for key, value in tags.items()))

    def search(self, condition: str) -> list["Run"]:
        """Runs that meet MLflow's filter `condition`, the newest first."""
        return list(self.client.search_runs([self.experiment], condition, order_by=["attributes.start_time DESC"]))

    def parent(self, execution: executions.Execution, settings: dict[str, Any], tags: dict[str, str]) -> str:
        """The id of the parent run of `execution`, which is created or set to running again.

        One whose settings MLflow did not take, since it was stopped meanwhile, gets them.
        """
        found = self.runs(bigr__execution=execution.id, bigr__kind="pipeline")
        if found:
            run = str(found[0].info.run_id)
            self.client.update_run(run, status="RUNNING")
            self.params(run, {key: value for key, value in settings.items() if key not in found[0].data.params})
            return run
        own = {"bigr.execution": execution.id, "bigr.kind": "pipeline", "mlflow.source.name": execution.command}
        run = self.create(execution.name, {**tags, **own})
        self.params(run, settings)
        if self.client.get_experiment(self.experiment).tags.get(_VIEW) != _COLUMNS:
            self.client.set_experiment_tag(self.experiment, _VIEW, _COLUMNS)
        return run

    def create(self, name: str, tags: Mapping[str, str]) -> str:
        """Create a run of this user: its id."""
        about = {"mlflow.user": _user(), "mlflow.source.type": "LOCAL", **{k: v for k, v in tags.items() if v}}
        return str(self.client.create_run(self.experiment, run_name=name, tags=about).info.run_id)

    def child(self, parent: str, stage: str, tags: dict[str, str]) -> str:
        """Create a run of `stage` under `parent`: its id."""
        own = {"mlflow.parentRunId": parent, "bigr.stage": stage, "bigr.kind": "stage"}
        return self.create(stage, {**tags, **own})

    def code(self, run: str, hashes: Mapping[str, str]) -> None:
        """Store the code among `hashes`, path → DVC hash of what a run read, as its file code.json."""
        if code := _code(hashes):
            self.client.log_dict(run, code, CODE)

    def params(self, run: str, values: dict[str, Any]) -> None:
        """Record settings; MLflow takes 100 at a time."""
        from mlflow.entities import Param

        params = [Param(key, str(value)) for key, value in values.items()]
        for start in range(0, len(params), 100):
            self.client.log_batch(run, params=params[start : start + 100])

    def inputs(self, run: str, hashes: Mapping[str, str], context: str) -> None:
        """Record the data among `hashes`, path → DVC hash of what a run read, as MLflow's datasets.

        The page of the run shows them, and runs are filtered by `dataset.name`, `dataset.digest` and `dataset.context`.
        Datasets that were recorded before stay.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        tags = [InputTag("mlflow.data.context", context)]
        read = [
            Dataset(path[-_LONGEST_NAME:], md5[:_LONGEST_DIGEST], source_type="local", source=json.dumps({"uri": path}))
            for path, md5 in ((normal(path), md5) for path, md5 in hashes.items())
            if not is_code(path)
        ]
        if read:
            self.client.log_inputs(run, datasets=[DatasetInput(dataset, tags) for dataset in read])

    def end(self, run: str, status: str) -> None:
        """End a run; not before its start, where the clock has been set back meanwhile."""
        started = self.client.get_run(run).info.start_time
        self.client.set_terminated(run, status, max(started, int(time.time() * 1000)))

    def bury(self, stage: str, parent: str) -> None:
        """Mark as killed the runs of `stage` whose process has ended unrecorded, and their executions but `parent`."""
        for run in self.search(f"attributes.status = 'RUNNING' and tags.`bigr.stage` = '{stage}'"):
            if executions.is_dead(run.data.tags.get("bigr.process", "::")):
                self.end(run.info.run_id, "KILLED")
                above = run.data.tags.get("mlflow.parentRunId")
                if above and above != parent:
                    self.end(above, "KILLED")


def find_writer(root: Path, path: str, md5: str) -> str | None:
    """The id of the newest run that wrote `path` (as in dvc.lock) with DVC's hash `md5`, or None."""
    found = Store(root).runs(**{f"dvc.out.{path}": md5}, bigr__kind="stage")
    return str(found[0].info.run_id) if found else None
