"""Stage `evaluation`: fidelity, reconstruction, representation, code usage, and what needs no further training.

Reads outputs/samples.npz, data/shards, data/codes, models/tokenizer and models/bigr; writes outputs/metrics.json, the
few of it that DVC compares as outputs/headline.json, outputs/plots, models/classifier, models/features (how features
are standardised, and the layer that predicts classes best), outputs/protocol.json (the extractor and the reference of
the distances, the judge of captions: metrics of others do not compare) and outputs/evaluation-parts.json (which parts
were measured, left out, or failed). Where a part fails, the metrics of the others are written before the stage fails.
Classifier, judges, probe and draws of subsets have a seed of their own, so that the metrics of runs with different
`seed` compare. All in float32, whatever `run.precision` is.

All processes measure together (`bigr.evaluation.measurement`); the first computes t-SNE, and writes. Features are in
checkpoints/evaluation, part by part, and a run that was killed continues with those that are there. No process holds
all samples.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bigr.data.codes import CodesDataset
from bigr.data.shards import ShardIndex
from bigr.data.sources.source import SPLITS
from bigr.evaluation import plots
from bigr.evaluation.captions.caption_retrieval import retrieval_metrics
from bigr.evaluation.evaluation_parts import NotApplicable, Parts
from bigr.evaluation.fidelity.distances import Fidelity, metric_names
from bigr.evaluation.fidelity.extractors import (
    CLASSIFIER,
    read_inception_weights,
)
from bigr.evaluation.fidelity.neighbours import draw_neighbours, measured_places
from bigr.evaluation.headline import headline
from bigr.evaluation.imagesets.image_stream import ImageStream, reconstructions, split_hash, split_images
from bigr.evaluation.imagesets.npz_images import read_samples, read_texts
from bigr.evaluation.measurement import PAIRS, Inputs, Measured, measure
from bigr.evaluation.representation.representation_metrics import (
    COLUMNS,
    Representation,
    represent,
)
from bigr.interop.belonging import check_codes
from bigr.interop.folders import load_model, model_hash, save
from bigr.interop.standardisation import save_statistics
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.models.masked.generator import BiGR
from bigr.runtime.context import Context
from bigr.runtime.device import resolve_device
from bigr.runtime.distributed import is_main
from bigr.runtime.dotted_keys import flatten
from bigr.runtime.errors import BigrError
from bigr.runtime.files import atomic_folder, write_csv, write_json
from bigr.runtime.unfinished import keep_parts, remove_parts

if TYPE_CHECKING:
    from bigr.config import EvaluationSettings as Section
    from bigr.config import Settings

PLOTS = ("probe", "tsne", "bits", "confusion", "neighbours")
_SMALLEST_FLOOR = 1e-12  # no division by zero where the two splits are the same images


def run(settings: "Settings", context: Context) -> None:
    """Load, measure, write, report."""
    inputs, asked = load(settings, context)
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        measured = measure(inputs)
        if is_main():
            write(inputs, asked, measured, context)


def load(settings: "Settings", context: Context) -> tuple[Inputs, Tensor]:
    """What is measured, and the labels that the samples were drawn from, int64 [n]."""
    section, device, root = settings.evaluation, resolve_device(settings.run.device), context.root
    inception = None
    if section.extractor != CLASSIFIER:  # before anything takes time
        inception = read_inception_weights(root / str(section.extractor_weights))
    folder = root / "data" / "shards"
    shards = ShardIndex.load(folder)
    tokenizer, model = load_model(root / "models" / "tokenizer", Tokenizer), load_model(root / "models" / "bigr", BiGR)
    codes = open_codes(root, shards)
    check_codes(model, root / "models" / "bigr", codes["train"])
    drawn, asked = read_samples(root / "outputs" / "samples.npz", shards.image_size, len(shards.classes))
    counts = {split: min(section.reference_images, shards.images(split)) for split in SPLITS}
    originals = {split: split_images(folder, split, counts[split], settings.run.workers) for split in SPLITS}
    restored = reconstructions(tokenizer.to(device), codes["val"], counts["val"], section.batch_size)
    labels = codes["val"].batch(torch.arange(counts["val"]))[1]
    sets = {"samples": drawn, "reconstructions": restored, **originals}
    unfinished = root / "checkpoints" / "evaluation"
    keep_parts(unfinished, context.fingerprint)
    texts = read_texts(root / "outputs" / "samples.npz")
    inputs = Inputs(
        settings, device, root, shards, codes, tokenizer, model, inception, sets, labels, texts, unfinished=unfinished
    )
    return inputs, asked


def write(inputs: Inputs, asked: Tensor, measured: Measured, context: Context) -> None:
    """All metrics, plots and models, by the first process."""
    section, root, shards, classes, sets = inputs.section, inputs.root, inputs.shards, inputs.classes, inputs.sets
    parts, metrics, protocol = Parts(), defaultdict[str, dict[str, float]](dict), dict[str, object]()
    representation: Representation | None = None
    with atomic_folder(root / "outputs" / "plots") as pictures:
        with parts("classifier"):
            save(root / "models" / "classifier", measured.classifier.result())
            metrics["classifier"] = {"val_accuracy": agreement(measured.seen["val"].result(), inputs.labels)}
        with parts("label_agreement"):
            metrics["reconstructions"]["label_agreement"] = agreement(
                measured.seen["reconstructions"].result(), inputs.labels
            )
            if (asked < 0).any():
                raise NotApplicable("samples.prompts names texts, and no classes")
            metrics["samples"]["label_agreement"] = agreement(measured.seen["samples"].result(), asked)
            draw_confusion(pictures, asked, measured.seen["samples"].result(), classes)
        with parts("fidelity"):
            extractor = measured.looked.result()
            protocol |= about(section, extractor.hash, shards, sets)
            for name, values in distances(section, measured, parts).items():
                metrics[name] |= values
        with parts("neighbours"):
            found, metrics["samples"]["nearest_ratio"] = measured.copies.result()
            places = measured_places(len(sets["samples"]), len(sets["val"]))
            draw_neighbours(pictures / "neighbours.png", sets["samples"], places, found, sets["train"])
        if inputs.texts is not None:
            with parts("retrieval"):
                protocol["judge"] = measured.judge.result().about
                similar = measured.similar.result()
                metrics["retrieval"] = retrieval_metrics(similar, parts, scores=section.clip is not None)
        if inputs.of_scenes:
            with parts("attributes"):
                metrics["attributes"] = measured.attributes.result()
        with parts("psnr"):
            metrics["reconstructions"]["psnr"] = measured.psnr.result()
        with parts("codes"):
            usage = measured.codes.result()
            metrics["codes"] = usage.metrics()
            plots.bits_plot(pictures / "bits.png", usage)
        with parts("representation"):
            representation = represent(section, *measured.features.result())
            metrics |= representation.metrics()
            representation.draw(pictures, classes)
            save_statistics(root / "models" / "features", representation.statistics, root / "models" / "bigr")
        with parts("zero_shot"):
            every = measured.zero_shot.result()
            metrics["zero_shot"]["images"] = float(min(section.zero_shot_images, len(sets["val"])))
            for name, application in every.items():
                with parts(f"zero_shot.{name}"):
                    metrics["zero_shot"] |= application.result()
    for name, (ours, _) in PAIRS.items():
        if name in metrics:
            metrics[name]["images"] = len(sets[ours])

    if representation is None:  # DVC expects the folder
        with atomic_folder(root / "models" / "features"):
            pass
    if "extractor" in protocol:
        write_json(root / "outputs" / "protocol.json", protocol)
    write_json(root / "outputs" / "metrics.json", metrics)
    write_json(root / "outputs" / "headline.json", headline(metrics))
    write_json(root / "outputs" / "evaluation-parts.json", parts.as_json())
    report(context, metrics, representation)
    parts.check("outputs/metrics.json", "outputs/evaluation-parts.json")
    remove_parts(inputs.unfinished)


def distances(section: "Section", measured: Measured, parts: Parts) -> dict[str, dict[str, float]]:
    """The distances of samples, reconstructions and the validation split, each under its name in metrics.json."""
    found = {name: measured.distances[name].result() | measured.precision_recall[name].result() for name in PAIRS}
    for name, values in found.items():
        if "precision" not in values:
            parts.leave_out(f"precision and recall of {name}", Fidelity.of(section, torch.device("cpu")).too_few)
    distance = metric_names(section.extractor).distance
    floor = max(found["val_against_train"][distance], _SMALLEST_FLOOR)
    found["samples"]["over_floor"] = found["samples"][distance] / floor
    return found


def open_codes(root: Path, shards: ShardIndex) -> dict[str, CodesDataset]:
    """Both splits' codes. Raises `BigrError` where they are of another tokenizer or of other images."""
    tokenizer = model_hash(root / "models" / "tokenizer")
    codes = {split: CodesDataset.open(root / "data" / "codes", split, tokenizer) for split in SPLITS}
    for split in SPLITS:
        if codes[split].class_counts != shards.class_counts(split):
            raise BigrError("data/codes holds codes of other images than data/shards; run the stage codes again")
    return codes


