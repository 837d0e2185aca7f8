"""Quality over seeds and speed of all that was tuned, beside the settings of params.yaml.

    python -m benchmarks frontier measure                 all; writes frontier.json, frontier.md and frontier.png
    python -m benchmarks frontier measure --rounds 0      quality alone

The quality of samples is measured once for each point and seed and kept in measured.jsonl. The speed is measured in
each call, point after point in each round, so that other work on the machine affects all alike; a rate is the median.
"""

import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.compare import in_turns
from benchmarks.frontier import report
from benchmarks.frontier.quality import Drawing, Quality
from benchmarks.frontier.train import Folders, Out, Params, Project, Seeds, within
from benchmarks.frontier.tune import Agreement, add_line, best, read_lines, sampling_of
from benchmarks.machine import Machine
from bigr import config
from bigr.runtime.device import resolve_device
from bigr.runtime.errors import BigrError
from bigr.sampling.unmask import Sampling

CLASSIFIER_SEEDS = (4, 5, 6, 7)
DEFAULT = "default"
"""The name of the settings of params.yaml."""

Points = dict[str, tuple[str, Sampling]]
"""Target and settings by name."""


def points_of(place: Folders, settings: config.Settings, names: list[str], agreement: float) -> Points:
    """The settings' own point and their presets, and the best that was tuned of each name; of all, where none is named.

    Raises `BigrError` for a name that was not tuned.
    """
    found: Points = {DEFAULT: (settings.generator.target, Sampling.of(settings.samples))}
    for name, section in settings.samples.by_preset.items():
        if Sampling.of(section) != Sampling.of(settings.samples):
            found[name] = (settings.generator.target, Sampling.of(section))
    for name in names or sorted(path.stem for path in place.tuned.glob("*.jsonl")):
        tried = read_lines(place.tuned / f"{name}.jsonl")
        if not tried:
            raise BigrError(f"{place.tuned} has no {name}.jsonl; run `python -m benchmarks frontier tune` first")
        result = best(tried, agreement)
        point = (result["target"], sampling_of(result))
        if point not in found.values():  # a preset that has what was tuned
            found[name] = point
    return found


def once(path: Path, what: dict[str, Any], drawing: Drawing, sampling: Sampling, quality: Quality) -> dict[str, Any]:
    """The quality of `what` (target, seed, images, sampling) from the file of those measured, or measured now."""
    for line in read_lines(path):
        if within(line["what"], what):
            return line
    line = {"what": what, **quality.of(*drawing.images(sampling, what["images"], "measure"))}
    add_line(path, line)
    return line


def main(
    points: Annotated[str, typer.Option(help="Names of tuned points, with commas; by default all.")] = "",
    seeds: Seeds = "0,1,2",
    images: Annotated[int, typer.Option(help="Samples of each point and seed.")] = 2000,
    rounds: Annotated[int, typer.Option(help="Of the measurement of speed.")] = 5,
    agreement: Agreement = 0.97,
    project: Project = Path(),
    params: Params = Path("params.yaml"),
    out: Out = None,
) -> None:
    """Measure."""
    place, settings, numbers = Folders.of(project, out), config.load(params), list(map(int, seeds.split(",")))
    chosen = points_of(place, settings, [name for name in points.split(",") if name], agreement)
    targets = dict.fromkeys(target for target, _ in chosen.values())
    drawings = {(t, seed): Drawing.of(place.trained(t, seed), settings) for t in targets for seed in numbers}
    quality = Quality(project, place.out, settings, CLASSIFIER_SEEDS)
    typer.echo(f"the classifiers assign {quality.accuracy:.1%} of the held-out images to their class")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    for seed in numbers:
        for name, (target, sampling) in chosen.items():
            what = {"target": target, "seed": seed, "images": images, "sampling": asdict(sampling)}
            line = once(place.out / "measured.jsonl", what, drawings[target, seed], sampling, quality)
            found[name].append(line)
            metrics = ", ".join(f"{metric} {line[metric]:.3f}" for metric in report.METRICS)
            typer.echo(f"{name}, seed {seed}: {metrics}")
    if not rounds:
        return

    def batch(target: str, sampling: Sampling) -> None:
        drawings[target, numbers[0]].batch(sampling)

    device, size = resolve_device(settings.run.device), settings.samples.batch_size
    works = {name: lambda point=point: batch(*point) for name, point in chosen.items()}
    seconds = in_turns(works, rounds, device)
    rows = [
        report.Row(
            name,
            target,
            asdict(sampling),
            size / statistics.median(seconds[name]),
            {metric: [line[metric] for line in found[name]] for metric in report.METRICS},
        )
        for name, (target, sampling) in chosen.items()
    ]
    about = {"images": images, "seeds": numbers, "classifier_accuracy": quality.accuracy, "batch": size}
    machine = Machine.measured(device, torch.float32)
    report.write(place.out, machine, rows, about, agreement, DEFAULT)
    typer.echo("\n".join(report.table(rows, agreement)))
