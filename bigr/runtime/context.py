"""What a stage receives besides its settings: the project's folder, and a report for its metrics and pictures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


class Report:
    """Receives the metrics and pictures of a stage. This base class discards them."""

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Report metrics by name: with `step` points of curves, without it final results."""

    def picture(self, name: str, path: Path, step: int | None = None) -> None:
        """Report a picture file as `name` (no extension), of a step of the training where `step` is given."""


@dataclass(frozen=True)
class Context:
    """The folder that a stage works in, and where it reports.

    root: the project folder; every path of a stage is below it.
    fingerprint: a hash of everything that the result depends on (code, settings, inputs). A checkpoint is resumed only
        where it was written under the same fingerprint.
    report: receives metrics and pictures.
    """

    root: Path
    fingerprint: str = ""
    report: Report = field(default_factory=Report)
