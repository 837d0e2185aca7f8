"""`bigr metrics`: the metrics of the stage `evaluation` beside their targets, as a table of 80 columns."""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from bigr.runtime.errors import BigrError
from bigr.runtime.metric_directions import LOWER_IS_BETTER

METRICS = Path("outputs/metrics.json")
WIDTH = 80
"""Columns of the table, and of lines."""

_TITLES = {
    "samples": "{images} images drawn by the model",
    "reconstructions": "the tokenizer, on {images} held-out images",
    "retrieval": "whether samples show their captions: one of ten is picked",
    "attributes": "what samples of scenes show of what their captions say",
    "codes": "how the tokenizer uses its bits",
    "probe": "representation: linear probe, best layer {best_layer}",
    "knn": "representation: nearest neighbours, best layer {best_layer}",
    "zero_shot": "without further training, on {images} held-out images",
}
"""Part of metrics.json → its title; in braces, metrics of the part."""

_SHOWN = {
    "samples.label_agreement": "seen as their class",
    "samples.over_floor": "fd ÷ held-out images'",
    "samples.fd_classifier": "Fréchet distance",
    "samples.fid": "with Inception",
    "samples.isc": "with Inception",
    "samples.precision": "that lie among real ones",
    "samples.recall": "real images covered",
    "samples.nearest_ratio": "1: new; 0: copies",
    "reconstructions.psnr": "against the originals",
    "retrieval.top1": "held-out captions",
    "retrieval.train_top1": "training captions",
    "retrieval.judge_accuracy": "real images, held out",
    "retrieval.clip_score": "100 × cosine",
    "attributes.seen_all": "colours as in training",
    "attributes.held_out_all": "new colours of shapes",
    "codes.bit_entropy": "a bit, mean; 1 at most",
    "codes.dead_bits": "bits that never change",
    "probe.best_top1": "held-out images",
    "knn.best_top1": "held-out images",
    "zero_shot.inpaint_label_agreement": "lower half, class kept",
    "zero_shot.inpaint_psnr": "lower half, without label",
    "zero_shot.edit_label_agreement": "seen as the new class",
    "zero_shot.enrich_label_agreement": "enlarged, class kept",
    "zero_shot.interpolation_agreement": "seen as one of the two",
}
"""Metric of the short table → its explanation."""

_OF_SOME = ("samples.fd_classifier", "samples.fid", "samples.isc", "retrieval.", "attributes.")
"""Starts of metrics of the short table that are left out where they have neither result nor target."""

_UNITS = {"dB": r"psnr$", "%": r"agreement$|accuracy$|\.precision$|\.recall$|_share$|top[15]|^attributes\."}
"""Unit → pattern of a metric's key. Shares are printed in percent."""

_PLACES = (
    ("samples", "outputs/samples.png"),
    ("every metric", "bigr metrics --all"),
    ("curves, plots", "dvc plots show --open"),
    ("every run", "make ui"),
)


@dataclass(frozen=True)
class MetricRow:
    """One metric. result: None where it was not measured; target: None where the settings have none."""

    part: str
    name: str
    result: float | None
    target: float | None

    @property
    def verdict(self) -> str:
        """`met` or `missed`; empty where there is no target or no result."""
        if self.target is None or self.result is None:
            return ""
        met = self.result <= self.target if self._key in LOWER_IS_BETTER else self.result >= self.target
        return "met" if met else "missed"

    def cells(self) -> tuple[str, str, str, str, str]:
        """Name, result, target, verdict, meaning."""
        unit = next((unit for unit, names in _UNITS.items() if re.search(names, self._key)), "")
        result = "not measured" if self.result is None else _number(self.result, unit)
        bound = "≤" if self._key in LOWER_IS_BETTER else "≥"
        target = "" if self.target is None else f"{bound} {self.target * (100 if unit == '%' else 1):g} {unit}".rstrip()
        return f"  {self.name}", result, target, self.verdict, _SHOWN.get(self._key, "")

    @property
    def _key(self) -> str:
        return f"{self.part}.{self.name}"


def metrics(
    params: Annotated[Path, typer.Option("--params", metavar="FILE", help="The settings, with the targets.")] = Path(
        "params.yaml"
    ),
    every: Annotated[bool, typer.Option("--all", help="Every metric of outputs/metrics.json, one a line.")] = False,
) -> None:
    """Show this project's metrics beside their targets.

    The last line names the stages that have changed since, if there are any.
    """
    from bigr import config

    targets = config.load(params).targets
    found = read(Path.cwd() / METRICS)
    for line in page(found, targets, every=every):
        typer.echo(line)
    if (warning := stale(Path.cwd(), params)) is not None:
        typer.echo("\n" + textwrap.fill(warning, WIDTH))


