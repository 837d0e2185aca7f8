"""The chain of an artifact: the execution that wrote it, its inputs, and theirs, back to what no stage wrote.

Each step combines DVC's record and MLflow's run of the same execution: those that read the same hashes. Either suffices
alone; the step then says so.
"""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigr.pipeline.lineage.records import Content, Record, Records
from bigr.pipeline.lineage.runs import RecordedRun, Runs
from bigr.pipeline.lineage.target import NamedArtifact, find
from bigr.tracking.store import code_digest


@dataclass(frozen=True)
class Step:
    """One artifact and the execution that wrote it; `stage` is empty where none did.

    inputs: data that the execution read; settings: by DVC's record, else by MLflow's; execution: the name of the parent
    of `run`; subject: the first line of the commit's message.
    """

    artifact: Content
    notes: tuple[str, ...]
    stage: str = ""
    command: str = ""
    settings: dict[str, Any] | None = None
    inputs: tuple[Content, ...] = ()
    code: tuple[Content, ...] = ()
    recorded_in: tuple[str, ...] = ()
    run: RecordedRun | None = None
    execution: str = ""
    subject: str = ""


@dataclass(frozen=True)
class Chain:
    """starts: the artifacts asked for; steps: these and all their sources, each once, an artifact before its sources.

    trouble: why MLflow could not be read; empty where it could.
    """

    steps: tuple[Step, ...]
    starts: tuple[Content, ...]
    trouble: str

    def step(self, content: Content) -> Step:
        """The step of an artifact in the chain."""
        return next(s for s in self.steps if (s.artifact.path, s.artifact.md5) == (content.path, content.md5))


def trace(root: Path, text: str, revision: str | None = None) -> Chain:
    """The chain of the artifact that `text` names: a path, `md5:HASH`, the id of a run, a version in the registry.

    revision: of git, or an experiment of DVC, whose dvc.lock then counts. Raises `BigrError` where there is no such
    artifact, or where the present version is not recorded.
    """
    records, runs = Records(root, revision), Runs(root)
    targets = find(root, text, records, runs, revision=revision is not None)
    steps: dict[tuple[str, str], Step] = {}
    waiting = list(targets)
    while waiting:
        target = waiting.pop(0)
        key = target.artifact.path, target.artifact.md5
        if key in steps:
            continue
        steps[key] = step = _step(root, target, records, runs)
        waiting += [NamedArtifact(content) for content in step.inputs]
    return Chain(tuple(steps.values()), tuple(target.artifact for target in targets), runs.trouble)


def _step(root: Path, target: NamedArtifact, records: Records, runs: Runs) -> Step:
    artifact = target.artifact
    note: tuple[str, ...] = (target.note,) if target.note else ()
    record = records.writer(artifact.path, artifact.md5)
    found = [target.run] if target.run else runs.writers(artifact.path, artifact.md5)
    run = found[0] if found else None
    if record and found:
        run = next((run for run in found if _agree(record, run)), None)
        if run is None and target.run:  # asked for: another execution's record does not count
            record, run = None, target.run
        elif run is None:
            note += (f"MLflow has no run of this execution, but {found[0].id} wrote the same from other inputs",)
    if record is None and run is None:
        return Step(artifact, (*note, *_origin(artifact, records)))
    if run is None and not found and not runs.trouble:
        note += ("MLflow has no run that wrote it",)
    deps = _deps(record, run, records, {} if record or run is None else runs.code(run))
    inputs = tuple(dict.fromkeys(dep for dep in deps if not dep.is_code))
    if not inputs:
        note += ("it read no files but code",)
    return Step(
        artifact,
        note,
        stage=record.stage if record else run.stage if run else "",
        command=record.command if record else f"bigr run {run.stage}" if run else "",
        settings=dict(record.settings if record else run.settings if run else {}),
        inputs=inputs,
        code=tuple(dep for dep in deps if dep.is_code),
        recorded_in=tuple(filter(None, [record.source if record else "", "MLflow" if run else ""])),
        run=run,
        execution=runs.name(run.parent) if run and run.parent else "",
        subject=_subject(root, run.commit) if run and run.commit else "",
    )


def _agree(record: Record, run: RecordedRun) -> bool:
    """Whether both read the same hashes. (Paths may differ: MLflow's tags allow fewer characters.)"""
    if run.code and run.code != code_digest({dep.path: dep.md5 for dep in record.deps}):
        return False
    return {dep.md5 for dep in record.deps if not (dep.is_code and run.code)} <= set(run.deps.values())


def _deps(record: Record | None, run: RecordedRun | None, records: Records, code: Mapping[str, str]) -> list[Content]:
    """Everything that was read. Only the run has models and weights that settings name: DVC does not track those."""
    deps = list(record.deps) if record else []
    known = {dep.md5 for dep in deps}
    for path, md5 in {**run.deps, **code}.items() if run else ():
        if md5 not in known:
            deps.append(Content(path, md5, files=len(records.listing(md5)) or None))
    return deps


def _origin(artifact: Content, records: Records) -> list[str]:
    if artifact.path in records.outs:
        return ["who wrote this version is not recorded: neither DVC nor MLflow has it; the chain ends here"]
    return ["given: no stage writes it"]


def _subject(root: Path, commit: str) -> str:
    """The first line of a commit's message; empty where this repository lacks the commit, or git is not installed."""
    words = ["git", "-C", str(root), "log", "-1", "--format=%s", commit, "--"]
    try:
        return subprocess.run(words, capture_output=True, text=True, errors="replace").stdout.strip()
    except OSError:
        return ""
