"""The study's plot: figure 3."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from bigr.pipeline.study.results import Results
from bigr.pipeline.study.tables import FID, ITERATIONS, POINTS, STEPS
from bigr.runtime.files import atomic_path


def figure3(path: Path, results: Results) -> None:
    """fd_classifier against seconds an image: a line for each S, a point for each n."""
    figure = Figure(figsize=(7.6, 4.8), layout="constrained")
    axes = figure.add_subplot(
        title="Figure 3: distance against sampling time",
        xlabel="milliseconds an image, one thread (log scale)",
        ylabel="fd_classifier",
        xscale="log",
    )
    for steps in STEPS:
        names = [POINTS[n, steps] for n in ITERATIONS]
        times = [1e3 * results.seconds[name] for name in names]
        means = [results.mean(name, FID) for name in names]
        spread = [results.deviation(name, FID) for name in names]
        axes.errorbar(times, means, spread, fmt="o-", capsize=3, label=f"S = {steps}")
        for n, x, y in zip(ITERATIONS, times, means, strict=True):
            axes.annotate(f"n = {n}", (x, y), (5, 6), textcoords="offset points")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(ScalarFormatter())
    axes.margins(x=0.12)
    axes.legend()
    with atomic_path(path) as temporary:  # no software version in the file: the same results give the same bytes
        figure.savefig(temporary, dpi=110, metadata={"Software": None})
