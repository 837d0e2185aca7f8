"""The gate after the pipeline: `bigr promote`, in a process of its own, and what it decided."""

import json
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigr.pipeline import StageSpec
from flows.execution import StageFailed, StageKilled, killer, lines, started_in

MODELS = ("models/tokenizer", "models/bigr")
NOT_PROMOTED = 3
"""The exit status of `bigr promote` where the champion is another version; the decision is told all the same."""


@dataclass(frozen=True)
class Decision:
    """What `bigr promote --json` says: the state of its task, one line, and a row for each figure compared."""

    state: str
    summary: str
    rows: tuple[Mapping[str, Any], ...]


def applies(graph: Mapping[str, StageSpec], chosen: list[str]) -> bool:
    """Whether there is something to compare: a model, measured by this run."""
    return "evaluation" in chosen and {*MODELS} <= {out for spec in graph.values() for out in spec.outs}


def promote(workspace: Path, environment: Mapping[str, str], log: Callable[[str], None]) -> Decision:
    """Let the model in `workspace` compete. Raises `StageFailed` where nothing compares, or `StageKilled`."""
    said: list[str] = []
    with started_in(workspace, [sys.executable, "-m", "bigr", "promote", "--json"], environment) as process:
        for line in lines(process):
            log(line)
            said.append(line)
        status = process.wait()
    if number := killer(status):
        raise StageKilled(f"promote: killed by {signal.Signals(number).name}")
    if status not in (0, NOT_PROMOTED):
        raise StageFailed(f"promote: {said[-1] if said else f'failed with status {status}'}")
    told = json.loads(next(line for line in reversed(said) if line.startswith("{")))
    state = "Promoted" if told["promoted"] else "Champion" if told["is_champion"] else "NotPromoted"
    return Decision(state, told["summary"], tuple(told["rows"]))
