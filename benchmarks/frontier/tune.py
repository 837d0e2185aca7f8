"""The search for the sampler's settings, for each number of diffusion steps by itself.

    python -m benchmarks frontier tune --target flip --steps 8,4,2
    python -m benchmarks frontier tune --target flip --steps 4 --set iterations=4

The target is the smallest fd ÷ floor among settings with enough label agreement. Each try's samples are drawn in equal
parts by the models of all seeds.

The best settings so far are changed in one or two of the searched settings to a neighbouring value, and kept where the
samples are better. All candidates draw with the same seeds, so that noise is common to them.
"""

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.frontier.quality import Drawing, Quality
from benchmarks.frontier.train import Folders, Out, Params, Project, Seeds
from bigr import config
from bigr.runtime.errors import BigrError
from bigr.runtime.seeds import derive_seed
from bigr.sampling.unmask import Sampling

GRIDS: dict[str, tuple[Any, ...]] = {
    "guidance_scale": (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0),
    "guidance_schedule": ("constant", "linear", "cosine"),
    "temperature": (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6),
    "gumbel_temperature": (0.0, 0.3, 0.6, 0.9, 1.2, 1.6, 2.0, 3.0),
}
"""The searched settings and their values, neighbours beside each other."""
MASK_GRIDS: dict[str, tuple[Any, ...]] = {"bit_noise": (0.0, 0.5, 1.0, 1.5, 2.5, 4.0, 6.0, 10.0)}
"""Those of the target mask alone."""

CLASSIFIER_SEEDS = (1, 2, 3)

Agreement = Annotated[float, typer.Option(help="The least label agreement of acceptable settings.")]


@dataclass(frozen=True)
class Point:
    """A target and the settings of the section `samples` that are not searched, the number of steps among them."""

    target: str
    fixed: Mapping[str, Any]

    @property
    def name(self) -> str:
        """As in flip-S8, or flip-S2-iterations4."""
        others = (f"-{name}{value}" for name, value in self.fixed.items() if name != "diffusion_steps")
        return f"{self.target}-S{self.fixed['diffusion_steps']}{''.join(others)}"

    @property
    def searched(self) -> dict[str, tuple[Any, ...]]:
        """The settings that are searched, and their values."""
        grids = GRIDS | (MASK_GRIDS if self.target == "mask" else {})
        return {name: values for name, values in grids.items() if name not in self.fixed}

    def settings(self, values: Mapping[str, Any]) -> config.Settings:
        """The settings of this point: `values` of params.yaml, with its own. Raises `BigrError`."""
        generator = {**values["generator"], "target": self.target}
        samples = {**values["samples"], "preset": None, **self.fixed}
        return config.validate({**values, "generator": generator, "samples": samples})


def better(first: Mapping[str, Any], second: Mapping[str, Any], agreement: float) -> bool:
    """Whether the first result is better: by distance where both agree as often as asked, else by agreement."""
    if min(first["agreement"], second["agreement"]) >= agreement:
        return bool(first["over_floor"] < second["over_floor"])
    return bool(first["agreement"] > second["agreement"])


