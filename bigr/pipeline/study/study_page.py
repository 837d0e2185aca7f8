"""docs/ablations.md: the paper's tables beside ours, and for each order in the paper whether it holds here too.

Every statement about results is computed from docs/ablations.json.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from bigr.pipeline.study import study_plots
from bigr.pipeline.study.results import Results, claims
from bigr.pipeline.study.tables import FID, POINTS, TABLES, TIMED_IMAGES, TIMED_ROUNDS, TOP1, Table
from bigr.runtime.files import write_bytes

NAMES = {FID: ("FID", "fd_classifier"), TOP1: ("top-1", "top-1")}
"""The paper's name of a metric, and ours."""

INTRODUCTION = """\
# The paper's tables in miniature

```sh
make ablations
```

This command repeats tables 2, 3, 4, 8 and figure 3 of the paper on the embedded digits. It writes this page and its
plot, and their data to [ablations.json](ablations.json). A row of a table is a variant: a choice of settings, run with
{seeds} seeds. There are {runs} runs in all.

The paper trained L models (336 M parameters, 24 layers of width 1024) on ImageNet for 400 epochs. Here, {layers} layers
of width {dim} learn 1,437 digits in {steps} steps. So the values differ from the paper's. The question is whether the
*order* of the variants is the same.

- Results are mean ± standard deviation over seeds.
- `fd_classifier` is a Fréchet distance between {count} samples and the training images, in the features of a small
  classifier. It takes the place of the paper's FID, which uses Inception's features.
- top-1 (in %) is the accuracy of the linear probe at its best layer, on the held-out digits.

A seed is that of the whole pipeline. Each seed has its own tokenizer and codes, which all variants share. Variants that
differ only in sampling also share the trained model. So the deviations include all random draws. Variants are compared
seed by seed.
"""

SETTINGS = """\
## Settings

A run is an experiment of DVC and a run in MLflow, with the same name (`ablations-table2-x0-seed1`).
[comparing.md](comparing.md) shows how to compare runs. All runs start from the `params.yaml` of the commit `{commit}`,
whose defaults may be older than today's, and change:

{settings}

The results were made at commit `{commit}` on {machine}, in {minutes:.0f} minutes with {lanes} trainings in parallel.
Finished runs are not run again. `prefect deployment run bigr/ablations` does the same while `make services` runs.
"""


def write(docs: Path, results: Results) -> None:
    """Write ablations.md and its plot in the folder `docs`."""
    study_plots.figure3(docs / "images" / "ablations-figure3.png", results)
    write_bytes(docs / "ablations.md", text(results).encode())


def text(results: Results) -> str:
    """The page, in Markdown."""
    introduction = INTRODUCTION.format(
        seeds=len(results.seeds()),
        runs=sum(len(runs) for runs in results.figures.values()),
        layers=results.settings["generator.layers"],
        dim=results.settings["generator.dim"],
        steps=results.settings["generator.steps"],
        count=results.settings["samples.count"],
    )
    settings = SETTINGS.format(
        settings="\n".join(f"- `{key}: {json.dumps(value)}`" for key, value in results.settings.items()),
        commit=results.commit,
        machine=results.machine,
        minutes=results.minutes / results.lanes,
        lanes=results.lanes,
    )
    tables = [_table(table, results) for table in TABLES]
    return "\n".join([introduction, _orders(results), *tables, _figure3(results), settings])


def _orders(results: Results) -> str:
    rows = [
        (
            f"{claim.table}, {NAMES[claim.column][0]}",
            f"{claim.better} before {claim.worse}",
            ", ".join(f"{value:.{_digits(claim.column)}f}" for value in claim.paper),
            ", ".join(_show(claim.column, value) for value in claim.here),
            f"{claim.agree} of {claim.seeds}",
            claim.verdict if claim.verdict == "as in the paper" else f"**{claim.verdict}**",
        )
        for table in TABLES
        for claim in claims(table, results)
    ]
    head = ("", "the paper's order", "in the paper", "here", "seeds that agree", "verdict")
    return _section(
        "Does the small scale follow?",
        "Where the seeds differ in an order, it is undecided: the difference is too small for this scale.",
        head,
        rows,
    )


def _table(table: Table, results: Results) -> str:
    head = [
        f"{name}, {where}" for key in table.columns for name, where in zip(NAMES[key], ("paper", "here"), strict=True)
    ]
    rows = []
    for row in table.rows:
        cells = [row.label]
        for key, paper in zip(table.columns, row.paper, strict=True):
            cells += ["" if paper is None else f"{paper:.{_digits(key)}f}", _spread(results, row.variant.name, key)]
        rows.append(cells)
    return _section(f"{table.name}: {table.title}", "", ["", *head], rows)


def _figure3(results: Results) -> str:
    about = (
        "![fd_classifier against milliseconds an image](images/ablations-figure3.png)\n\n"
        "n iterations, S diffusion steps, of the same trained models. The time is measured after the runs:\n"
        f"one thread, batches of {TIMED_IMAGES} images, the fastest of {TIMED_ROUNDS} rounds."
    )
    rows = [
        (f"{steps}", f"{n}", f"{1e3 * results.seconds[name]:.1f}", _spread(results, name, FID))
        for (n, steps), name in POINTS.items()
    ]
    return _section("Figure 3: distance against sampling time", about, ("S", "n", "ms an image", "fd_classifier"), rows)


def _section(title: str, about: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    return "\n".join([f"## {title}", "", *([about, ""] if about else []), *lines, ""])


def _spread(results: Results, variant: str, key: str) -> str:
    deviation = results.deviation(variant, key)
    spread = "" if math.isnan(deviation) else f" ± {_show(key, deviation)}"
    return f"{_show(key, results.mean(variant, key))}{spread}"


def _show(key: str, value: float) -> str:
    return f"{value * (100 if key == TOP1 else 1):.{_digits(key)}f}"


def _digits(key: str) -> int:
    return 1 if key == TOP1 else 2
