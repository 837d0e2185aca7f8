"""`bigr.load`: a trained model as one object, from a folder or from MLflow's registry.

The sampler's settings come with the model: a version of the registry holds its own; in a project they are those of
params.yaml. Models that come alone, as `bigr import` writes them, are sampled as the paper samples theirs.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bigr import config
from bigr.data.shards import ShardIndex
from bigr.imaging.assembly import ImageSettings, load_networks
from bigr.imaging.model import ImageModel
from bigr.imaging.options import Editing
from bigr.runtime.errors import BigrError
from bigr.sampling.unmask import Sampling

if TYPE_CHECKING:
    from bigr.config import Settings

REGISTRY = "models:/"


def load(source: str | Path = "models", *, params: Path | str | None = None, device: str = "auto") -> ImageModel:
    """The model in `source`, ready to use.

    source: a project's folder, a folder that holds `tokenizer/` and `bigr/`, or a version in MLflow's registry:
    "models:/bigr@champion", "models:/bigr/3". params: a params.yaml whose sampler is to be used instead of the model's
    own; device: as `run.device`. Raises `BigrError` where there is no such model, or its parts do not fit each other.
    """
    text = str(source)
    if text.startswith(REGISTRY):
        return _of_registry(text, params, device)
    folder = Path(source)
    if (folder / "MLmodel").is_file():
        return _of_package(folder, params, device)
    models = folder / "models" if (folder / "models" / "bigr").is_dir() else folder
    for name in ("tokenizer", "bigr"):
        if not (models / name / "config.json").is_file():
            raise BigrError(
                f"{folder}: no model there ({models / name} is missing); `dvc repro` makes one in a project's models/, "
                "`bigr import` from published files"
            )
    project = models.absolute().parent
    own = project / "params.yaml"
    if params is None and models.absolute().name == "models" and own.is_file():
        params = own
    settings = None if params is None else config.load(Path(params))
    model = _assembled(models, settings, device)
    shards = project / "data" / "shards"
    if (shards / "index.json").is_file():
        names = ShardIndex.load(shards).classes
        if len(names) == len(model.classes):
            model.classes = tuple(names)
    return model


def _assembled(
    models: Path, settings: "Settings | None", device: str, *, own: ImageSettings | None = None
) -> ImageModel:
    """The networks below `models`, and their sampler: `settings`', else a version's `own`, else the paper's."""
    networks = load_networks(models, device if settings is None or device != "auto" else settings.run.device)
    how = own or ImageSettings.of_folder(models, networks[1])
    if settings is not None:
        how = replace(
            how,
            sampling=Sampling.of(settings.samples),
            presets={name: Sampling.of(section) for name, section in settings.samples.by_preset.items()},
            editing=Editing.of(settings.editing),
            precision=settings.run.precision,
            decode_precision=settings.run.decode_precision,
            compile=settings.run.compile,
            batch_size=settings.samples.batch_size,
            knows_labels=settings.generator.use_labels if own is None else own.knows_labels,
        )
    return ImageModel.of(models, networks, how)


def _of_package(folder: Path, params: Path | str | None, device: str) -> ImageModel:
    """A version as bigr/tracking/registry/package.py writes it."""
    from bigr.tracking.registry.served_record import ServedRecord

    settings = None if params is None else config.load(Path(params))
    return _assembled(folder / "artifacts", settings, device, own=ServedRecord.of_package(folder).images)


def _of_registry(text: str, params: Path | str | None, device: str) -> ImageModel:
    from bigr.tracking.registry.versions import Registry
    from bigr.tracking.store import Store, asking

    root = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        with asking(root):
            registry = Registry(Store(root))
            package = registry.fetch(registry.named(text), Path(folder))
        return _of_package(package, params, device)
