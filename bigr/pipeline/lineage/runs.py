"""What MLflow recorded: the runs of stages, by the hashes of their outputs and inputs (tags `dvc.out.*`, `dvc.dep.*`).

A store that does not exist is not created. One that cannot be read is reported in `Runs.trouble`.
"""

import json
import logging
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from bigr.runtime.masking import masked
from bigr.tracking.store import CODE, Store, location, shown

_OUT, _DEP = "dvc.out.", "dvc.dep."


@dataclass(frozen=True)
class RecordedRun:
    """A stage's run. started: UTC; parent: id of its execution's run; deps, outs: path → hash of the data that it read
    and of its outputs; code: `code_digest` of its code, whose files `Runs.code` has.

    commit: of git, None where the project was in no repository; dirty: whether tracked files differed from it.
    """

    id: str
    stage: str
    status: str
    started: datetime
    parent: str
    commit: str | None
    dirty: bool
    settings: Mapping[str, str]
    deps: Mapping[str, str]
    outs: Mapping[str, str]
    code: str


class Runs:
    """The runs in the store of the project at `root`, of every experiment."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.trouble = ""

    def writers(self, path: str, md5: str) -> list[RecordedRun]:
        """The runs that wrote `path` with the hash `md5`, the newest first."""
        if "`" in path:  # not allowed in tags, nor in a filter
            return []
        return self._search(f"tags.`{_OUT}{path}` = '{md5}'")

    def find(self, prefix: str, paths: Collection[str]) -> list[tuple[str, str]]:
        """Versions of the outputs `paths`, as (path, hash), whose hash begins with `prefix`."""
        return list(
            dict.fromkeys(
                (path, run.outs[path])
                for path in paths
                for run in self._search(f"tags.`{_OUT}{path}` LIKE '{prefix}%'")
            )
        )

    def get(self, run_id: str) -> list[RecordedRun]:
        """The stage's run of this id, or the runs of the execution of this id, the newest first; else none."""
        stage = "tags.`bigr.kind` = 'stage' and"
        return self._search(f"{stage} attributes.run_id = '{run_id}'") or self._search(
            f"{stage} tags.`mlflow.parentRunId` = '{run_id}'"
        )

    def code(self, run: RecordedRun) -> dict[str, str]:
        """Path → DVC hash of the code that the run ran with; empty where MLflow no longer has the file."""

        def ask(store: Store) -> list[Any]:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(store.client.download_artifacts(run.id, CODE, folder))
                return list(json.loads(path.read_text(encoding="utf-8")).items())

        return dict(self._ask(ask, quiet=True)) if run.code else {}

    def version(self, model: str, which: str) -> tuple[int, dict[str, str]] | None:
        """Number and tags of a version in the registry, or None; which: its number, or `@` and an alias."""

        def ask(store: Store) -> list[Any]:
            if which.startswith("@"):
                return [store.client.get_model_version_by_alias(model, which[1:])]
            return [store.client.get_model_version(model, which)]

        found = self._ask(ask, quiet=True)
        return (int(found[0].version), dict(found[0].tags)) if found else None

    def name(self, run_id: str) -> str:
        """The name of a run; empty where it is gone."""
        found = self._ask(lambda store: [store.client.get_run(run_id)], quiet=True)
        return str(found[0].info.run_name) if found else ""

    def _search(self, condition: str) -> list[RecordedRun]:
        return list(map(_run, self._ask(lambda store: _all(store, self._experiments, condition))))

    def _ask(self, question: Callable[[Store], list[Any]], quiet: bool = False) -> list[Any]:
        if self._store is None:
            return []
        try:
            return question(self._store)
        except Exception as error:  # a database or a server may fail with anything
            if not quiet:
                self.trouble = _out_of_reach(self.root, error)
            return []

    @cached_property
    def _store(self) -> Store | None:
        uri = location(self.root)
        if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
            self.trouble = f"MLflow has no records here ({masked(uri)} does not exist); what follows is from DVC alone"
            return None
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        try:
            return Store(self.root)
        except Exception as error:
            self.trouble = _out_of_reach(self.root, error)
            return None

    @cached_property
    def _experiments(self) -> list[str]:
        assert self._store is not None  # _ask has looked
        return [str(experiment.experiment_id) for experiment in self._store.client.search_experiments()]


def _all(store: Store, experiments: list[str], condition: str) -> list[Any]:
    return list(store.client.search_runs(experiments, condition, order_by=["attributes.start_time DESC"]))


def _out_of_reach(root: Path, error: Exception) -> str:
    words = masked(" ".join(str(error).split()))[:160] or type(error).__name__
    return f"{shown(root)} does not answer; what follows is from DVC alone: {words}"


def _run(entity: Any) -> RecordedRun:
    tags: Mapping[str, Any] = entity.data.tags
    return RecordedRun(
        id=str(entity.info.run_id),
        stage=tags.get("bigr.stage", ""),
        status=str(entity.info.status),
        started=datetime.fromtimestamp(entity.info.start_time / 1000, UTC),
        parent=tags.get("mlflow.parentRunId", ""),
        commit=tags.get("mlflow.source.git.commit"),
        dirty=tags.get("git.dirty") == "true",
        settings=dict(entity.data.params),
        deps=dict(_tagged(tags, _DEP)),
        outs=dict(_tagged(tags, _OUT)),
        code=tags.get("bigr.code", ""),
    )


def _tagged(tags: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    return ((key.removeprefix(prefix), value) for key, value in sorted(tags.items()) if key.startswith(prefix))
