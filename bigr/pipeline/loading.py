"""`bigr.load`: a trained model as one object, from a folder or from MLflow's registry.

The sampler's settings come with the model: a version of the registry holds its own; in a project they are those of
params.yaml. Models that come alone, as `bigr import` writes them, are sampled as the paper samples theirs.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigr import config
from bigr.data.shards import ShardIndex
from bigr.imaging.drawing import Sampler, limits
from bigr.imaging.model import Editing, ImageModel
from bigr.interop.belonging import check_pair
from bigr.interop.folders import load_model
from bigr.interop.standardisation import load_statistics
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.models.masked.generator import BiGR
from bigr.runtime.device import autocast, resolve_device
from bigr.runtime.errors import BigrError
from bigr.sampling.unmask import Sampling

if TYPE_CHECKING:
    from bigr.config import Settings

REGISTRY = "models:/"

PAPER = Sampling(
    iterations=20,
    diffusion_steps=100,
    guidance_scale=2.5,
    guidance_schedule="constant",
    gumbel_temperature=0.17,
)
"""Table 7 of the paper, the model L."""
PAPER_LARGER = {
    36: replace(PAPER, iterations=25, gumbel_temperature=0.25),
    48: replace(PAPER, iterations=25, gumbel_temperature=0.3),
}
"""The same for XL and XXL, by their layers."""
PAPER_EDITING = Editing(
    guidance_scale=2.5, gumbel_temperature=0.17, feather=0.5, enrich_guidance_scale=10.0, enrich_rounds=1
)
"""Where no settings come with the model: docs/method.md, sections 4 and 5."""
BATCH_SIZE = 16
"""Pictures that are drawn together, where no settings come with the model."""


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
    models: Path,
    settings: "Settings | None",
    device: str,
    *,
    own: dict[str, Any] | None = None,
) -> ImageModel:
    """The networks below `models`, and their sampler: `settings`', else that of a version's `own` record, else the
    paper's."""
    where = resolve_device(device if settings is None or device != "auto" else settings.run.device)
    tokenizer = load_model(models / "tokenizer", Tokenizer).to(where)
    network = load_model(models / "bigr", BiGR).to(where)
    check_pair(tokenizer, network, (models / "tokenizer", models / "bigr"))
    precision, batch_size, knows_labels = "auto", BATCH_SIZE, True
    sampling, editing = PAPER_LARGER.get(network.config.layers, PAPER), PAPER_EDITING
    classes: Sequence[str] = [str(number) for number in range(network.config.num_classes)]
    if own is not None:
        sampling, precision, batch_size = Sampling(**own["samples"]), own["precision"], int(own["batch_size"])
        knows_labels, classes = bool(own["use_labels"]), own["classes"]
        if "editing" in own:  # versions of earlier days have none
            editing = Editing(**own["editing"])
    if settings is not None:
        sampling, editing = Sampling.of(settings.samples), Editing(**settings.editing.model_dump())
        precision, batch_size = settings.run.precision, settings.samples.batch_size
        knows_labels = settings.generator.use_labels if own is None else knows_labels
    fitting = {name: min(getattr(sampling, name), most) for name, (_, most) in limits(network).items()}
    sampler = Sampler(tokenizer, network, batch_size, partial(autocast, where, precision, network.config.dim))
    statistics = load_statistics(models / "features", models / "bigr")
    return ImageModel(
        sampler, replace(sampling, **fitting), editing, classes, knows_labels=knows_labels, statistics=statistics
    )


def _of_package(folder: Path, params: Path | str | None, device: str) -> ImageModel:
    """A version as bigr/tracking/registry/package.py writes it."""
    from bigr.tracking.registry.package import served_with

    settings = None if params is None else config.load(Path(params))
    return _assembled(folder / "artifacts", settings, device, own=served_with(folder))


def _of_registry(text: str, params: Path | str | None, device: str) -> ImageModel:
    from bigr.tracking.registry.versions import Registry
    from bigr.tracking.store import Store, asking

    root = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        with asking(root):
            registry = Registry(Store(root))
            package = registry.fetch(registry.named(text), Path(folder))
        return _of_package(package, params, device)
