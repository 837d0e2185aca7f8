"""The gate: whether a challenger may take the champion's place, metric by metric.

A challenger passes where no metric is worse than the champion's by more than its tolerance, none is beyond its limit,
and at least one is better. Without a champion the limits alone decide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bigr.runtime.errors import BigrError
from bigr.runtime.metric_directions import LOWER_IS_BETTER

if TYPE_CHECKING:
    from bigr.config import PromotionMetric

Verdict = Literal["better", "equal", "tolerated", "worse", "beyond its limit", "within its limit", "no limit"]
FAILED = ("worse", "beyond its limit")


@dataclass(frozen=True)
class GateRow:
    """One metric's comparison. worst: the worst value that passes, by tolerance and limit; None: any passes."""

    name: str
    champion: float | None
    challenger: float
    worst: float | None
    verdict: Verdict
    why: str = ""


def compare(
    comparisons: "Sequence[PromotionMetric]", challenger: Mapping[str, float], champion: Mapping[str, float] | None
) -> list[GateRow]:
    """A row for each configured metric. Raises `BigrError` for one that was not measured."""
    rows = []
    for comparison in comparisons:
        for metrics in (challenger, champion):
            if metrics is not None and comparison.name not in metrics:
                raise BigrError(
                    f"promotion.metrics names {comparison.name}, which the evaluation did not measure; it measured "
                    f"{', '.join(sorted(metrics))}"
                )
        theirs = None if champion is None else champion[comparison.name]
        rows.append(_row(comparison, challenger[comparison.name], theirs))
    return rows


def decide(rows: Sequence[GateRow]) -> tuple[bool, str]:
    """Whether the challenger passes, and why."""
    failures = [row.why for row in rows if row.verdict in FAILED]
    if failures:
        return False, "; ".join(failures)
    better = [row.name for row in rows if row.verdict == "better"]
    if any(row.champion is not None for row in rows):
        if not better:
            return False, "no metric is better than the champion's"
        return True, f"better in {', '.join(better)}, in no metric worse by more than its tolerance"
    return True, "the first champion, within all limits"


def _row(comparison: "PromotionMetric", challenger: float, champion: float | None) -> GateRow:
    name, limit = comparison.name, comparison.limit
    sign = 1 if name in LOWER_IS_BETTER else -1  # × sign, less is better
    worst = limit
    if champion is not None:
        tolerance = comparison.tolerance * (abs(champion) if comparison.relative else 1.0)
        allowed = champion + sign * tolerance
        worst = allowed if limit is None else sign * min(sign * allowed, sign * limit)
    if limit is not None and sign * challenger > sign * limit:
        side = "at most" if sign > 0 else "at least"
        why = f"{name} is {challenger:.4g}, and a champion has {side} {limit:g}"
        return GateRow(name, champion, challenger, worst, "beyond its limit", why)
    if champion is None:
        return GateRow(name, champion, challenger, worst, "no limit" if limit is None else "within its limit")
    if sign * challenger > sign * allowed:
        why = f"{name} is {challenger:.4g}, worse than the champion's {champion:.4g} by more than {tolerance:.2g}"
        return GateRow(name, champion, challenger, worst, "worse", why)
    verdict: Verdict = "better" if sign * challenger < sign * champion else "tolerated"
    return GateRow(name, champion, challenger, worst, "equal" if challenger == champion else verdict)
