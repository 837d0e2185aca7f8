"""The study's plot: figure 3."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from bigr.pipeline.study.results import Results
from bigr.pipeline.study.tables import FID, ITERATIONS, POINTS, STEPS
from bigr.runtime.files import atomic_path

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
    with mpl.rc_context(_STYLE), atomic_path(path) as temporary:
        figure = Figure(figsize=(7.6, 4.8), layout="constrained")
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
        # No software version in the file: the same results give the same bytes.
        figure.savefig(temporary, dpi=110, metadata={"Software": None})
