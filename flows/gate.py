"""The gate after the pipeline: `bigr promote` in a process of its own, and its decision."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigr import config
from bigr.pipeline.dvcfile import StageSpec
from flows.execution import command, run_logged

NAME, CHAMPION = "bigr", "champion"
MODELS, SAMPLES = ("models/tokenizer", "models/bigr"), "outputs/samples.npz"
NOT_PROMOTED = 3
"""The exit status of `bigr promote` where another version is the champion; the decision is printed all the same."""


@dataclass(frozen=True)
class GateResult:
    """What `bigr promote --json` says. state: of the task; summary: one line; rows: one for each metric compared;
    measured_again: what was measured again for the comparison, if anything."""

    state: str
    summary: str
    rows: tuple[Mapping[str, Any], ...]
    measured_again: str = ""


def applies(graph: Mapping[str, StageSpec], chosen: list[str]) -> bool:
    """Whether this run has measured a model."""
    return "evaluation" in chosen and {*MODELS} <= {out for spec in graph.values() for out in spec.outs}


def has_judged(project: Path, workspace: Path) -> bool:
    """Whether the registry has a decision on the model of `workspace`. Raises MLflow's own errors.

    There is none where the run that made the model ended before the gate, or was not a flow run.
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


def promote(workspace: Path, environment: Mapping[str, str], log: Callable[[str], None]) -> GateResult:
    """Let the model in `workspace` compete. Raises `StageFailed` where it cannot be compared, or `StageKilled`."""
    words = [command("bigr"), "promote", "--json"]
    said = run_logged("promote", workspace, words, environment, log, accepted=(0, NOT_PROMOTED))
    decision = json.loads(next(line for line in reversed(said) if line.startswith("{")))
    state = "Promoted" if decision["promoted"] else "Champion" if decision["is_champion"] else "NotPromoted"
    return GateResult(state, decision["summary"], tuple(decision["rows"]), decision["measured_again"])
