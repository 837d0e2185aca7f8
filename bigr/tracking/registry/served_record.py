"""What a version of the model is served with, besides its weights: written by `package.py`, kept in `MLmodel`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bigr.imaging.assembly import ImageSettings
from bigr.imaging.options import Editing
from bigr.models.described import from_values
from bigr.runtime.errors import BigrError
from bigr.sampling.unmask import Sampling

if TYPE_CHECKING:
    from bigr.config import Settings

Section = TypeVar("Section", Sampling, Editing)

_UNBOUNDED = 2**31
"""Images of one request, where a version does not say."""


@dataclass(frozen=True)
class ServedRecord:
    """images: how images are drawn; seed: of a request that names none; max_images: of one request, at most."""

    images: ImageSettings
    seed: int
    max_images: int

    @classmethod
    def of(cls, settings: "Settings", classes: Sequence[str]) -> "ServedRecord":
        """What a model of these settings is served with; classes: their names, in the order of labels."""
        images = ImageSettings(
            sampling=Sampling.of(settings.samples),
            presets={name: Sampling.of(section) for name, section in settings.samples.by_preset.items()},
            editing=Editing.of(settings.editing),
            classes=list(classes),
            precision=settings.run.precision,
            decode_precision=settings.run.decode_precision,
            compile=settings.run.compile,
            batch_size=settings.samples.batch_size,
            knows_labels=settings.generator.use_labels,
        )
        return cls(images, settings.seed, settings.serving.max_images)

    @classmethod
    def of_package(cls, package: Path) -> "ServedRecord":
        """The record of the version in the folder `package`. Raises `BigrError` where it cannot be read."""
        from mlflow.models import Model

        return cls.read(Model.load(str(package)).flavors["python_function"]["config"])

    @classmethod
    def read(cls, written: Mapping[str, Any]) -> "ServedRecord":
        """The record that `write` wrote. Earlier versions may lack presets, editing, max_images, compile and
        decode_precision.

        Raises `BigrError` where a value is missing, or a setting is unknown.
        """
        try:
            images = ImageSettings(
                sampling=_section(Sampling, written["samples"]),
                presets={name: _section(Sampling, values) for name, values in written.get("presets", {}).items()},
                editing=_section(Editing, written["editing"]) if "editing" in written else None,
                classes=list(written["classes"]),
                precision=str(written["precision"]),
                decode_precision=str(written.get("decode_precision", "float32")),
                compile=str(written.get("compile", "auto")),
                batch_size=int(written["batch_size"]),
                knows_labels=bool(written["use_labels"]),
            )
            return cls(images, int(written["seed"]), int(written.get("max_images", _UNBOUNDED)))
        except KeyError as missing:
            raise BigrError(f"the version does not say what it is served with: {missing.args[0]} is missing") from None

    def write(self) -> dict[str, Any]:
        """As plain values, by their names in params.yaml."""
        images = self.images
        editing = {} if images.editing is None else {"editing": asdict(images.editing)}
        return {
            "samples": asdict(images.sampling),
            "presets": {name: asdict(sampling) for name, sampling in images.presets.items()},
            **editing,
            "seed": self.seed,
            "precision": images.precision,
            "decode_precision": images.decode_precision,
            "compile": images.compile,
            "batch_size": images.batch_size,
            "max_images": self.max_images,
            "use_labels": images.knows_labels,
            "classes": list(images.classes),
        }


def _section(cls: type[Section], values: Mapping[str, Any]) -> Section:
    if unknown := values.keys() - {field.name for field in fields(cls)}:
        raise BigrError(f"the version is served with settings that this code lacks: {', '.join(sorted(unknown))}")
    return from_values(cls, values)
