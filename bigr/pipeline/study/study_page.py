"""docs/ablations.md: the paper's tables beside ours, and for each order in the paper whether it holds here too.

Every statement about results is computed from docs/ablations.json.
"""

import json
import math
from pathlib import Path

from bigr.pipeline.study import study_plots
from bigr.pipeline.study.results import SIGNIFICANT, Claim, Results, against_base, claims
from bigr.pipeline.study.tables import (
    AGREEMENT,
    BASE,
    FID,
    ITERATIONS,
    POINTS,
    STEPS,
    TABLES,
    TIMED_IMAGES,
    TIMED_ROUNDS,
    TOP1,
    Table,
)
from bigr.runtime.files import write_bytes

NAMES = {FID: "fd_classifier", AGREEMENT: "agreement", TOP1: "top-1"}
PAPER = {FID: "FID", AGREEMENT: "agreement", TOP1: "top-1"}

INTRODUCTION = """\
# The paper's tables in miniature

```sh
make ablations
```

This command repeats tables 2, 3, 4, 8 and figure 3 of the paper on the embedded digits, and its comparison of three
sizes, and adds newer ideas. It writes this page and its plots, and their data to [ablations.json](ablations.json). A
row of a table is a variant: a choice of settings, run with {seeds} seeds. There are {runs} runs in all.

The paper trained L models (336 M parameters, 24 layers of width 1024) on ImageNet for 400 epochs. Here, {layers} layers
of width {dim} learn 1,437 digits in {steps} steps. So the values differ from the paper's. The question is whether the
*order* of the variants is the same.

- Results are mean ± standard deviation over seeds.
- `fd_classifier` is a Fréchet distance between {count} samples and the training images, in the features of a small
  classifier. It takes the place of the paper's FID, which uses Inception's features.
- top-1 (in %) is the accuracy of the linear probe at its best layer, on the held-out digits. Agreement (in %) is the
  share of samples that the classifier assigns to their class.
- p is that of a permutation test of the differences seed by seed, two-sided and exact: how often chance alone would set
  two variants as far apart. In the tables it is that of the difference from the row without a p. Below {significant} an
  order is decided.

A seed is that of the whole pipeline. Each seed has its own tokenizer and codes, which all variants share. Variants that
differ only in sampling also share the trained model. So the deviations include all random draws. Variants are compared
seed by seed.
"""

COMMANDS = """\
## Repeat it

```sh
make ablations                            # here, {lanes} trainings in parallel; finished runs are not run again
prefect deployment run bigr/ablations     # the same as a flow, while `make services` runs
dvc exp show --only-changed --drop 'Created|.*/'   # every run: metrics and the settings that differ
make ui                                   # every run in MLflow
```

A run is an experiment of DVC and a run in MLflow, with the same name (`ablations-table2-x0-seed1`).
[comparing.md](comparing.md) shows how to compare runs. All runs start from the `params.yaml` of the commit `{commit}`,
whose defaults may be older than today's, and change:

{settings}

The results were made at commit `{commit}` on {machine}, in {minutes:.0f} minutes with {lanes} trainings in parallel.
Sampling times were measured afterwards.
"""


def write(docs: Path, results: Results) -> None:
    """Write ablations.md and its plots in the folder `docs`."""
    study_plots.figure3(docs / "images" / "ablations-figure3.png", results)
    if study_plots.has_sizes(results):
        study_plots.sizes(docs / "images" / "ablations-sizes.png", results)
    write_bytes(docs / "ablations.md", text(results).encode())


def text(results: Results) -> str:
    """The page, in Markdown."""
    settings = "\n".join(f"- `{key}: {json.dumps(value)}`" for key, value in results.settings.items())
    parts = [
        INTRODUCTION.format(
            seeds=len(results.seeds()),
            runs=sum(len(runs) for runs in results.figures.values()),
            layers=results.settings["generator.layers"],
            dim=results.settings["generator.dim"],
            steps=results.settings["generator.steps"],
            count=results.settings["samples.count"],
            significant=SIGNIFICANT,
        ),
        _summary(results),
        *filter(None, (_table(table, results) for table in TABLES)),
        _figure3(results),
        COMMANDS.format(
            settings=settings,
            commit=results.commit,
            machine=results.machine,
            minutes=results.minutes / results.lanes,
            lanes=results.lanes,
        ),
    ]
    return "\n".join(parts)


