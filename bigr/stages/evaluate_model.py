"""Stage `evaluation`: fidelity, reconstruction, representation, code usage, and what needs no further training.

Reads outputs/samples.npz, data/shards, data/codes, models/tokenizer and models/bigr; writes outputs/metrics.json, the
few of it that DVC compares as outputs/headline.json, outputs/plots, models/classifier, models/features (how features
are standardised, and the layer that predicts classes best), outputs/protocol.json (the extractor and the reference of
the distances, the judge of captions: metrics of others do not compare) and outputs/evaluation-parts.json (which parts
were measured, left out, or failed). Where a part fails, the metrics of the others are written before the stage fails.
Classifier, judges, probe and draws of subsets have a seed of their own, so that the metrics of runs with different
`seed` compare. All in float32, whatever `run.precision` is.

Every process computes a share of the features, of the classifier's predictions, of PSNR and of k-NN
(`bigr.evaluation.measurement`); the first does the rest, and writes. Features are in checkpoints/evaluation, part by
part, and a run that was killed continues with those that are there. No process holds all samples.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bigr.data.codes import CodesDataset
from bigr.data.embedded.scenes import CLASSES as SCENES
from bigr.data.shards import ShardIndex, first_captions
from bigr.data.sources.source import SPLITS
from bigr.evaluation import plots
from bigr.evaluation.captions.caption_retrieval import CaptionedSet, Judge, retrieval_metrics
from bigr.evaluation.captions.clip_judge import ClipJudge
from bigr.evaluation.captions.trained_judge import train_judge
from bigr.evaluation.code_usage import code_usage
from bigr.evaluation.evaluation_parts import Attempt, NotApplicable, Parts
from bigr.evaluation.fidelity.classifier import Classifier
from bigr.evaluation.fidelity.distances import Fidelity, metric_names
from bigr.evaluation.fidelity.extractors import (
    CLASSIFIER,
    Extractor,
    read_inception_weights,
)
from bigr.evaluation.fidelity.neighbours import MEASURED, draw_neighbours, nearest, nearest_ratio
from bigr.evaluation.fidelity.statistics import KEPT, read_measured
from bigr.evaluation.headline import headline
from bigr.evaluation.imagesets.image_stream import ImageStream, reconstructions, split_hash, split_images
from bigr.evaluation.imagesets.npz_images import read_samples, read_texts, read_train_samples
from bigr.evaluation.measurement import Inputs, Measured, measure, needed
from bigr.evaluation.representation.representation_metrics import (
    COLUMNS,
    Representation,
    represent,
)
from bigr.evaluation.scene_attributes import attribute_metrics, train_reader
from bigr.evaluation.zero_shot import ZeroShot, measured_model
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
    inputs = Inputs(
        settings, device, root, shards, codes, tokenizer, model, inception, sets, labels, unfinished=unfinished
    )
    return inputs, asked


def write(inputs: Inputs, asked: Tensor, measured: Measured, context: Context) -> None:
    """What the first process measures alone; then all metrics, plots and models."""
    section, device, root = inputs.section, inputs.device, inputs.root
    shards, codes, classes, sets = inputs.shards, inputs.codes, inputs.classes, inputs.sets
    drawn, restored, originals = sets["samples"], sets["reconstructions"], {split: sets[split] for split in SPLITS}
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
            protocol |= about(section, extractor.hash, shards, originals)
            for name, values in distances(inputs, extractor, parts).items():
                metrics[name] |= values
        with parts("neighbours"):
            most = min(MEASURED, len(drawn), len(originals["val"]))
            few = drawn.some(torch.linspace(0, len(drawn) - 1, most).long().tolist())
            mine = nearest(few, originals["train"], device)
            held_out = nearest(originals["val"].first(most, section.batch_size), originals["train"], device)
            metrics["samples"]["nearest_ratio"] = nearest_ratio(mine, held_out)
            draw_neighbours(pictures / "neighbours.png", few, mine, originals["train"])
        texts = read_texts(root / "outputs" / "samples.npz")
        if texts is not None:
            with parts("retrieval"):
                judge = judge_of(section, root, shards, originals["train"], device)
                protocol["judge"] = judge.about
                those = captioned_sets(root, shards, CaptionedSet(drawn, texts), restored, originals)
                scores = section.clip is not None
                metrics["retrieval"] = retrieval_metrics(judge, those, section.batch_size, parts, scores=scores)
        if texts is not None and classes == SCENES:
            with parts("attributes"):
                steps, scenes = section.scene_reader_steps, section.scene_reader_scenes
                reader, accuracy = train_reader(shards.image_size, device, steps=steps, scenes=scenes)
                shown = [one for batch in drawn.batches(section.batch_size) for one in reader.read(batch, len(batch))]
                metrics["attributes"] = {"reader_accuracy": accuracy, **attribute_metrics(texts, shown)}
        with parts("psnr"):
            metrics["reconstructions"]["psnr"] = measured.psnr.result()
        with parts("codes"):
            usage = code_usage(codes["train"], min(len(originals["train"]), KEPT))
            metrics["codes"] = usage.metrics()
            plots.bits_plot(pictures / "bits.png", usage)
        with parts("representation"):
            train, val, near = measured.features.result()
            representation = represent(section, train, val, near, len(classes), device)
            metrics |= representation.metrics()
            representation.draw(pictures, classes)
            save_statistics(root / "models" / "features", representation.statistics, root / "models" / "bigr")
        measure_zero_shot(inputs, measured.classifier, metrics, parts)
    for name, images in (("samples", drawn), ("reconstructions", restored), ("val_against_train", originals["val"])):
        if name in metrics:
            metrics[name]["images"] = len(images)

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


def distances(inputs: Inputs, extractor: Extractor, parts: Parts) -> dict[str, dict[str, float]]:
    """The distances of samples, reconstructions and the validation split, each under its name in metrics.json."""
    section = inputs.section
    looks = {
        name: read_measured(extractor, len(images), section.batch_size, inputs.unfinished, name=name)
        for name, images in inputs.sets.items()
    }
    fidelity = Fidelity.of(section, inputs.device)
    pairs = {
        "samples": ("samples", section.reference),
        "reconstructions": ("reconstructions", "val"),
        "val_against_train": ("val", "train"),
    }
    found = {name: fidelity.compare(looks[ours], looks[theirs]) for name, (ours, theirs) in pairs.items()}
    for name, measured in found.items():
        if "precision" not in measured:
            parts.leave_out(f"precision and recall of {name}", fidelity.too_few)
    distance = metric_names(section.extractor).distance
    floor = max(found["val_against_train"][distance], _SMALLEST_FLOOR)
    found["samples"]["over_floor"] = found["samples"][distance] / floor
    return found


def judge_of(section: "Section", root: Path, shards: ShardIndex, training: ImageStream, device: torch.device) -> Judge:
    """CLIP, where the settings name its weights, else a judge trained on the training images and their captions."""
    if section.clip is not None:
        return ClipJudge(root / section.clip, device)
    return train_judge(section, training, first_captions(shards, "train", len(training)), device)


def captioned_sets(
    root: Path, shards: ShardIndex, drawn: CaptionedSet, restored: ImageStream, originals: Mapping[str, ImageStream]
) -> dict[str, CaptionedSet]:
    """The sets of retrieval, by their names in metrics.json: samples, and what the judge can be compared by."""
    texts = {split: first_captions(shards, split, len(images)) for split, images in originals.items()}
    few = min(len(originals["val"]), len(originals["train"]))
    sets = {
        "top1": drawn,
        "judge_accuracy": CaptionedSet(originals["val"], texts["val"]),
        "judge_train_accuracy": CaptionedSet(originals["train"].limited(few), texts["train"][:few]),
        "reconstructions_top1": CaptionedSet(restored, texts["val"]),
    }
    if (train := read_train_samples(root / "outputs" / "samples.npz")) is not None:
        images, captions = train
        sets["train_top1"] = CaptionedSet(ImageStream(len(images), lambda: iter(images)), captions)
    return sets


def measure_zero_shot(
    inputs: Inputs, classifier: Attempt[Classifier], metrics: dict[str, dict[str, float]], parts: Parts
) -> None:
    """Add what needs no further training to `metrics`, each application a part of its own."""
    settings, section, sets = inputs.settings, inputs.section, inputs.sets
    count = min(section.zero_shot_images, len(sets["val"]))
    if count == 0:
        parts.leave_out("zero_shot", "evaluation.zero_shot_images is 0")
        return
    with parts("zero_shot"):
        model = inputs.model.to(inputs.device)
        drawing = measured_model(
            inputs.tokenizer,
            model,
            settings.samples,
            settings.editing,
            section.batch_size,
            knows_labels=settings.generator.use_labels and not model.config.text_tokens,
        )
        measured = ZeroShot(drawing, needed(classifier), section.batch_size)
        images = sets["val"].first(count, section.batch_size)
        metrics["zero_shot"]["images"] = float(count)
        every = measured.applications(images, inputs.labels[:count], mean_picture(sets["train"]))
        for name, application in every.items():
            with parts(f"zero_shot.{name}"):
                metrics["zero_shot"] |= application()


def open_codes(root: Path, shards: ShardIndex) -> dict[str, CodesDataset]:
    """Both splits' codes. Raises `BigrError` where they are of another tokenizer or of other images."""
    tokenizer = model_hash(root / "models" / "tokenizer")
    codes = {split: CodesDataset.open(root / "data" / "codes", split, tokenizer) for split in SPLITS}
    for split in SPLITS:
        if codes[split].class_counts != shards.class_counts(split):
            raise BigrError("data/codes holds codes of other images than data/shards; run the stage codes again")
    return codes


def about(
    section: "Section", extractor: str, shards: ShardIndex, originals: Mapping[str, ImageStream]
) -> dict[str, object]:
    """What the distances depend on besides the images measured: metrics compare only where all of it is the same.

    extractor: the hash of its weights.
    """
    reference = section.reference
    return {
        "extractor": {"name": section.extractor, "hash": extractor},
        "reference": {
            "split": reference,
            "images": len(originals[reference]),
            "hash": split_hash(shards, reference),
        },
        "kid_subset_size": section.kid_subset_size,
        "kid_subsets": section.kid_subsets,
        "precision_recall_neighbours": section.precision_recall_neighbours,
    }


def mean_picture(images: ImageStream) -> Tensor:
    """The mean of a set of images, float [3, H, W] in [0, 1]."""
    total = sum(batch.double().sum(0) for batch in images.batches(256))
    return (torch.as_tensor(total) / len(images) / 255).float()


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
