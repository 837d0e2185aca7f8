"""The table, the JSON file and the plot of measurements."""

import json
from dataclasses import asdict
from pathlib import Path

from benchmarks.compare import DIRECT, OURS, PUBLISHED, Result
from benchmarks.machine import Machine


def lines(machine: Machine, results: list[Result]) -> list[str]:
    """What is printed: rates and their ratio, then each part's share of the time."""
    table = [
        [
            r.model,
            r.work,
            str(r.batch),
            f"{r.rate(OURS):.3g}",
            f"{r.rate(DIRECT):.3g}" if DIRECT in r.seconds else "—",
            f"{r.first:.0f}" if r.first else "—",
            f"{r.rate(PUBLISHED):.3g}" if r.ratio else "—",
            f"{r.ratio:.2f}" if r.ratio else "—",
            f"{s:.3f}" if (s := r.sustained(OURS)) else "—",
            f"{s / machine.tflops:.0%}" if (s := r.sustained(OURS)) else "—",
            f"{r.memory[OURS] / 2**30:.1f}" if r.memory else "—",
            r.settings,
        ]
        for r in results
    ]
    head = [
        "model",
        "work",
        "batch",
        "images/s",
        "compile: off",
        "first s",
        "published",
        "ratio",
        "TFLOP/s",
        "of peak",
        "GiB",
        "settings",
    ]
    text = [str(machine), "", *_aligned([head, *table]), ""]
    for r in results:
        for who, parts in r.parts.items():
            whole = sum(parts.values())
            text += [f"{r.model}, {r.work}, batch {r.batch}, {who}: {whole:.3g} s"]
            rows = [
                [f"  {name}", f"{seconds / whole:.0%}", _of_peak(r.flops.get(who, {}).get(name), seconds, machine)]
                for name, seconds in sorted(parts.items(), key=lambda part: -part[1])
            ]
            text += [*_aligned(rows), ""]
    return text


def write(folder: Path, machine: Machine, results: list[Result]) -> None:
    """Write benchmarks.json and benchmarks.png."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine.as_json(), "results": [asdict(r) | {"ratio": r.ratio} for r in results]}
    (folder / "benchmarks.json").write_text(json.dumps(content, indent=2) + "\n")
    _plot(folder / "benchmarks.png", machine, results)


def _plot(path: Path, machine: Machine, results: list[Result]) -> None:
    """One bar for each work and implementation, by part: its time as a share of the published algorithm's."""
    from matplotlib.figure import Figure

    bars = [(r, who) for r in results for who in r.seconds]
    names = list(dict.fromkeys(name for r in results for parts in r.parts.values() for name in parts))
    figure = Figure(figsize=(9, 1.5 + 0.45 * len(bars)), layout="constrained")
    axes = figure.subplots()
    for row, (r, who) in enumerate(bars):
        parts, left = r.parts.get(who, {"not split": 1.0}), 0.0
        share = 100 * r.rate(PUBLISHED if PUBLISHED in r.seconds else OURS) / r.rate(who)
        for name, seconds in parts.items():
            width = share * seconds / sum(parts.values())
            color = f"C{names.index(name)}" if name in names else "0.7"
            axes.barh(row, width, left=left, color=color, label=name)
            left += width
        axes.text(left, row, f" {1e3 / r.rate(who):.3g} ms an image", va="center", fontsize="small")
    axes.set_yticks(range(len(bars)), [f"{r.model}, {r.work}, batch {r.batch}: {who}" for r, who in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * axes.get_xlim()[1])
    axes.set_xlabel("time, % of the published algorithm's")
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), fontsize="small", loc="outside right center")
    axes.set_title(f"{machine.device}, {machine.threads} threads, {machine.precision}", fontsize="medium")
    figure.savefig(path, dpi=120)


def _of_peak(flops: float | None, seconds: float, machine: Machine) -> str:
    return f"{flops / seconds / 1e12 / machine.tflops:.0%} of the matrix product's rate" if flops and seconds else ""


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