def read(path: Path) -> dict[str, Any]:
    """The contents of metrics.json. Raises `BigrError` where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BigrError(f"{METRICS}: no such file; `dvc repro` measures the model and writes it") from None
    except (OSError, ValueError) as error:
        raise BigrError(f"{METRICS} cannot be read: {error}; remove it and run `dvc repro`") from None
    if not isinstance(found, dict):
        raise BigrError(f"{METRICS} must be a mapping of parts; remove it and run `dvc repro`")
    return found


def page(found: Mapping[str, Any], targets: Mapping[str, Mapping[str, float]], *, every: bool) -> list[str]:
    """The table and what follows it, as lines. found: contents of metrics.json; every: show all metrics."""
    from bigr.evaluation.headline import measured

    goals = {f"{part}.{name}": value for part, names in targets.items() for name, value in names.items()}
    rows = {
        part: [MetricRow(part, name, measured(found, f"{part}.{name}"), goals.get(f"{part}.{name}")) for name in names]
        for part, names in _names(found, goals, every)
    }
    table = [row.cells() for those in rows.values() for row in those]
    widths = [max((len(cells[i]) for cells in table if cells[1] != "not measured"), default=0) for i in range(4)]
    lines = [f"{'metric':<{widths[0]}}  {'result':>{widths[1]}}  target"]
    for part, those in rows.items():
        lines += [f"{part:<16}  {_title(part, found)}".rstrip(), *(_line(row.cells(), widths) for row in those)]
    judged = [row for those in rows.values() for row in those if row.target is not None]
    if judged:
        others = [f"{row.part}.{row.name} {row.verdict or 'not measured'}" for row in judged if row.verdict != "met"]
        met = f"{len(judged) - len(others)} of {len(judged)} targets met"
        lines += ["", *textwrap.wrap("; ".join([met, *others]), WIDTH)]
    if every:
        return lines
    return [*lines, "", *(f"{what:<15}{where}" for what, where in _PLACES)]


def stale(root: Path, params: Path) -> str | None:
    """A line that names the stages which have changed since the metrics were measured; None where none has.

    Asks DVC, which takes about a second; None where `root` is no project of DVC's.
    """
    from bigr import config
    from bigr.pipeline import dvcfile

    if not (root / ".dvc").is_dir() or not (root / "dvc.yaml").is_file():
        return None
    try:
        changed = dvcfile.outdated(root, dvcfile.stages(root, config.read(params)))
    except BigrError as error:
        return f"Whether these metrics are up to date is not known: {error}"
    return f"Out of date: {', '.join(changed)} changed since; `dvc repro` measures again." if changed else None


def _names(found: Mapping[str, Any], goals: Mapping[str, float], every: bool) -> Iterator[tuple[str, list[str]]]:
    from bigr.evaluation.headline import measured

    own = [f"{part}.{name}" for part, metrics in found.items() if isinstance(metrics, Mapping) for name in metrics]
    if every:
        keys = own
    else:
        there = {key for key in own if measured(found, key) is not None} | set(goals)
        keys = [key for key in _SHOWN if not key.startswith(_OF_SOME) or key in there]
    keys = list(dict.fromkeys([*keys, *goals]))
    parts = [key.partition(".")[0] for key in keys]
    for part in dict.fromkeys([*(part for part in _TITLES if part in parts), *parts]):
        names = [key.partition(".")[2] for key in keys if key.partition(".")[0] == part]
        if not isinstance(found.get(part), Mapping):  # one line says it of the whole part
            names = [name for name in names if f"{part}.{name}" in goals]
        yield part, names


def _title(part: str, found: Mapping[str, Any]) -> str:
    values = found.get(part)
    if not isinstance(values, Mapping):
        return "not measured"
    known = {name: _number(value, "") for name, value in values.items() if isinstance(value, int | float)}
    try:
        return _TITLES.get(part, "").format_map(known)
    except KeyError:  # a part of which a metric is missing
        return ""


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    name, result, target, verdict, meaning = cells
    first = f"{name:<{widths[0]}}  "
    if result == "not measured":
        return f"{first}{result}{f'; target {target}' if target else ''}"
    numbers = f"{first}{result:>{widths[1]}}  {target:<{widths[2]}}  {verdict:<{widths[3]}}"
    full = f"{numbers}  {meaning}"
    return (full if len(full) <= WIDTH else numbers).rstrip()


def _number(value: float, unit: str) -> str:
    if unit:
        return f"{value * (100 if unit == '%' else 1):.2f} {unit}"
    return f"{int(value):,}" if float(value).is_integer() else f"{value:.4g}"
