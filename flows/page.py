"""A flow run's page in Prefect: decision, samples, links to the records, stages, metrics, settings of its own."""

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigr.runtime.dotted_keys import flatten
from bigr.runtime.masking import masked
from bigr.tracking.store import RUN_LIST, RUN_PAGE
from flows.execution import Outcome
from flows.gate import GateResult

_DOES_NOT_COMPETE = (
    "This model does not compete for `champion`: the run has settings of its own. `promote: true` among its parameters "
    "lets it; so does `bigr promote` after `dvc exp apply`."
)
METRICS, PICTURE = Path("outputs/metrics.json"), Path("outputs/samples.png")


@dataclass
class Page:
    """Filled in while the flow runs. competes: whether the model may become champion."""

    name: str
    workspace: Path
    overrides: Mapping[str, Any]
    stages: dict[str, Outcome | str] = field(default_factory=dict)
    gate: GateResult | None = None
    competes: bool = True
    record: str = ""

    def text(self) -> str:
        """The page, as Markdown."""
        parts = [f"# {self.name}", self._gate(), self._picture(), self._records(), self._stages()]
        return "\n\n".join(part for part in [*parts, self._metrics(), self._settings()] if part)

    def _stages(self) -> str:
        rows = [
            (name, end.state, f"{end.seconds:.1f} s") if isinstance(end, Outcome) else (name, end, "")
            for name, end in self.stages.items()
        ]
        return _table("Stages", ("stage", "state", "time"), rows)

    def _gate(self) -> str:
        if self.gate is None:
            return "" if self.competes or not self._made("evaluation") else f"## Promotion\n\n{_DOES_NOT_COMPETE}"
        said = [self.gate.summary, *filter(None, [self.gate.measured_again])]
        summary = ". ".join(sentence[:1].upper() + sentence[1:] for sentence in said)
        keys = ("champion", "challenger", "worst")
        rows = [
            (row["name"], *("—" if row[key] is None else _number(row[key]) for key in keys), row["verdict"])
            for row in self.gate.rows
        ]
        head = ("metric", "champion", "challenger", "at worst", "verdict")
        return _table(f"Promotion\n\n{summary}.", head, rows) or f"## Promotion\n\n{summary}."

    def _metrics(self) -> str:
        path = self.workspace / METRICS
        measured = flatten(json.loads(path.read_text())) if self._made("evaluation") and path.exists() else {}
        return _table("Metrics", ("metric", "value"), [(name, _number(value)) for name, value in measured.items()])

    def _settings(self) -> str:
        rows = [(key, f"**{json.dumps(value)}**") for key, value in self.overrides.items()]
        return _table("Settings that differ from params.yaml", ("setting", "value"), rows)

    def _picture(self) -> str:
        path = self.workspace / PICTURE
        if not (self._made("samples") and path.exists()):
            return ""
        return f"## Samples\n\n![Samples](data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()})"

    def _made(self, stage: str) -> bool:
        """Whether this run brought the stage up to date: an older run's results are not shown as this one's."""
        return isinstance(self.stages.get(stage), Outcome)

    def _records(self) -> str:
        about = "its stages' curves, metrics, pictures and model files"
        if not self.record:
            return f"## Records in MLflow\n\n- [All runs]({mlflow_url()})"
        runs = f"{self.record.rpartition('/')[0]}?{RUN_LIST}"
        return f"## Records in MLflow\n\n- [This run]({self.record}?{RUN_PAGE}): {about}\n- [All runs]({runs})"


def mlflow_url() -> str:
    """The address of MLflow's pages: the tracking server, or the one that `make services` and `make ui` start.

    Without user and password, since Prefect keeps the page.
    """
    tracking = os.environ.get("MLFLOW_TRACKING_URI", "")
    local = f"http://127.0.0.1:{os.environ.get('MLFLOW_PORT', '5000')}"
    return (masked(tracking, "") if tracking.startswith("http") else local).rstrip("/")


def record(project: Path, run_id: str) -> str:
    """The address of the MLflow run that holds those of this flow run's stages; empty if there is none."""
    from bigr.tracking.store import Store, location

    uri = location(project)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return ""
    store = Store(project)
    found = store.runs(bigr__execution=run_id, bigr__kind="pipeline")
    return f"{mlflow_url()}/#/experiments/{store.experiment}/runs/{found[0].info.run_id}" if found else ""


def _table(title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [f"## {title}", "", _row(head), _row(("---",) * len(head)), *map(_row, rows)]
    return "\n".join(lines)


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
