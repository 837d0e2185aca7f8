"""The evaluation's plots, as PNG files. Needs no display."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from bigr.evaluation.code_usage import CodeUsage
from bigr.evaluation.representation.linear_probe import LayerAccuracies
from bigr.runtime.files import atomic_path

_BLUE, _ORANGE, _GREY, _INK = "#2f6db3", "#d9822b", "#b8bec6", "#2b2f36"
_STYLE: Any = {
    "font.size": 12,
    "axes.titlesize": 14,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _INK,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
}
_NAMED_CLASSES = 20  # more names cannot be read on an axis
_NAME_LENGTH = 26


def probe_plot(path: Path, probe: LayerAccuracies, knn: LayerAccuracies, classes: int) -> None:
    """Draw the accuracies of the linear probe and of the nearest neighbours by layer."""
    layers = range(1, len(probe.top1) + 1)
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(7.2, 4.4)
        if classes > 5:
            axes.plot(layers, probe.top5, "o-", color=_ORANGE, label="probe, top-5")
        lines = ((probe, "o-", _BLUE, "probe"), (knn, "o--", _INK, "k-NN"))
        for accuracies, line, colour, name in lines:
            best, top1 = accuracies.best, accuracies.top1[accuracies.best - 1]
            axes.plot(layers, accuracies.top1, line, color=colour, label=f"{name}: {top1:.1%} in layer {best}")
            axes.plot(best, top1, "o", color=colour, markersize=10)
        lowest = min(*probe.top1, *knn.top1)
        axes.set_ylim(max(0, lowest - 0.25 * (1.02 - lowest)), 1.02)
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(axis="y", color=_GREY, alpha=0.4)
        axes.set(xlabel="layer", ylabel="accuracy, validation split")
        axes.set_title("Linear probe and nearest neighbours by layer", pad=34)
        axes.legend(loc="lower left", ncols=3, bbox_to_anchor=(-0.02, 1), borderpad=0.2, columnspacing=1.2, fontsize=11)
        _save(figure, path)


def tsne_plot(path: Path, points: np.ndarray, labels: np.ndarray, classes: Sequence[str], layer: int) -> None:
    """Draw points [m, 2] coloured by their labels, int [m]; many classes share a colour scale, ordered by name."""
    named = len(classes) <= _NAMED_CLASSES
    size = 26 if len(points) <= 1000 else 8
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(7.6, 6.2)
        if named:
            colours = mpl.colormaps["tab10" if len(classes) <= 10 else "tab20"]
            shown = np.unique(labels)
            dots = [
                axes.scatter(x, y, s=size, color=colours(int(label)), linewidths=0)
                for label in shown
                for x, y in [points[labels == label].T]
            ]
            names = [_short(classes[label]) for label in shown]
            figure.legend(dots, names, loc="outside right center", title="class", markerscale=1.6, handletextpad=0.2)
        else:
            last = len(classes) - 1
            x, y = points.T
            spread = axes.scatter(x, y, s=size, c=labels, cmap="turbo", vmin=0, vmax=last, linewidths=0)
            bar = figure.colorbar(spread, ax=axes, fraction=0.046, pad=0.03, ticks=[0, last])
            bar.ax.set_yticklabels([_short(classes[0]), _short(classes[last])])
            bar.outline.set_visible(False)
            bar.set_label(f"{len(classes):,} classes, in the order of their names")
            bar.ax.yaxis.set_label_coords(1.9, 0.5)  # between the two names, however long they are
        axes.set(xticks=[], yticks=[])
        axes.set_aspect("equal", adjustable="datalim")
        axes.spines[:].set_visible(False)
        axes.set_title(f"Layer {layer}: t-SNE of {len(points):,} validation images")
        _save(figure, path)


def bits_plot(path: Path, usage: CodeUsage) -> None:
    """Draw how often each of the K bits is on, and its entropy."""
    frequency, entropy = usage.frequency.numpy(), usage.entropy.numpy()
    bits = np.arange(len(frequency))
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(max(7.2, 0.3 * len(bits)), 4.4)
        axes.bar(bits, frequency, color=_GREY, label="share of tokens with the bit on")
        axes.plot(bits, entropy, "o", color=_BLUE, label="entropy (bits)")
        axes.axhline(0.5, color=_INK, linewidth=1, linestyle=(0, (4, 4)))
        axes.set_ylim(0, 1.05)
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(24, integer=True))
        axes.set(xlabel="bit of the code", ylabel="share · bits")
        axes.set_title(f"Use of the bits: mean entropy {entropy.mean():.3f} bits, {usage.dead} dead", pad=34)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0.2)
        _save(figure, path)


def confusion_plot(path: Path, labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> None:
    """Draw the confusion matrix of samples: rows are their labels, columns the classifier's predictions, int [n]."""
    counts = np.zeros((len(classes), len(classes)))
    np.add.at(counts, (labels, predicted), 1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    named, classes = len(classes) <= _NAMED_CLASSES, [_plain(name) for name in classes]
    side = 2.4 + 0.5 * len(classes) if named else 8.0
    with mpl.rc_context(_STYLE):
        figure, axes = _figure(max(side, 4.8) + 0.6, max(side, 4.8))
        image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
        axes.spines[:].set_visible(False)
        if named:
            turned = max(map(len, classes)) > 3
            axes.set_xticks(
                range(len(classes)), classes, rotation=45 if turned else 0, ha="right" if turned else "center"
            )
            axes.set_yticks(range(len(classes)), classes)
            axes.tick_params(length=0)
            for row, column in zip(*np.nonzero(counts), strict=True):
                ink = "white" if shares[row, column] > 0.6 else _INK
                axes.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", color=ink, fontsize=11)
        axes.set(xlabel="class that the classifier sees", ylabel="class asked for")
        axes.set_title(f"{len(labels):,} samples: {np.mean(labels == predicted):.1%} as asked")
        bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, format=PercentFormatter(1, decimals=0))
        bar.outline.set_visible(False)
        bar.set_label("share of the row")
        _save(figure, path)


def _short(name: str) -> str:
    return _plain(name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…")


def _plain(name: str) -> str:
    """A class name without formulas: matplotlib would typeset what is between two dollars."""
    return name.replace("$", r"\$")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of this size in inches, outside pyplot's global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        # Without matplotlib's version, the same plot is the same bytes.
        figure.savefig(temporary, dpi=130, metadata={"Software": None})
