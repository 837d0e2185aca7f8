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
from typing import Any, TypeVar

from bigr.runtime.masking import in_one_line, masked
from bigr.tracking.store import CODE, Store, location, shown

_OUT, _DEP = "dvc.out.", "dvc.dep."
T = TypeVar("T")


@dataclass(frozen=True)
class RecordedRun:
    """A stage's run. started: UTC; parent: id of its execution's run; deps, outs: path → hash of data; code:
    `code_digest`; commit: None where the project was in no repository; dirty: whether tracked files differed from it.
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

        def ask(store: Store) -> dict[str, str]:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(store.client.download_artifacts(run.id, CODE, folder))
                return dict(json.loads(path.read_text(encoding="utf-8")))

        return self._ask(ask, {}, quiet=True) if run.code else {}

    def version(self, model: str, which: str) -> tuple[int, dict[str, str]] | None:
        """Number and tags of a version in the registry, or None; which: its number, or `@` and an alias."""

        def ask(store: Store) -> tuple[int, dict[str, str]] | None:
            if which.startswith("@"):
                found = store.client.get_model_version_by_alias(model, which[1:])
            else:
                found = store.client.get_model_version(model, which)
            return int(found.version), dict(found.tags)

        return self._ask(ask, None, quiet=True)

    def name(self, run_id: str) -> str:
        """The name of a run; empty where it is gone."""
        return self._ask(lambda store: str(store.client.get_run(run_id).info.run_name), "", quiet=True)

    def _search(self, condition: str) -> list[RecordedRun]:
        def ask(store: Store) -> list[RecordedRun]:
            order = ["attributes.start_time DESC"]
            return [_run(run) for run in store.client.search_runs(self._experiments, condition, order_by=order)]

        return self._ask(ask, [])

    def _ask(self, question: Callable[[Store], T], otherwise: T, *, quiet: bool = False) -> T:
        if self._store is None:
            return otherwise
        try:
            return question(self._store)
        except Exception as error:  # a database or a server may fail with anything
            if not quiet:
                self.trouble = _out_of_reach(self.root, error)
            return otherwise

    @cached_property
    def _store(self) -> Store | None:
        uri = location(self.root)
        if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
            self.trouble = f"MLflow has no records here ({masked(uri)} does not exist); what follows is from DVC alone"
            return None
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        try:
            store = Store(self.root)
            self._experiments = [str(found.experiment_id) for found in store.client.search_experiments()]
            return store
        except Exception as error:
            self.trouble = _out_of_reach(self.root, error)
            return None


def _out_of_reach(root: Path, error: Exception) -> str:
    return f"{shown(root)} does not answer; what follows is from DVC alone: {in_one_line(error, 160)}"


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
