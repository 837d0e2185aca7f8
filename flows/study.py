"""The study of docs/ablations.md, executed: `python -m flows.study`, which is `make ablations`.

Runs that share a trained model are a `RunGroup`: they run one after the other in one clone of the project
(`flows/workspace.py`), and groups run in parallel. The clones share DVC's cache, so a tokenizer is trained once a seed
and a generator once a model. Each run becomes an experiment of DVC and a run in MLflow, both under its name. A finished
run (same code, same settings) is not run again: a second study runs nothing, one that was killed continues.
"""

import contextlib
import json
import logging
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigr import config
from bigr.pipeline.study.tables import MINIATURE, POINTS, StudyRun, digest, runs, tables_of
from bigr.runtime.dotted_keys import flatten
from bigr.runtime.errors import EXIT_USER_ERROR, BigrError
from bigr.runtime.masking import MaskingFormatter, masked
from bigr.tracking.store import location
from bigr.tracking.study_tags import mark, prepare
from flows import workspace
from flows.execution import StageFailed, StageKilled, execute, output

STATE = Path(".dvc/tmp/ablations")
"""A file for each finished run, named after it: its digest, its metrics, and how long it took in seconds."""

LANES = 3
"""Groups in parallel: one a seed, which also keeps two cores busy while one group reads, writes or waits."""

_CLONE = "ablations-"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunGroup:
    """Runs of one seed that share one trained model."""

    name: str
    seed: int
    runs: tuple[StudyRun, ...]


