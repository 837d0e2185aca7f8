"""A chain as a tree of text, or as JSON."""

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from rich.filesize import decimal

from bigr.pipeline.lineage.chain import Chain, Step
from bigr.pipeline.lineage.records import Content

WIDTH = 100
_NARROWEST = 60
_LABEL = 10
_SUBJECT = 60
_TIE = "\0"  # a space at which no line is broken


def tree(chain: Chain) -> Iterator[str]:
    """Lines of text: each artifact with the facts of its execution, and its inputs indented below it."""
    if chain.trouble:
        yield from (*textwrap.wrap(chain.trouble, WIDTH, break_long_words=False, break_on_hyphens=False), "")
    seen: set[tuple[str, str]] = set()
    for start in chain.starts:
        yield from _branch(chain, chain.step(start), seen, "", "")


def _branch(chain: Chain, step: Step, seen: set[tuple[str, str]], head: str, rest: str) -> Iterator[str]:
    key = step.artifact.path, step.artifact.md5
    if key in seen:
        yield f"{head}{_title(step.artifact)} (above)"
        return
    seen.add(key)
    yield f"{head}{_title(step.artifact)}"
    stem = f"{rest}│  " if step.inputs else f"{rest}   "
    for label, text in _facts(step):
        width = max(_NARROWEST, WIDTH - len(stem) - _LABEL)
        for number, line in enumerate(textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)):
            yield f"{stem}{'' if number else label:<{_LABEL}}{line.replace(_TIE, ' ')}"
    for number, content in enumerate(step.inputs, start=1):
        last = number == len(step.inputs)
        twig, next_rest = ("└─ ", "   ") if last else ("├─ ", "│  ")
        yield from _branch(chain, chain.step(content), seen, f"{rest}{twig}", f"{rest}{next_rest}")


def _title(content: Content) -> str:
    size = f", {decimal(content.size)}" if content.size is not None else ""
    files = f", {content.files:,} files" if content.files is not None else ""
    return f"{content.path}  {_short(content.md5)}{size}{files}"


def _facts(step: Step) -> Iterator[tuple[str, str]]:
    if step.stage:
        yield "stage", f"{step.stage} ({step.command})"
    if step.settings:
        yield "settings", _settings(step.settings, step.stage)
    if run := step.run:
        execution = f' of "{step.execution}"' if step.execution else ""
        yield "run", f"{run.id}{execution}, {run.started:%Y-%m-%d %H:%M} UTC, {run.status.lower()}"
        if run.commit:
            dirty = ", with uncommitted changes" if run.dirty else ""
            subject = textwrap.shorten(step.subject, _SUBJECT, placeholder=" …")
            yield "commit", f"{run.commit[:10]}{dirty}" + (f": {subject}" if subject else "")
        else:
            yield "commit", "none: the run was in no git repository"
    elif step.stage:
        yield "commit", "unknown: only the run in MLflow has it"
    if step.recorded_in:
        yield "record", " and ".join(step.recorded_in)
    for note in step.notes:
        yield "note", note


def _settings(settings: Mapping[str, Any], stage: str) -> str:
    """Settings as `key value`; those of the stage's own section last, without its name."""
    own = f"{stage}."
    other = [f"{key}{_TIE}{_value(value)}" for key, value in settings.items() if not key.startswith(own)]
    mine = [f"{key.removeprefix(own)}{_TIE}{_value(value)}" for key, value in settings.items() if key.startswith(own)]
    return "; ".join([*other, *([f"{stage}: {', '.join(mine)}"] if mine else [])])


def _value(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value)).replace(" ", _TIE)


def _short(md5: str) -> str:
    return f"md5:{md5[:10]}{'.dir' if md5.endswith('.dir') else ''}"


def as_json(chain: Chain) -> dict[str, Any]:
    """The chain with whole hashes: `artifacts` (those asked for) and `steps`, whose `inputs` name other steps."""
    return {
        "artifacts": [{"path": content.path, "md5": content.md5} for content in chain.starts],
        "steps": [_step(step) for step in chain.steps],
        "trouble": chain.trouble or None,
    }


def _step(step: Step) -> dict[str, Any]:
    run = step.run
    return {
        **asdict(step.artifact),
        "stage": step.stage or None,
        "command": step.command or None,
        "settings": step.settings,
        "commit": run.commit if run else None,
        "dirty": run.dirty if run and run.commit else None,
        "run": {
            "id": run.id,
            "execution": step.execution or None,
            "execution_id": run.parent or None,
            "started": run.started.isoformat(),
            "status": run.status,
        }
        if run
        else None,
        "inputs": [{"path": content.path, "md5": content.md5} for content in step.inputs],
        "code": [{"path": content.path, "md5": content.md5} for content in step.code],
        "recorded_in": list(step.recorded_in),
        "notes": list(step.notes),
    }
