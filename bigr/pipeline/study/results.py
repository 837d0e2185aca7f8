"""The study's results: every run's metrics, kept in docs/ablations.json, and how they compare with the paper's.

Means and deviations are over seeds; the deviation is the sample's (n − 1). Two variants are compared seed by seed: they
share the tokenizer of their seed, so their difference varies less than either. The p value is that of the permutation
test of these differences: the share of all ways to give them signs whose mean is as far from 0. With n seeds it is at
least 2 / 2ⁿ.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bigr.pipeline.study.tables import BASE, Table
from bigr.runtime.errors import BigrError
from bigr.runtime.files import write_json
from bigr.runtime.metric_directions import LOWER_IS_BETTER

SIGNIFICANT = 0.05
"""The largest p of a decided order."""
LARGEST = 16
"""Seeds up to which the test is exact."""


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

    agree: how many of `seeds` seeds here have this order; apart: the mean over seeds by which `better` is better here;
    p: of the permutation test that there is no difference.
    """

    table: str
    column: str
    better: str
    worse: str
    paper: tuple[float, float]
    here: tuple[float, float]
    agree: int
    seeds: int
    apart: float
    p: float

    @property
    def verdict(self) -> str:
        """Whether the order here is the paper's or the opposite, where p is below 0.05; else undecided."""
        if not self.p < SIGNIFICANT:
            return "undecided"
        return "as in the paper" if self.apart > 0 else "the other way round"


def claims(table: Table, results: Results) -> list[Claim]:
    """The paper's order of the variants in each column, neighbouring pair by pair, beside ours."""
    found = []
    for place, key in enumerate(table.columns):
        sign = 1 if key in LOWER_IS_BETTER else -1
        rows = [row for row in table.rows if row.variant.name in results.figures]  # the others came after the study
        known = [(value, row) for row in rows if (value := row.paper[place]) is not None]
        known.sort(key=lambda pair: sign * pair[0])
        for (first, better), (second, worse) in pairwise(known):
            ours, theirs = results.values(better.variant.name, key), results.values(worse.variant.name, key)
            apart = [sign * (b - a) for a, b in zip(ours, theirs, strict=True)]
            agree = sum(d > 0 for d in apart)
            here = results.mean(better.variant.name, key), results.mean(worse.variant.name, key)
            mean, p = statistics.fmean(apart), p_value(apart)
            labels = better.label, worse.label
            found.append(Claim(table.name, key, *labels, (first, second), here, agree, len(ours), mean, p))
    return found


def p_value(differences: Sequence[float]) -> float:
    """Two-sided p of the exact paired permutation test: of `differences` with mean 0. 1 where there is none."""
    if len(differences) < 2 or not any(differences):
        return 1.0
    from scipy.stats import permutation_test

    tested = permutation_test(
        (np.asarray(differences),), np.mean, permutation_type="samples", n_resamples=2**LARGEST, vectorized=True
    )
    return float(tested.pvalue)


def against_base(results: Results, variant: str, key: str) -> float:
    """p of a variant's difference from `base`, seed by seed."""
    pairs = zip(results.values(variant, key), results.values(BASE.name, key), strict=True)
    return p_value([ours - theirs for ours, theirs in pairs])


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