class Study:
    """The runs of one project, which of them are finished, and how to run the others.

    Raises `BigrError` where the project's settings are not those of the embedded images.
    """

    def __init__(self, project: Path, chosen: Sequence[StudyRun], lanes: int = LANES) -> None:
        self.project, self.lanes = project, lanes
        base = config.read(project / "params.yaml")
        if not ((settings := config.validate(base)).shards.embedded and settings.dataset.name == "digits"):
            raise BigrError(
                "the study is of the embedded digits; set dataset.name to digits, and shards.source to data/dataset"
            )
        self._digests = {run.name: digest(project, workspace.merge(base, run.settings)) for run in chosen}
        grouped: dict[str, list[StudyRun]] = {}
        for run in chosen:
            grouped.setdefault(f"{run.variant.model}-seed{run.seed}", []).append(run)
        self.groups = [RunGroup(name, its[0].seed, tuple(its)) for name, its in grouped.items()]
        self._tokenizer = {group.seed: threading.Lock() for group in self.groups}
        self._same_files = threading.Lock()
        self._mlflow = threading.Lock()
        self.stopping = threading.Event()  # once set, each group ends after its present run
        self._experiments = workspace.experiments(project)
        self._remove_stale_clones()
        with _mlflow_optional("be reached"):
            prepare(project)

    def open_groups(self) -> list[RunGroup]:
        """The groups with unfinished runs; long ones first, then by name, so that neighbours have different seeds and
        none waits for another's tokenizer."""
        left = [group for group in self.groups if any(not self.done(run) for run in group.runs)]
        return sorted(left, key=lambda group: (-len(group.runs), group.name))

    def done(self, run: StudyRun) -> bool:
        """Whether the run has its result and its experiment, under this code and these settings."""
        return self.result(run) is not None and run.name in self._experiments

    def result(self, run: StudyRun) -> dict[str, Any] | None:
        """`figures` (dotted keys of metrics.json) and `seconds` of a run, if this code and these settings gave them."""
        return self._read(run.name, run)

    def run_group(self, group: RunGroup, say: Callable[[str], None], detail: Callable[[str], None]) -> None:
        """Run what is left of a group. say: receives a line for each run; detail: every line of the stages.

        Raises `StageFailed`, `StageKilled` or `BigrError`; finished runs stay finished.
        """
        folder = self._clone(group)
        for run in (run for run in group.runs if not self.done(run)):
            if self.stopping.is_set():
                return
            started = time.monotonic()
            workspace.clone(self.project, folder, run.settings)
            workspace.change(self.project, folder, run.settings)
            environment = self._environment(run)
            if not (folder / "data/codes").exists():
                # Most of what all seeds share: of two that store one file at once, DVC may leave one empty.
                with self._same_files:
                    execute("text", folder, environment, False, detail, upstream=True)
                with self._tokenizer[group.seed]:  # one trains it, the others find it in the cache
                    execute("codes", folder, environment, False, detail, upstream=True)
            execute("evaluation", folder, environment, False, detail, upstream=True)
            figures = flatten(json.loads((folder / "outputs/metrics.json").read_text()))
            workspace.keep(self.project, folder, run.name, [])
            self._mark(run, {})
            took = time.monotonic() - started
            self._write(run.name, run, {"figures": figures, "seconds": took})
            self._experiments.add(run.name)
            say(f"{run.name}: {took:.0f} s")
        if folder.exists():
            workspace.remove(folder)

    def sampling_seconds(self, base: StudyRun) -> dict[str, float]:
        """Measured seconds an image for each point of figure 3, with the model of the run `base`: variant → seconds."""
        found = self._read("seconds", base)
        if not found:
            folder = self.project / workspace.FOLDER / f"{_CLONE}timing"
            workspace.clone(self.project, folder, base.settings)
            execute("transcoder", folder, self._environment(base), False, log.debug, upstream=True)
            words = [sys.executable, "-m", "bigr.pipeline.study.timing", *(f"{n},{s}" for n, s in POINTS)]
            seconds = json.loads(output(folder, *words, OMP_NUM_THREADS="1", PYTHONPATH=str(folder)))
            workspace.remove(folder)
            found = {"seconds": {variant: seconds[f"{n},{s}"] for (n, s), variant in POINTS.items()}}
            self._write("seconds", base, found)
        return dict(found["seconds"])

    def publish(self) -> None:
        """Measure the sampling times, and write docs/ablations.json, docs/ablations.md and the plots."""
        from bigr.pipeline.study import results, study_page

        every = [run for group in self.groups for run in group.runs]
        seconds = self.sampling_seconds(next(run for run in every if run.variant.name == "base"))
        figures: dict[str, dict[int, dict[str, float]]] = {}
        minutes = 0.0
        for run in every:
            found = self.result(run)
            if found is None:
                raise BigrError(f"{run.name}: has no result; run `make ablations` again")
            figures.setdefault(run.variant.name, {})[run.seed] = found["figures"]
            minutes += found["seconds"] / 60
            if run.variant.name in seconds:
                self._mark(run, {"samples.seconds_per_image": seconds[run.variant.name]})
        commit = output(self.project, "git", "rev-parse", "--short", "HEAD").strip()
        machine = f"{os.cpu_count()} CPU cores, {platform.machine()}"
        docs = self.project / "docs"
        found_all = results.Results(figures, seconds, dict(MINIATURE), minutes, self.lanes, commit, machine)
        results.save(docs / "ablations.json", found_all)
        study_page.write(docs, results.load(docs / "ablations.json"))

    def _environment(self, run: StudyRun) -> dict[str, str]:
        return {
            "BIGR_EXECUTION": f"{run.name} {self._digests[run.name][:12]}",
            "BIGR_EXECUTION_NAME": run.name,
            "MLFLOW_TRACKING_URI": location(self.project),
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.lanes)),
        }

    def _mark(self, run: StudyRun, figures: Mapping[str, float]) -> None:
        tags = {
            "bigr.study": "ablations",
            "ablations.variant": run.variant.name,
            "ablations.seed": str(run.seed),
            "ablations.tables": ", ".join(tables_of(run.variant.name)),
        }
        with self._mlflow, _mlflow_optional(f"tag {run.name}"):
            mark(self.project, self._environment(run)["BIGR_EXECUTION"], tags, figures)

    def _clone(self, group: RunGroup) -> Path:
        first = self._digests[group.runs[0].name][:12]
        return self.project / workspace.FOLDER / f"{_CLONE}{group.name}-{first}"

    def _remove_stale_clones(self) -> None:
        """Remove the clones of a killed study of other code or settings."""
        for folder in (self.project / workspace.FOLDER).glob(f"{_CLONE}*"):
            if folder not in {self._clone(group) for group in self.groups}:
                workspace.remove(folder)

    def _read(self, name: str, run: StudyRun) -> dict[str, Any] | None:
        """What was written under `name`, if this code and the settings of `run` gave it."""
        path = self.project / STATE / f"{name}.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found if found.get("digest") == self._digests[run.name] else None

    def _write(self, name: str, run: StudyRun, value: dict[str, Any]) -> None:
        path = self.project / STATE / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".new").write_text(json.dumps({"digest": self._digests[run.name], **value}))
        path.with_suffix(".new").replace(path)


@contextlib.contextmanager
def _mlflow_optional(what: str) -> Iterator[None]:
    """MLflow out of reach does not stop the study."""
    try:
        yield
    except Exception as error:
        log.warning("MLflow could not %s: %s", what, masked(str(error)).splitlines()[:1])


def main() -> int:
    """Run what is left of the study in this folder, and write its page.

    Exit status 2: a mistake, or a failed run; 137: a signal killed a run.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(MaskingFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    try:
        study = Study(Path.cwd(), runs())
        left = study.open_groups()
        log.info("%d runs, %d to do", sum(len(g.runs) for g in study.groups), sum(len(g.runs) for g in left))
        with ThreadPoolExecutor(study.lanes) as lanes:
            for one in as_completed([lanes.submit(study.run_group, group, log.info, log.debug) for group in left]):
                if one.exception():
                    study.stopping.set()
                one.result()
        study.publish()
    except KeyboardInterrupt:
        log.error("interrupted; `make ablations` continues")
        os._exit(130)  # at once: the stages end with this process, see flows/guard.py
    except (BigrError, StageFailed, StageKilled) as error:
        log.error("%s; finished runs stay finished", error)
        return 128 + signal.SIGKILL if isinstance(error, StageKilled) else EXIT_USER_ERROR
    log.info("docs/ablations.md has the results")
    return 0


if __name__ == "__main__":
    sys.exit(main())
