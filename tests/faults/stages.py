"""The stages of a tiny project, one at a time, and what they left."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests import scratch

STAGES: list[str] = list(YAML(typ="safe").load(scratch.ROOT / "dvc.yaml")["stages"])


def again(project: Path, stage: str) -> str:
    """All that a forced run of the stage alone says."""
    return scratch.run(project, "dvc", "repro", "--single-item", "--force", "--no-run-cache", stage)


def results(project: Path, stage: str) -> dict[str, Any] | None:
    """Hashes of the stage's outputs as dvc.lock holds them; None where one is not there."""
    outs = YAML(typ="safe").load(project / "dvc.lock")["stages"][stage]["outs"]
    if not all((project / out["path"]).exists() for out in outs):
        return None
    return {out["path"]: out["md5"] for out in outs}