def best(results: list[dict[str, Any]], agreement: float) -> dict[str, Any]:
    """The best of some results."""
    found = results[0]
    for result in results[1:]:
        if better(result, found, agreement):
            found = result
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines, none where it is missing."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def add_line(path: Path, value: Mapping[str, Any]) -> None:
    """Add an object to a file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")


def search(
    point: Point,
    start: Sampling,
    quality: Callable[[Sampling], Mapping[str, float]],
    path: Path,
    *,
    tries: int,
    agreement: float,
) -> Iterator[dict[str, Any]]:
    """Yield each try's settings and quality, and add them to `path` as JSON lines; what is there counts as tried.

    agreement: the least that is asked of the best.
    """
    results = read_lines(path)
    while len(results) < min(tries, math.prod(map(len, point.searched.values()))):
        draws = random.Random(derive_seed(0, "frontier", point.name, len(results)))
        tried = list(map(sampling_of, results))
        candidate = sampling_of(best(results, agreement)) if results else start
        while candidate in tried:  # a walk away from the best, until it meets settings that were not tried
            candidate = neighbour(candidate, point.searched, draws)
        results.append({"target": point.target, "sampling": asdict(candidate), **quality(candidate)})
        add_line(path, results[-1])
        yield results[-1]


def neighbour(sampling: Sampling, grids: Mapping[str, tuple[Any, ...]], draws: random.Random) -> Sampling:
    """`sampling` with one or two of the searched settings one or two values further."""
    changes = {}
    for name in draws.sample(sorted(grids), min(len(grids), draws.choice((1, 1, 2)))):
        values, now = grids[name], getattr(sampling, name)
        near = min(range(len(values)), key=lambda i: values[i] != now if isinstance(now, str) else abs(values[i] - now))
        place = near + draws.choice((-2, -1, 1, 2))
        changes[name] = values[place % len(values) if isinstance(now, str) else min(max(place, 0), len(values) - 1)]
    return replace(sampling, **changes)


def sampling_of(result: Mapping[str, Any]) -> Sampling:
    """The sampler's settings of a result."""
    values = result["sampling"].items()
    return Sampling(**{name: tuple(value) if isinstance(value, list) else value for name, value in values})


def described(result: Mapping[str, Any]) -> str:
    """A try in words."""
    sampling = ", ".join(f"{name} {result['sampling'][name]}" for name in (*GRIDS, *MASK_GRIDS))
    metrics = (f"{name} {result[name]:.3f}" for name in ("over_floor", "agreement", "precision", "recall"))
    return f"{sampling}: {', '.join(metrics)}"


def setting(text: str) -> tuple[str, Any]:
    """KEY=VALUE of --set. Raises `BigrError`."""
    name, found, value = text.partition("=")
    if not found:
        raise BigrError(f"--set must be KEY=VALUE, a setting of the section samples, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def main(
    target: Annotated[str, typer.Option(help="What the transcoder predicts.")] = "flip",
    steps: Annotated[str, typer.Option(help="Diffusion steps S, with commas.")] = "8",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Another setting of samples, not searched.")
    ] = None,
    seeds: Seeds = "0,1,2",
    images: Annotated[int, typer.Option(help="Samples of each try, of the models of all seeds together.")] = 1500,
    budget: Annotated[int, typer.Option(help="Samples of all tries of a number of steps.")] = 30_000,
    agreement: Agreement = 0.97,
    project: Project = Path(),
    params: Params = Path("params.yaml"),
    out: Out = None,
) -> None:
    """Search."""
    place, values, others = Folders.of(project, out), config.read(params), dict(map(setting, set_ or []))
    points = [Point(target, {"diffusion_steps": int(number), **others}) for number in steps.split(",")]
    settings = [point.settings(values) for point in points]  # all are checked before anything is drawn
    models = [place.trained(target, int(seed)) for seed in seeds.split(",")]
    quality = Quality(project, place.out, settings[0], CLASSIFIER_SEEDS)
    for point, own in zip(points, settings, strict=True):
        drawings = [Drawing.of(model, own) for model in models]

        def measured(sampling: Sampling, drawings: list[Drawing] = drawings) -> dict[str, float]:
            part = images // len(drawings)
            drawn = [drawing.images(sampling, part, "tune", number) for number, drawing in enumerate(drawings)]
            return quality.of(*map(torch.cat, zip(*drawn, strict=True)))

        path = place.tuned / f"{point.name}.jsonl"
        start, tries = Sampling.of(own.samples), budget // images
        for result in search(point, start, measured, path, tries=tries, agreement=agreement):
            typer.echo(f"{point.name}: {described(result)}")
        typer.echo(f"{point.name}, best: {described(best(read_lines(path), agreement))}")
