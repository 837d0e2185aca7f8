"""The models that are compared: one for each target and seed.

    python -m benchmarks frontier train --targets flip,direct --seeds 0,1,2

Trained by the stages `generator` and `transcoder` on the project's codes, with the same settings except for target and
seed. The settings are written down with the processor time, since other work on the machine does not change that.
"""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from bigr import config
from bigr.pipeline.runner import function_of
from bigr.runtime.context import Context
from bigr.runtime.errors import BigrError
from bigr.runtime.files import write_json

STAGES = ("generator", "transcoder")
SHARED = ("data/codes", "models/tokenizer")
RECORD = "record.json"
"""In a model's folder: the settings that it was trained with, and its stages' processor seconds."""

Seeds = Annotated[str, typer.Option(help="Seeds of the models, with commas.")]
Project = Annotated[Path, typer.Option(help="The project's folder.")]
Params = Annotated[Path, typer.Option(help="The settings.")]
Out = Annotated[Path | None, typer.Option(help="By default outputs/frontier in the project.", show_default=False)]


@dataclass(frozen=True)
class Folders:
    """A project whose images are encoded, and the folder of the comparison's own models and results."""

    project: Path
    out: Path

    @classmethod
    def of(cls, project: Path, out: Path | None) -> "Folders":
        """Of the options --project and --out."""
        return cls(project, out or project / "outputs" / "frontier")

    @property
    def tuned(self) -> Path:
        """The folder of what `tune` found: a file for each point."""
        return self.out / "tuned"

    def model(self, target: str, seed: int) -> Path:
        """The folder of the model with this target and seed."""
        return self.out / f"{target}-{seed}"

    def trained(self, target: str, seed: int) -> Path:
        """The same, of a model that is there. Raises `BigrError` where it is not."""
        folder = self.model(target, seed)
        if not (folder / RECORD).is_file():
            raise BigrError(
                f"{folder}: no trained model there; run `python -m benchmarks frontier train --targets {target} "
                f"--seeds {seed}` first"
            )
        return folder

    def train(self, values: dict[str, Any], target: str, seed: int) -> dict[str, Any]:
        """Train a model with the settings `values`, except for target and seed; return its record.

        What is there is not trained again, and a training that was stopped continues. Raises `BigrError` where the
        project has no codes, and where the folder holds a model of other settings.
        """
        folder = self.model(target, seed)
        settings = config.validate({**values, "seed": seed, "generator": {**values["generator"], "target": target}})
        used = {"seed": seed, "precision": settings.run.precision}
        used |= {name: getattr(settings, name).model_dump(by_alias=True) for name in STAGES}
        if (folder / RECORD).is_file():
            found: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            if not within(found["settings"], used):
                raise BigrError(f"{folder} was trained with other settings; delete it, or name another folder in --out")
            return found
        for name in SHARED:
            self._link(folder, name)
        digest = hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()
        seconds = {}
        for stage in STAGES:
            started = time.process_time()
            function_of(stage)(settings, Context(folder, digest))
            seconds[stage] = time.process_time() - started
        record = {"settings": used, "seconds": seconds}
        write_json(folder / RECORD, record)
        return record

    def _link(self, folder: Path, name: str) -> None:
        source, place = self.project / name, folder / name
        if not source.is_dir():
            raise BigrError(f"{source} is missing; run `dvc repro codes` in {self.project} first")
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.is_symlink():
            place.symlink_to(source.absolute(), target_is_directory=True)


def within(recorded: Any, current: Any) -> bool:
    """Whether the recorded settings have the current values; a setting that is newer than the record does not count."""
    if isinstance(recorded, dict) and isinstance(current, dict):
        return all(name in current and within(value, current[name]) for name, value in recorded.items())
    return bool(recorded == (list(current) if isinstance(current, tuple) else current))  # JSON has no tuples


def main(
    seeds: Seeds = "0,1,2",
    targets: Annotated[str, typer.Option(help="What the transcoders predict, with commas.")] = "flip,mask,direct",
    project: Project = Path(),
    params: Params = Path("params.yaml"),
    out: Out = None,
) -> None:
    """Train what is not there."""
    place, values = Folders.of(project, out), config.read(params)
    for seed in map(int, seeds.split(",")):
        for target in targets.split(","):
            seconds = place.train(values, target, seed)["seconds"]
            typer.echo(f"{target}, seed {seed}: trained in {sum(seconds.values()):.0f} processor seconds")
