"""The headline: the few metrics that `dvc metrics` and `dvc exp show` print, under names short enough for a column."""

import math
from collections.abc import Mapping
from typing import Any

HEADLINE = {
    "label_agreement": "samples.label_agreement",
    "caption_top1": "retrieval.top1",
    "attributes": "attributes.all",
    "over_floor": "samples.over_floor",
    "fid": "samples.fid",
    "precision": "samples.precision",
    "recall": "samples.recall",
    "psnr": "reconstructions.psnr",
    "probe_top1": "probe.best_top1",
    "knn_top1": "knn.best_top1",
}
"""Name in headline.json → name in metrics.json, `<part>.<name>`; `retrieval` and `attributes` are of texts."""


def headline(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The headline of the content of metrics.json: name → value, without metrics that were not measured."""
    return {short: value for short, name in HEADLINE.items() if (value := measured(metrics, name)) is not None}


def in_words(metrics: Mapping[str, float]) -> str:
    """The headline of metrics `<part>.<name>` → value as a text: "label_agreement 0.984, over_floor 1.65"."""
    return ", ".join(f"{short} {metrics[name]:.4g}" for short, name in HEADLINE.items() if name in metrics)


def measured(metrics: Mapping[str, Any], name: str) -> float | None:
    """The metric `<part>.<name>`, or None if it is missing or not a finite number."""
    part, _, own = name.partition(".")
    found = metrics.get(part)
    value = found.get(own) if isinstance(found, Mapping) else None
    return value if isinstance(value, int | float) and math.isfinite(value) else None
