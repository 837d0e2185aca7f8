"""The study's pictures: figure 3, and the tables as dots, one a seed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from bigr.pipeline.study.results import Results
from bigr.pipeline.study.tables import FID, ITERATIONS, POINTS, STEPS, TABLES, TOP1
from bigr.runtime.files import atomic_path
from bigr.runtime.metric_directions import LOWER_IS_BETTER

LABELS = {FID: "fd_classifier", TOP1: "linear probe, top-1"}
_COLOURS = ("#9ecae1", "#2f6db3", "#d9822b", "#8c3f9e")
_INK, _GREY = "#2b2f36", "#b8bec6"
_STYLE: Any = {
    "font.size": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
}


def figure3(path: Path, results: Results) -> None:
    """fd_classifier against seconds an image: a line for each S, a point for each n."""
    with _drawing(path, 7.6, 4.8) as figure:
        axes = figure.add_subplot()
        for steps, colour in zip(STEPS, _COLOURS, strict=False):
            names = [POINTS[n, steps] for n in ITERATIONS]
            times = [1e3 * results.seconds[name] for name in names]
            means = [results.mean(name, FID) for name in names]
            spread = [results.deviation(name, FID) for name in names]
            axes.errorbar(times, means, spread, fmt="o-", color=colour, capsize=3, label=f"S = {steps}")
            for n, x, y in zip(ITERATIONS, times, means, strict=True):
                axes.annotate(f"n = {n}", (x, y), (5, 6), textcoords="offset points", fontsize=10, color=colour)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(ScalarFormatter())
        axes.tick_params(axis="x", which="minor", labelsize=9)
        axes.grid(axis="y", color=_GREY, alpha=0.4)
        axes.margins(x=0.12)
        axes.set(xlabel="milliseconds an image, one thread (log scale)", ylabel="fd_classifier")
        axes.set_title("Figure 3: distance against sampling time")
        axes.legend()


def tables(path: Path, results: Results) -> None:
    """Every table as a panel for each of its columns: a dot for each seed, a bar at the mean."""
    panels = [(table, key) for table in TABLES for key in table.columns]
    with _drawing(path, 13.0, 6.0) as figure:
        axes = list(figure.subplots(2, -(-len(panels) // 2)).flat)
        for place, (table, key) in zip(axes, panels, strict=False):
            rows = [row for row in table.rows if row.variant in results.figures]
            _dots(place, results, key, [(row.label, row.variant) for row in rows])
            place.set_title(f"{table.name}: {LABELS[key]}", fontsize=12)
        for place in axes[len(panels) :]:
            place.set_axis_off()


@contextmanager
def _drawing(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure (inches) outside pyplot's global state, which is written to `path` at the end."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with atomic_path(path) as temporary:
            # No software version in the file: the same figures give the same bytes.
            figure.savefig(temporary, dpi=110, metadata={"Software": None})


def _dots(axes: Axes, results: Results, key: str, rows: list[tuple[str, str]]) -> None:
    for height, (_, variant) in enumerate(reversed(rows)):
        values = results.values(variant, key)
        axes.plot(values, [height] * len(values), "o", color=_COLOURS[1], alpha=0.55)
        axes.plot([results.mean(variant, key)] * 2, [height - 0.28, height + 0.28], color=_INK, linewidth=2)
    axes.set_yticks(range(len(rows)), [label.split(" (")[0] for label, _ in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.margins(x=0.1)
    axes.tick_params(axis="y", length=0, labelsize=10)
    axes.grid(axis="x", color=_GREY, alpha=0.4)
    axes.set_xlabel("lower is better" if key in LOWER_IS_BETTER else "higher is better", fontsize=10)
