"""The study's plots: figure 3, and the size of the generator."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from bigr.pipeline.study.results import Results
from bigr.pipeline.study.tables import AGREEMENT, FID, ITERATIONS, POINTS, SIZES, STEPS, TOP1
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


def has_sizes(results: Results) -> bool:
    """Whether every size was run."""
    return all(variant.name in results.figures for variant in SIZES.values())


def sizes(path: Path, results: Results) -> None:
    """fd_classifier, agreement and top-1 against millions of parameters, mean and deviation over seeds."""
    panels = ((FID, "fd_classifier (lower is better)", 1), (AGREEMENT, "agreement, %", 100), (TOP1, "top-1, %", 100))
    with mpl.rc_context(_STYLE), atomic_path(path) as temporary:
        figure = Figure(figsize=(9.6, 3.4), layout="constrained")
        for axes, (key, label, scale), colour in zip(figure.subplots(1, 3), panels, _COLOURS[1:], strict=True):
            means = [scale * results.mean(variant.name, key) for variant in SIZES.values()]
            spread = [scale * results.deviation(variant.name, key) for variant in SIZES.values()]
            axes.errorbar(list(SIZES), means, spread, fmt="o-", color=colour, capsize=3)
            axes.set_xscale("log")
            axes.set_xticks(list(SIZES), [f"{millions:g}" for millions in SIZES])
            axes.minorticks_off()
            axes.grid(axis="y", color=_GREY, alpha=0.4)
            axes.margins(x=0.15)
            axes.set(xlabel="million parameters", title=label)
        figure.savefig(temporary, dpi=110, metadata={"Software": None})
