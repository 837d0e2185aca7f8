"""What a flow run shows on its page in Prefect: stages, figures, settings, a picture, and the way to the records."""

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.execution import Outcome

METRICS, PICTURE = Path("outputs/metrics.json"), Path("outputs/samples.png")


@dataclass
class Page:
    """Filled in while the flow runs; `text` is Markdown."""

    name: str
    workspace: Path
    settings: Mapping[str, Any]
    overrides: Mapping[str, Any]
    stages: dict[str, Outcome | str] = field(default_factory=dict)

    def text(self) -> str:
        """The whole page."""
        parts = [f"# {self.name}", self._stages(), self._figures(), self._picture(), self._settings(), self._links()]
        return "\n\n".join(part for part in parts if part)

    def _stages(self) -> str:
        rows = [
            (name, end.state, f"{end.seconds:.1f} s") if isinstance(end, Outcome) else (name, end, "")
            for name, end in self.stages.items()
        ]
        return _table("Stages", ("stage", "state", "time"), rows)

    def _figures(self) -> str:
        path = self.workspace / METRICS
        if not path.exists():
            return ""
        return _table("Metrics", ("figure", "value"), [(k, _number(v)) for k, v in _flat(json.loads(path.read_text()))])

    def _picture(self) -> str:
        path = self.workspace / PICTURE
        if not path.exists():
            return ""
        return f"## Samples\n\n![Samples, one column a class](data:image/png;base64,{_base64(path)})"

    def _settings(self) -> str:
        rows = [(key, _mark(value, key in self.overrides)) for key, value in _flat(self.settings)]
        note = (
            f"`params.yaml`, {len(self.overrides)} overridden (bold)"
            if self.overrides
            else "`params.yaml` as it stands"
        )
        return _table("Settings", ("setting", "value"), rows, note)

    def _links(self) -> str:
        return f"## Records\n\n[MLflow]({mlflow_url()}): curves, figures, pictures and model files of each stage"


def picture_url(workspace: Path) -> str | None:
    """The sample grid as a `data:` URL; None if there is none."""
    path = workspace / PICTURE
    return f"data:image/png;base64,{_base64(path)}" if path.exists() else None


def mlflow_url() -> str:
    """Where MLflow's pages are: the tracking server, or the one that `make services` and `make ui` start."""
    tracking = os.environ.get("MLFLOW_TRACKING_URI", "")
    local = f"http://127.0.0.1:{os.environ.get('MLFLOW_PORT', '5000')}"
    return (tracking if tracking.startswith("http") else local).rstrip("/")


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _table(title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]], note: str = "") -> str:
    if not rows:
        return ""
    lines = [f"## {title}", "", *([note, ""] if note else []), _row(head), _row(("---",) * len(head)), *map(_row, rows)]
    return "\n".join(lines)


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _flat(values: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        pairs += _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else [(f"{above}{key}", value)]
    return pairs


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def _mark(value: Any, overridden: bool) -> str:
    return f"**{json.dumps(value)}**" if overridden else json.dumps(value)
