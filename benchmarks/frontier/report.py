"""The table, the JSON file and the plot of quality against speed."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import Machine

METRICS = {"over_floor": "fd ÷ floor", "agreement": "agreement", "precision": "precision", "recall": "recall"}
AXES = {"over_floor": "fd ÷ floor (lower is better)", "agreement": "agreement", "recall": "recall"}
LOOKS = {"flip": ("#2f6db3", 5), "mask": ("#d9822b", -12), "direct": ("#4a8f5b", 5), "x0": ("#7a5195", -12)}
"""Of each target: its colour, and how many points above a dot its label is."""


@dataclass(frozen=True)
class Row:
    """A point's settings and results: images a second, and the quality for each seed, a metric's values by its name."""

    name: str
    target: str
    sampling: Mapping[str, Any]
    images_per_second: float
    quality: Mapping[str, Sequence[float]]

    def mean(self, metric: str) -> float:
        """Over seeds."""
        return statistics.fmean(self.quality[metric])

    def deviation(self, metric: str) -> float:
        """The standard deviation over seeds, 0 for one seed."""
        values = self.quality[metric]
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def as_json(self) -> dict[str, Any]:
        """The fields, and each metric's mean and deviation."""
        summary = {metric: {"mean": self.mean(metric), "deviation": self.deviation(metric)} for metric in METRICS}
        return asdict(self) | {"summary": summary}


def on_the_frontier(rows: Sequence[Row], agreement: float) -> list[Row]:
    """The rows with this agreement that no other of them beats in speed and in distance."""
    allowed = [row for row in rows if row.mean("agreement") >= agreement]
    return [
        row
        for row in allowed
        if not any(
            other.images_per_second > row.images_per_second and other.mean("over_floor") < row.mean("over_floor")
            for other in allowed
        )
    ]


def table(rows: Sequence[Row], agreement: float) -> list[str]:
    """A Markdown table, fastest first; in bold what is on the frontier."""
    head = ["target", "n", "S", "order", "guidance", "temperature", "Gumbel", "images/s", *METRICS.values()]
    lines = [head, ["---"] * len(head)]
    chosen = on_the_frontier(rows, agreement)
    for row in sorted(rows, key=lambda row: -row.images_per_second):
        how, cells = row.sampling, []
        for metric in METRICS:
            scale, digits, unit = (1, 2, "") if metric == "over_floor" else (100, 1, " %")
            cells.append(f"{scale * row.mean(metric):.{digits}f} ± {scale * row.deviation(metric):.{digits}f}{unit}")
        start = f", from {how['guidance_start']:.0%}" if how["guidance_start"] else ""
        bits = f", bits {how['bit_noise']:g}" if row.target == "mask" else ""
        settings = [
            str(how["iterations"]),
            "—" if row.target == "direct" else _steps(how),
            how["order"],
            f"{how['guidance_scale']:g} {how['guidance_schedule']}{start}",
            f"{how['temperature']:g}",
            f"{how['gumbel_temperature']:g}{bits}",
        ]
        target = f"**{row.target}**" if row in chosen else row.target
        target += "" if row.name.startswith(row.target) else f", {row.name}"
        lines.append([target, *settings, f"{row.images_per_second:.0f}", *cells])
    return [f"| {' | '.join(line)} |" for line in lines]


def write(
    folder: Path, machine: Machine, rows: Sequence[Row], about: Mapping[str, Any], agreement: float, default: str
) -> None:
    """Write frontier.json, frontier.md and frontier.png. about: what else was measured; default: a row's name."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine.as_json(), **about, "rows": [row.as_json() for row in rows]}
    (folder / "frontier.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "frontier.md").write_text("\n".join(table(rows, agreement)) + "\n", encoding="utf-8")
    plot(folder / "frontier.png", machine, rows, default)


def plot(path: Path, machine: Machine, rows: Sequence[Row], default: str) -> None:
    """Draw each metric against images a second: a colour for each target, bars of one standard deviation over seeds."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter, ScalarFormatter

    figure = Figure(figsize=(8, 10), layout="constrained")
    panels = figure.subplots(len(AXES), sharex=True)
    for axes, (metric, title) in zip(panels, AXES.items(), strict=True):
        for target in dict.fromkeys(row.target for row in rows):
            own, (colour, above) = [row for row in rows if row.target == target], LOOKS[target]
            speeds, means = [row.images_per_second for row in own], [row.mean(metric) for row in own]
            deviations = [row.deviation(metric) for row in own]
            axes.errorbar(speeds, means, deviations, fmt="o", capsize=3, color=colour, label=target)
            for row, place in zip(own, zip(speeds, means, strict=True), strict=True):
                steps = "" if target == "direct" else f" S{_steps(row.sampling)}"
                text = f"n{row.sampling['iterations']}{steps}"
                axes.annotate(text, place, (5, above), textcoords="offset points", fontsize="small", color=colour)
        for row in rows:
            if row.name == default:
                ring = {"markersize": 11, "fillstyle": "none", "color": "0.2", "label": "the default settings"}
                axes.plot(row.images_per_second, row.mean(metric), "D", **ring)
        axes.set_ylabel(title)
        axes.margins(x=0.1)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if metric != "over_floor":
            axes.yaxis.set_major_formatter(PercentFormatter(1))
    panels[-1].set_xscale("log")
    for which in ("major", "minor"):
        panels[-1].tick_params(axis="x", which=which, labelsize="small")
    panels[-1].xaxis.set_major_formatter(ScalarFormatter())
    panels[-1].xaxis.set_minor_formatter(ScalarFormatter())
    panels[-1].set_xlabel("images a second")
    panels[0].legend(loc="best", frameon=False)
    figure.suptitle(f"{machine.device}, {machine.threads} threads, {machine.precision}", fontsize="medium")
    figure.savefig(path, dpi=120)


def _steps(sampling: Mapping[str, Any]) -> str:
    """S, as in 8 or 3–12."""
    steps = sampling["diffusion_steps"]
    return "–".join(map(str, steps)) if isinstance(steps, list | tuple) else str(steps)
