"""The gate after the pipeline: `bigr promote`, in a process of its own, and what it decided."""

import json
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigr import config
from bigr.pipeline.dvcfile import StageSpec
from flows.execution import StageFailed, StageKilled, killer, lines, started_in

NAME, CHAMPION = "bigr", "champion"
MODELS, SAMPLES = ("models/tokenizer", "models/bigr"), "outputs/samples.npz"
NOT_PROMOTED = 3
"""The exit status of `bigr promote` where the champion is another version; the decision is told all the same."""


@dataclass(frozen=True)
class Decision:
    """What `bigr promote --json` says: the state of its task, one line, a row for each metric compared, and what was
    measured again to compare them, if anything."""

    state: str
    summary: str
    rows: tuple[Mapping[str, Any], ...]
    measured_again: str = ""


def applies(graph: Mapping[str, StageSpec], chosen: list[str]) -> bool:
    """Whether there is something to compare: a model, measured by this run."""
    return "evaluation" in chosen and {*MODELS} <= {out for spec in graph.values() for out in spec.outs}


def has_judged(project: Path, workspace: Path) -> bool:
    """Whether the registry has the model of `workspace`, with a decision. Fails as MLflow does.

    It has none where the run that made the model ended before the gate, or was not a flow run.
    """
    from bigr.tracking.store import Store

    lock = config.read(workspace / "dvc.lock").get("stages", {})
    hashes = {out["path"]: out.get("md5") for stage in lock.values() for out in stage.get("outs", [])}
    same = " and ".join(f"tag.`dvc.{path}` = '{hashes.get(path)}'" for path in (*MODELS, SAMPLES))
    client = Store(project).client
    versions = client.search_model_versions(f"name = '{NAME}' and {same}")
    if not versions or any("bigr.gate" in version.tags for version in versions):
        return bool(versions)
    champion = client.get_registered_model(NAME).aliases.get(CHAMPION)  # made so by hand
    return str(champion) in {str(version.version) for version in versions}


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
    return Decision(state, told["summary"], tuple(told["rows"]), told["measured_again"])
