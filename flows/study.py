"""The study of docs/ablations.md, executed: `python -m flows.study`, which is `make ablations`.

Runs that share a trained model are a `Job`: they work one after the other in one clone of the project
(`flows/workspace.py`), jobs beside each other in lanes. The clones share DVC's cache, so a tokenizer is trained once a
seed and a generator once a model; each run ends as an experiment of DVC and a run in MLflow, both under its name. What
is done (same code, same settings) is not done again: a second study runs nothing, one that was killed continues.
"""

import contextlib
import json
import logging
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
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
from flows.execution import StageFailed, StageKilled, execute

STATE = Path(".dvc/tmp/ablations")
"""A file for each run that is done, named after it: its digest, its figures, and how long it took."""

LANES = 3
"""Jobs beside each other: as many as seeds, which also keeps two cores busy while one job reads, writes or waits."""

_CLONE = "ablations-"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """Runs of one seed that share one trained model."""

    name: str
    seed: int
    runs: tuple[StudyRun, ...]


class Study:
    """The runs of one project, what of them is done, and how to do the rest.

    Raises `BigrError` where the project's settings are not those of the embedded images.
    """

    def __init__(self, project: Path, chosen: Sequence[StudyRun], lanes: int = LANES) -> None:
        self.project, self.lanes = project, lanes
        self._base = config.read(project / "params.yaml")
        if not config.validate(self._base).shards.embedded:
            raise BigrError("shards.source: the study is of the embedded digits; run it where it is data/digits")
        self._digests = {run.name: digest(project, workspace.merge(self._base, run.settings)) for run in chosen}
        grouped: dict[str, list[StudyRun]] = {}
        for run in chosen:
            grouped.setdefault(f"{run.variant.model}-seed{run.seed}", []).append(run)
        self.jobs = [Job(name, its[0].seed, tuple(its)) for name, its in grouped.items()]
        self._tokenizer = {job.seed: threading.Lock() for job in self.jobs}
        self._mlflow = threading.Lock()
        self.stopping = threading.Event()  # once set, each job ends after the run that is under way
        self._experiments = workspace.experiments(project)
        self._forget_stale_clones()
        with self._records("not be reached"):
            prepare(project)

    def open_jobs(self) -> list[Job]:
        """The jobs with runs that are not done; long ones first, and of different seeds beside each other, so that
        none waits for another's tokenizer."""
        left = [job for job in self.jobs if any(not self.done(run) for run in job.runs)]
        return sorted(left, key=lambda job: (-len(job.runs), job.name))

    def done(self, run: StudyRun) -> bool:
        """Whether the run has its result and its experiment, under this code and these settings."""
        return self.result(run) is not None and run.name in self._experiments

    def result(self, run: StudyRun) -> dict[str, Any] | None:
        """`figures` (dotted keys of metrics.json) and `seconds` of a run, if this code and these settings gave them."""
        found = self._read(run.name)
        return found if found and found["digest"] == self._digests[run.name] else None

    def run_job(self, job: Job, say: Callable[[str], None], detail: Callable[[str], None]) -> None:
        """Do what is left of a job. say: receives a line for each run; detail: every line of the stages.

        Raises `StageFailed`, `StageKilled` or `BigrError`; what was done before stays done.
        """
        folder = self._clone(job)
        for run in (run for run in job.runs if not self.done(run)):
            if self.stopping.is_set():
                return
            started = time.monotonic()
            if not (folder / ".git/made").exists():
                workspace.clone(self.project, folder, run.settings)
            workspace.change(self.project, folder, run.settings)
            environment = self._environment(run)
            if not (folder / "data/codes").exists():
                with self._tokenizer[job.seed]:  # one trains it, the others find it in the cache
                    execute("codes", folder, environment, False, detail, upstream=True)
            execute("evaluation", folder, environment, False, detail, upstream=True)
            figures = flatten(json.loads((folder / "outputs/metrics.json").read_text()))
            workspace.keep(self.project, folder, run.name, [])
            self._mark(run, {})
            took = time.monotonic() - started
            self._write(run.name, {"digest": self._digests[run.name], "figures": figures, "seconds": took})
            self._experiments.add(run.name)
            say(f"{run.name}: {took:.0f} s")
        if folder.exists():
            workspace.remove(folder)

    def sampling_seconds(self, base: StudyRun) -> dict[str, float]:
        """Measured seconds an image for each point of figure 3, with the model of the run `base`: variant → seconds."""
        found = self._read("seconds")
        if not found or found["digest"] != self._digests[base.name]:
            folder = self.project / workspace.FOLDER / f"{_CLONE}timing"
            workspace.clone(self.project, folder, base.settings)
            execute("transcoder", folder, self._environment(base), False, log.debug, upstream=True)
            words = [sys.executable, "-m", "bigr.pipeline.study.timing", *(f"{n},{s}" for n, s in POINTS)]
            alone = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
            said = subprocess.run(words, cwd=folder, env=alone, check=True, capture_output=True, text=True).stdout
            workspace.remove(folder)
            found = {"digest": self._digests[base.name], "seconds": json.loads(said)}
            self._write("seconds", found)
        return {variant: found["seconds"][f"{n},{s}"] for (n, s), variant in POINTS.items()}

    def publish(self) -> None:
        """Measure the sampling times, and write docs/ablations.json, docs/ablations.md and the plots."""
        from bigr.pipeline.study import results, study_page

        every = [run for job in self.jobs for run in job.runs]
        base = next(run for run in every if run.variant.name == "base")
        seconds = self.sampling_seconds(base)
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
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=self.project, capture_output=True, text=True
        ).stdout.strip()
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
        variant = run.variant
        tags = {"bigr.study": "ablations", "ablations.variant": variant.name, "ablations.seed": str(run.seed)}
        tags["ablations.tables"] = ", ".join(tables_of(variant.name))
        with self._mlflow, self._records(f"not be told of {run.name}"):
            mark(self.project, self._environment(run)["BIGR_EXECUTION"], tags, figures)

    @contextlib.contextmanager
    def _records(self, what: str) -> Any:
        """MLflow out of reach does not stop the study."""
        try:
            yield
        except Exception as error:
            log.warning("MLflow could %s: %s", what, masked(str(error)).splitlines()[:1])

    def _clone(self, job: Job) -> Path:
        first = self._digests[job.runs[0].name][:12]
        return self.project / workspace.FOLDER / f"{_CLONE}{job.name}-{first}"

    def _forget_stale_clones(self) -> None:
        """Clones of a killed study of other code or settings."""
        for folder in (self.project / workspace.FOLDER).glob(f"{_CLONE}*"):
            if folder not in {self._clone(job) for job in self.jobs}:
                workspace.remove(folder)

    def _read(self, name: str) -> dict[str, Any] | None:
        path = self.project / STATE / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def _write(self, name: str, value: dict[str, Any]) -> None:
        path = self.project / STATE / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".new").write_text(json.dumps(value))
        path.with_suffix(".new").replace(path)


def main() -> int:
    """Do what is left of the study in this folder, and write its page. Exit status 2: a mistake, or a failed run."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(MaskingFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    try:
        study = Study(Path.cwd(), runs())
        jobs = study.open_jobs()
        log.info("%d runs, %d to do", sum(len(j.runs) for j in study.jobs), sum(len(j.runs) for j in jobs))
        with ThreadPoolExecutor(study.lanes) as lanes:
            for one in as_completed([lanes.submit(study.run_job, job, log.info, log.debug) for job in jobs]):
                if one.exception():
                    study.stopping.set()
                one.result()
        study.publish()
    except KeyboardInterrupt:
        log.error("interrupted; `make ablations` continues")
        os._exit(130)  # at once: the stages end with this process, see flows/guard.py
    except (BigrError, StageFailed, StageKilled) as error:
        log.error("%s; what is done stays done", error)
        return EXIT_USER_ERROR
    log.info("docs/ablations.md says what was found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
