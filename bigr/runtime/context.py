"""What a stage is given besides its settings: where it runs, and whom it tells.

A stage is a function `run(settings, context)`. It reads and writes below `context.root`, and reports curves, figures
and pictures through `context.report`. It does not know MLflow; `bigr.pipeline.runner` puts a tracking report behind
this interface, a test may leave the silent one in place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


class Report:
    """Receives what a stage wants known. This base class is silent."""

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Report named figures; with `step` they are points of curves, without they are final results."""

    def picture(self, name: str, path: Path, step: int | None = None) -> None:
        """Report a picture file under `name` (no extension); `step` places it in time."""


@dataclass(frozen=True)
class Context:
    """Where a stage runs and whom it tells.

    root: the project folder; every path of a stage is below it.
    fingerprint: names everything that this execution's result depends on (code, settings, inputs). A training
        checkpoint is resumed only under the fingerprint that it was written under.
    report: receives curves, figures and pictures.
    """

    root: Path
    fingerprint: str = ""
    report: Report = field(default_factory=Report)
