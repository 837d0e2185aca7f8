"""The study's results: every run's metrics, kept in docs/ablations.json, and how they compare with the paper's.

Means and deviations (n − 1) are over seeds. Two variants are compared seed by seed: they share its tokenizer.
"""

import json
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from bigr.pipeline.study.tables import Table
from bigr.runtime.errors import BigrError
from bigr.runtime.files import write_json
from bigr.runtime.metric_directions import LOWER_IS_BETTER


@dataclass(frozen=True)
class Results:
    """figures: variant → seed → key of metrics.json → value; seconds: variant → measured seconds an image (figure 3).

    settings: those that differ from params.yaml; minutes: the sum over all runs, of which `lanes` ran in parallel.
    """

    figures: Mapping[str, Mapping[int, Mapping[str, float]]]
    seconds: Mapping[str, float]
    settings: Mapping[str, Any]
    minutes: float
    lanes: int
    commit: str
    machine: str

    def seeds(self) -> list[int]:
        """The seeds of the runs."""
        return sorted({seed for runs in self.figures.values() for seed in runs})

    def values(self, variant: str, key: str) -> list[float]:
        """A variant's metric under each seed."""
        return [figures[key] for _, figures in sorted(self.figures[variant].items())]

    def mean(self, variant: str, key: str) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.values(variant, key))

    def deviation(self, variant: str, key: str) -> float:
        """The standard deviation over seeds; NaN for a single seed."""
        values = self.values(variant, key)
        return statistics.stdev(values) if len(values) > 1 else float("nan")


@dataclass(frozen=True)
class Claim:
    """The paper ranks `better` before `worse` in a column of a table.

    agree, against: how many of `seeds` seeds here have this order, and the opposite; a tie is neither.
    """

    table: str
    column: str
    better: str
    worse: str
    paper: tuple[float, float]
    here: tuple[float, float]
    agree: int
    against: int
    seeds: int

    @property
    def verdict(self) -> str:
        """Whether all seeds agree with the paper, or all contradict it; else undecided."""
        if self.agree == self.seeds:
            return "as in the paper"
        return "the other way round" if self.against == self.seeds else "undecided"


def claims(table: Table, results: Results) -> list[Claim]:
    """The paper's order of the variants in each column, neighbouring pair by pair, beside ours."""
    found = []
    for place, key in enumerate(table.columns):
        sign = 1 if key in LOWER_IS_BETTER else -1
        known = [(value, row) for row in table.rows if (value := row.paper[place]) is not None]
        known.sort(key=lambda pair: sign * pair[0])
        for (first, better), (second, worse) in pairwise(known):
            ours, theirs = results.values(better.variant.name, key), results.values(worse.variant.name, key)
            apart = [sign * (b - a) for a, b in zip(ours, theirs, strict=True)]
            agree, against = sum(d > 0 for d in apart), sum(d < 0 for d in apart)
            here = results.mean(better.variant.name, key), results.mean(worse.variant.name, key)
            labels = better.label, worse.label
            found.append(Claim(table.name, key, *labels, (first, second), here, agree, against, len(ours)))
    return found


def save(path: Path, results: Results) -> None:
    """Write docs/ablations.json, atomically."""
    write_json(path, asdict(results))


def load(path: Path) -> Results:
    """Read docs/ablations.json. Raises `BigrError` where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BigrError(f"{path}: no such file; run `make ablations`") from None
    figures = {name: {int(seed): found for seed, found in runs.items()} for name, runs in values["figures"].items()}
    return Results(**{**values, "figures": figures})