def about(section: "Section", extractor: str, shards: ShardIndex, sets: Mapping[str, ImageStream]) -> dict[str, object]:
    """What the distances depend on besides the images measured: metrics compare only where all of it is the same.

    extractor: the hash of its weights.
    """
    reference = section.reference
    return {
        "extractor": {"name": section.extractor, "hash": extractor},
        "reference": {
            "split": reference,
            "images": len(sets[reference]),
            "hash": split_hash(shards, reference),
        },
        "kid_subset_size": section.kid_subset_size,
        "kid_subsets": section.kid_subsets,
        "precision_recall_neighbours": section.precision_recall_neighbours,
    }


def agreement(seen: Tensor, labels: Tensor) -> float:
    """The share of images that the classifier assigns to their label."""
    return float((seen == labels).double().mean())


def draw_confusion(folder: Path, asked: Tensor, seen: Tensor, classes: list[str]) -> None:
    """Write which class the classifier sees in samples of each class, and the table behind it."""
    plots.confusion_plot(folder / "confusion.png", asked.numpy(), seen.numpy(), classes)
    pairs = zip(asked.tolist(), seen.tolist(), strict=True)
    write_csv(folder / "confusion.csv", ("actual", "predicted"), ((classes[a], classes[s]) for a, s in pairs))


def report(context: Context, metrics: Mapping[str, Mapping[str, float]], representation: Representation | None) -> None:
    """Report the metrics by their names in metrics.json, those of layers as curves over layers, and the pictures."""
    if representation is not None:
        for layer, *accuracies in representation.table():
            names = (f"probe_by_layer.{column}" for column in COLUMNS[1:])
            context.report.metrics(dict(zip(names, accuracies, strict=True)), step=int(layer))
    context.report.metrics(flatten(metrics))
    outputs = context.root / "outputs"
    pictures = [outputs / "samples.png", *(outputs / "plots" / f"{name}.png" for name in PLOTS)]
    for picture in filter(Path.is_file, pictures):
        context.report.picture(picture.stem, picture)