def _summary(results: Results) -> str:
    found = [claim for table in TABLES for claim in claims(table, results)]
    rows = [
        f"| {c.table}, {PAPER[c.column]} | {c.better} before {c.worse} "
        f"| {_show(c.column, c.paper[0], scaled=True)}, {_show(c.column, c.paper[1], scaled=True)} "
        f"| {_show(c.column, c.here[0])}, {_show(c.column, c.here[1])} | {c.agree} of {c.seeds} | {_p(c.p)} "
        f"| {_verdict(c)} |"
        for c in found
    ]
    counts = {verdict: sum(c.verdict == verdict for c in found) for verdict in dict.fromkeys(c.verdict for c in found)}
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return "\n".join(
        [
            "## Does the small scale follow?",
            "",
            f"Of {len(found)} orders that the paper reports: {said}. “As in the paper” and “the other way round” mean",
            f"that p is below {SIGNIFICANT}. “Undecided” means that it is not: the difference is too small for this",
            f"scale and number of seeds. (The least p that {len(results.seeds())} seeds can reach is "
            f"{2 / 2 ** len(results.seeds()):.2g}.)",
            "",
            "| | the paper's order | in the paper | here | seeds that agree | p | verdict |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _table(table: Table, results: Results) -> str:
    rows = [row for row in table.rows if row.variant.name in results.figures]  # the others came after the study
    if len(rows) < 2:
        return ""
    published = [any(row.paper[place] is not None for row in rows) for place in range(len(table.columns))]
    head = ""
    for key, known in zip(table.columns, published, strict=True):
        head += (f" {PAPER[key]}, paper |" if known else "") + f" {NAMES[key]}, here | p |"
    lines = [f"## {table.name}: {table.title}", "", f"| |{head}", "| --- |" + " --- |" * (head.count("|"))]
    for row in rows:
        cells = ""
        for key, paper, known in zip(table.columns, row.paper, published, strict=True):
            printed = "" if paper is None else _show(key, paper, scaled=True)
            p = "" if row.variant == BASE else _p(against_base(results, row.variant.name, key))
            cells += f" {printed} |" if known else ""
            cells += f" {_spread(results, row.variant.name, key)} | {p} |"
        lines.append(f"| {row.label} |{cells}")
    return "\n".join([*lines, *_picture(table, results), ""])


def _picture(table: Table, results: Results) -> list[str]:
    sized = table.name == TABLES[0].name and study_plots.has_sizes(results)
    return ["", "![Distance, agreement and top-1 against the number of parameters](images/ablations-sizes.png)"] * sized


def _figure3(results: Results) -> str:
    lines = [
        "## Figure 3: distance against sampling time",
        "",
        "![fd_classifier against milliseconds an image](images/ablations-figure3.png)",
        "",
        "Iterations n and diffusion steps S of the same trained models. The time is measured, not computed: one",
        f"thread, batches of {TIMED_IMAGES}, the fastest of {TIMED_ROUNDS} rounds, no other run at the same time.",
        "",
        "| S | n | ms an image | fd_classifier |",
        "| --- | --- | --- | --- |",
    ]
    for steps in STEPS:
        for n in ITERATIONS:
            name = POINTS[n, steps]
            lines.append(f"| {steps} | {n} | {1e3 * results.seconds[name]:.1f} | {_spread(results, name, FID)} |")
    lines += ["", *_trends(results), ""]
    return "\n".join(lines)


def _trends(results: Results) -> list[str]:
    """The effect of more iterations and more steps, and the points that no other beats in both."""

    def mean(n: int, s: int) -> float:
        return results.mean(POINTS[n, s], FID)

    few, many = ITERATIONS[0], ITERATIONS[-1]
    more_n = [f"S = {s}: {mean(few, s):.2f} → {mean(many, s):.2f}" for s in STEPS]
    more_s = [f"n = {n}: {mean(n, STEPS[0]):.2f} → {mean(n, STEPS[-1]):.2f}" for n in ITERATIONS]
    front = [
        f"(n {n}, S {s})"
        for n, s in sorted(POINTS, key=lambda p: results.seconds[POINTS[p]])
        if not any(
            results.seconds[POINTS[other]] < results.seconds[POINTS[n, s]] and mean(*other) <= mean(n, s)
            for other in POINTS
        )
    ]
    return [
        f"- From n = {few} to n = {many}: {'; '.join(more_n)}.",
        f"- From S = {STEPS[0]} to S = {STEPS[-1]}: {'; '.join(more_s)}.",
        f"- No other point is both faster and at least as near: {', '.join(front)}.",
    ]


def _verdict(claim: Claim) -> str:
    return claim.verdict if claim.verdict == "as in the paper" else f"**{claim.verdict}**"


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.0005 else "< 0.001"


def _spread(results: Results, variant: str, key: str) -> str:
    scale = 1 if key == FID else 100
    deviation = results.deviation(variant, key)
    spread = "" if math.isnan(deviation) else f" ± {scale * deviation:.{_digits(key)}f}"
    return f"{_show(key, results.mean(variant, key))}{spread}"


def _show(key: str, value: float, scaled: bool = False) -> str:
    """A result as the tables print it. scaled: top-1 is in % already."""
    return f"{value * (1 if key == FID or scaled else 100):.{_digits(key)}f}"


def _digits(key: str) -> int:
    return 2 if key == FID else 1
