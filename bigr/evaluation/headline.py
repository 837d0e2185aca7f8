"""The headline: those few of the evaluation's metrics by which models are compared at a glance.

The stage `evaluation` writes it as outputs/headline.json, which dvc.yaml names under `metrics`, so that
`dvc metrics show`, `dvc metrics diff` and `dvc exp show` fit a terminal. Its names are short, since each is a column
there. All metrics are in outputs/metrics.json.
"""

import math
from collections.abc import Mapping
from typing import Any

HEADLINE = {
    "label_agreement": "samples.label_agreement",
    "over_floor": "samples.over_floor",
    "fid": "samples.fid",
    "precision": "samples.precision",
    "recall": "samples.recall",
    "psnr": "reconstructions.psnr",
    "probe_top1": "probe.best_top1",
    "knn_top1": "knn.best_top1",
}
"""Name in headline.json → name in metrics.json, `<part>.<name>`."""


def headline(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The headline of the contents of metrics.json: name → value. What was not measured is not in it."""
    found = {short: measured(metrics, name) for short, name in HEADLINE.items()}
    return {short: value for short, value in found.items() if value is not None}


def in_words(metrics: Mapping[str, float]) -> str:
    """The headline of `<part>.<name>` → value, for a sentence: "label_agreement 0.984, over_floor 1.65"."""
    return ", ".join(f"{short} {metrics[name]:.4g}" for short, name in HEADLINE.items() if name in metrics)


def measured(metrics: Mapping[str, Any], name: str) -> float | None:
    """The metric `<part>.<name>`, or None where the part or the metric is missing, or its value is no finite number."""
    part, _, own = name.partition(".")
    found = metrics.get(part)
    value = found.get(own) if isinstance(found, Mapping) else None
    return value if isinstance(value, int | float) and math.isfinite(value) else None
