"""`bigr evaluate`: fidelity of any set of images against any other."""

import contextlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigr.runtime.errors import BigrError

if TYPE_CHECKING:
    from bigr.config import Settings
    from bigr.evaluation.fidelity.comparison import Comparison, MeasuredSet
    from bigr.evaluation.fidelity.extractors import Extractor

log = logging.getLogger(__name__)

CACHE = Path(".cache", "bigr")
_SHORT = 12  # digits of a hash that people are shown
_SET = "A folder of images, an .npz of ADM, a folder of shards, or a .safetensors of statistics."


def evaluate(
    reference: Annotated[Path, typer.Option(metavar="SET", help=_SET)],
    samples: Annotated[Path | None, typer.Option(metavar="SET", help="The same: the set that is judged.")] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the reference's shards; evaluation.reference by default.")
    ] = None,
    samples_split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the samples' shards; val by default.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, metavar="PIXELS", help="Crop every image to this, as ADM does.")
    ] = None,
    extractor: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="classifier, inception-v3-compat, another of torch-fidelity's, or module:Class of your own; "
            "evaluation.extractor by default.",
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Of the extractor: a file; of the classifier its model folder.")
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Let torch-fidelity fetch the weights.")] = False,
    save_statistics: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep the reference's statistics as FILE.safetensors, a reference as good."),
    ] = None,
    moments_only: Annotated[
        bool, typer.Option("--moments-only", help="Keep mean and covariance alone: small, but for FID only.")
    ] = False,
    params: Annotated[Path, typer.Option(metavar="FILE", help="The settings.")] = Path("params.yaml"),
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Measure samples against a reference: FID, KID and the like.

    The reference's statistics are remembered in .cache/bigr, by its content: the next time it is not extracted again.
    """
    from functools import cache, partial

    from bigr import config
    from bigr.evaluation.fidelity import comparison, statistics_files
    from bigr.evaluation.fidelity.distances import Fidelity
    from bigr.evaluation.imagesets.image_sets import has_splits, open_set
    from bigr.runtime.copies import set_bound
    from bigr.runtime.device import resolve_device

    if samples is None and save_statistics is None:
        raise BigrError("nothing to do: give --samples SET, or --save-statistics FILE for the reference alone")
    if save_statistics is not None:
        statistics_files.check_writable(save_statistics)
    elif moments_only:
        raise BigrError("--moments-only says what --save-statistics keeps; give that too")
    for option, name, path in (("--split", split, reference), ("--samples-split", samples_split, samples)):
        if name is not None and (path is None or (path.exists() and not has_splits(path))):
            raise BigrError(f"{option} {name}: {path or 'no set'} has no splits; only shards with an index.json do")
    settings = config.load(params)
    set_bound(settings.run.cache_gb)
    section, workers = settings.evaluation, settings.run.workers
    made = cache(lambda: _extractor(settings, extractor, weights, download))
    if extractor or weights or download:
        made()  # what is wrong with it comes before anything takes time
    opened = partial(open_set, size=size, workers=workers, max_pixels=settings.shards.max_pixels)
    known = opened(reference, split=split or section.reference)
    judged = None if samples is None else opened(samples, split=samples_split or "val")
    sets = [known] if judged is None else [known, judged]
    if any(one.images for one in sets):
        for one in sets:
            comparison.check_extractor(one, made())
    theirs = comparison.measure_set(known, made, section.batch_size, name="reference", cache=CACHE / "statistics")
    if save_statistics is not None:
        try:
            statistics_files.write_statistics(
                save_statistics, theirs.statistics, comparison.about(known), features=not moments_only
            )
        except OSError as error:
            raise BigrError(f"--save-statistics: {save_statistics} cannot be written: {error.strerror}") from None
        typer.echo(f"the reference's statistics are in {save_statistics}", err=True)
    if judged is None:
        return
    ours = comparison.measure_set(judged, made, section.batch_size, name="samples")
    found = comparison.compare(Fidelity.of(section, resolve_device(settings.run.device)), ours, theirs)
    for line in found.warnings:
        typer.echo(f"warning: {line}", err=True)
    typer.echo(json.dumps(_as_json(found, settings), indent=2, ensure_ascii=False) if as_json else _page(found))


def _extractor(settings: "Settings", name: str | None, weights: Path | None, download: bool) -> "Extractor":
    from bigr.evaluation.fidelity import extractors
    from bigr.runtime.device import resolve_device

    section, device = settings.evaluation, resolve_device(settings.run.device)
    name = name or section.extractor
    if name == extractors.CLASSIFIER:
        if download:
            raise BigrError("--download: the classifier is not to be had anywhere; leave it out, it is trained here")
        return extractors.classifier_extractor(_classifier(settings, weights).to(device), device)
    if name != extractors.INCEPTION:
        return extractors.other_extractor(name, Path.cwd(), device, weights=weights, download=download)
    if weights is not None:
        return extractors.inception_extractor(extractors.read_inception_weights(weights, "--weights"), device)
    if download:
        return extractors.inception_extractor(extractors.download_inception_weights(), device)
    if section.extractor == name and section.extractor_weights is not None:
        found = extractors.read_inception_weights(Path(section.extractor_weights))
        return extractors.inception_extractor(found, device)
    raise BigrError(f"--extractor {name} has no weights; give --weights FILE, or --download to let it fetch them")


def _classifier(settings: "Settings", folder: Path | None) -> Any:
    """The offline classifier of a model folder, or the one that the stage evaluation would train, kept in the cache."""
    import hashlib

    import torch

    from bigr.data.shards import ShardIndex
    from bigr.evaluation.fidelity import classifier
    from bigr.evaluation.fidelity.classifier import Classifier, train_on_shards
    from bigr.evaluation.imagesets.image_stream import split_hash
    from bigr.interop.folders import load_model, save
    from bigr.runtime.device import resolve_device
    from bigr.runtime.files import sha256_file
    from bigr.runtime.locks import only_one

    if folder is not None:
        return load_model(folder, Classifier)
    shards, section = Path("data", "shards"), settings.evaluation
    if not (shards / "index.json").is_file():
        raise BigrError(
            f"the classifier is trained on {shards}, which is not there; run the stage shards, or give --weights with "
            "a classifier's model folder"
        )
    index = ShardIndex.load(shards)
    values = {key: value for key, value in section.model_dump().items() if key.startswith("classifier_")}
    device = resolve_device(settings.run.device)
    code = [sha256_file(Path(str(classifier.__file__))), torch.__version__, device.type]
    shape = [split_hash(index, "train"), index.image_size, index.classes, index.class_counts("train")]
    place = CACHE / "classifiers" / hashlib.sha256(json.dumps([*shape, values, *code]).encode()).hexdigest()
    waiting = "another `bigr evaluate` (process %s) trains the classifier; waiting for it to end"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(only_one(place.parent / ".lock", lambda process: log.info(waiting, process)))
            if place.is_dir():
                return load_model(place, Classifier)
        except (BigrError, OSError) as error:
            log.warning("%s; the classifier is trained again", error)
        trained = train_on_shards(section, shards, settings.run.workers, device)
        try:
            save(place, trained)
        except OSError as error:
            log.warning("the classifier is not remembered: %s", error)
    return trained


def _as_json(found: "Comparison", settings: "Settings") -> dict[str, Any]:
    section, statistics = settings.evaluation, found.samples.statistics
    return {
        "figures": found.metrics,
        "missing": found.missing,
        "extractor": {"name": statistics.extractor, "hash": statistics.extractor_hash},
        "samples": found.samples.as_json(),
        "reference": found.reference.as_json(),
        "kid_subset_size": section.kid_subset_size,
        "kid_subsets": section.kid_subsets,
        "precision_recall_neighbours": section.precision_recall_neighbours,
        "warnings": found.warnings,
    }


def _page(found: "Comparison") -> str:
    from bigr.evaluation.fidelity.distances import metric_names

    statistics = found.samples.statistics
    called = metric_names(statistics.extractor)
    meanings = {
        called.distance: ("↓", "Fréchet distance of the features' means and covariances"),
        called.kernel: ("↓", "kernel distance of the features, the mean over random subsets"),
        called.score: ("↑", "how sure each sample's class is, and how many classes there are"),
        "precision": ("↑", "share of the samples that lie among the reference"),
        "recall": ("↑", "share of the reference that lies among the samples"),
    }
    shown = {name: f"{found.metrics[name]:.6g}" if name in found.metrics else "–" for name in meanings}
    left, right = max(map(len, meanings)), max(map(len, shown.values()))
    lines = [
        f"{'samples':<{left}}  {_set(found.samples)}",
        f"{'reference':<{left}}  {_set(found.reference)}",
        f"{'extractor':<{left}}  {statistics.extractor} {statistics.extractor_hash[:_SHORT]}",
        "",
    ]
    for name, (arrow, meaning) in meanings.items():
        reason = f"{meaning}: not measured, {found.missing[name]}" if name in found.missing else meaning
        lines.append(f"{name:<{left}}  {shown[name]:>{right}}  {arrow} {reason}")
    return "\n".join(lines)


def _set(measured: "MeasuredSet") -> str:
    images = measured.set
    parts = [f"{images.path} {images.split}" if images.split else str(images.path)]
    parts.append("statistics of images that it does not count" if images.count is None else f"{images.count:,} images")
    if images.size:
        parts.append(f"{images.size[0]}×{images.size[1]}")
    stored = (name if len(images.formats) == 1 else f"{count:,} {name}" for name, count in images.formats.items())
    parts += [" and ".join(stored)] if images.formats else []
    parts += ["cached"] if measured.cached else []
    return ", ".join(parts)
