"""Stage `evaluation`: fidelity, reconstruction, representation, code usage, and what needs no further training.

Reads outputs/samples.npz, data/shards, data/codes, models/tokenizer and models/bigr; writes outputs/metrics.json, the
few of it that DVC compares as outputs/headline.json, outputs/plots, models/classifier, models/features (how features
are standardised, and the layer that predicts classes best), outputs/protocol.json (the extractor and the reference of
the distances, the judge of captions: metrics of others do not compare) and outputs/evaluation-parts.json (which parts
were measured, left out, or failed). Where a part fails, the metrics of the others are written before the stage fails.
Classifier, judges, probe and draws of subsets have a seed of their own, so that the metrics of runs with different
`seed` compare. All in float32, whatever `run.precision` is.

Every process computes a share of the features, of the classifier's predictions, of PSNR and of k-NN; the first does the
rest. Features are in checkpoints/evaluation, part by part, and a run that was killed continues with those that are
there. No process holds all samples.
"""

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
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
from bigr.evaluation.fidelity.classifier import Classifier, train_on_shards
from bigr.evaluation.fidelity.distances import Fidelity, metric_names
from bigr.evaluation.fidelity.extractors import (
    CLASSIFIER,
    Extractor,
    classifier_extractor,
    inception_extractor,
    read_inception_weights,
)
from bigr.evaluation.fidelity.neighbours import MEASURED, draw_neighbours, nearest, nearest_ratio
from bigr.evaluation.fidelity.statistics import KEPT, measure_share, read_measured
from bigr.evaluation.headline import headline
from bigr.evaluation.imagesets.image_stream import ImageStream, mean_psnr, reconstructions, split_hash, split_images
from bigr.evaluation.imagesets.npz_images import read_samples, read_texts, read_train_samples
from bigr.evaluation.representation.features import Features, layer_features
from bigr.evaluation.representation.linear_probe import selection
from bigr.evaluation.representation.representation_metrics import (
    COLUMNS,
    Neighbourhood,
    Representation,
    neighbourhood,
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
from bigr.runtime.distributed import from_first, is_main, my_range, of_each, together, world
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
    section, device, root = settings.evaluation, resolve_device(settings.run.device), context.root
    inception = None
    if section.extractor != CLASSIFIER:  # before anything takes time
        inception = read_inception_weights(root / str(section.extractor_weights))
    folder = root / "data" / "shards"
    shards = ShardIndex.load(folder)
    classes = shards.classes
    tokenizer, model = load_model(root / "models" / "tokenizer", Tokenizer), load_model(root / "models" / "bigr", BiGR)
    codes = open_codes(root, shards)
    check_codes(model, root / "models" / "bigr", codes["train"])
    drawn, asked = read_samples(root / "outputs" / "samples.npz", shards.image_size, len(classes))
    counts = {split: min(section.reference_images, shards.images(split)) for split in SPLITS}
    originals = {split: split_images(folder, split, counts[split], settings.run.workers) for split in SPLITS}
    restored = reconstructions(tokenizer.to(device), codes["val"], counts["val"], section.batch_size)
    val_labels = codes["val"].batch(torch.arange(counts["val"]))[1]
    sets = {"samples": drawn, "reconstructions": restored, **originals}
    unfinished = root / "checkpoints" / "evaluation"
    keep_parts(unfinished, context.fingerprint)

    exact = partial(torch.backends.cudnn.flags, enabled=True, deterministic=True, allow_tf32=False)
    with exact():
        # What all processes measure together: their number of steps must not depend on what only the first one does.
        classifier = Attempt(lambda: shared_classifier(section, folder, settings.run.workers, device))
        seen = {
            name: Attempt(partial(predictions, classifier, sets[name], section.batch_size))
            for name in ("val", "reconstructions", "samples")
        }
        looked = Attempt(lambda: look(section, inception, classifier, sets, unfinished, device))
        psnr = Attempt(lambda: mean_psnr(restored, originals["val"], section.batch_size))
        features = Attempt(
            lambda: layers(
                section,
                together(lambda: model.to(device)),
                codes,
                shards,
                counts["val"],
                unfinished,
                len(classes),
                device,
            )
        )
    if not is_main():
        return

    parts, metrics, protocol = Parts(), defaultdict[str, dict[str, float]](dict), dict[str, object]()
    representation: Representation | None = None
    with exact(), atomic_folder(root / "outputs" / "plots") as pictures:
        with parts("classifier"):
            save(root / "models" / "classifier", classifier.result())
            metrics["classifier"] = {"val_accuracy": agreement(seen["val"].result(), val_labels)}
        with parts("label_agreement"):
            metrics["reconstructions"]["label_agreement"] = agreement(seen["reconstructions"].result(), val_labels)
            if (asked < 0).any():
                raise NotApplicable("samples.prompts names texts, and no classes")
            metrics["samples"]["label_agreement"] = agreement(seen["samples"].result(), asked)
            draw_confusion(pictures, asked, seen["samples"].result(), classes)
        with parts("fidelity"):
            extractor = looked.result()
            protocol |= about(section, extractor.hash, shards, counts)
            for name, measured in distances(section, extractor, sets, unfinished, device, parts).items():
                metrics[name] |= measured
        with parts("neighbours"):
            most = min(MEASURED, len(drawn), counts["val"])
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
            metrics["reconstructions"]["psnr"] = psnr.result()
        with parts("codes"):
            usage = code_usage(codes["train"], min(counts["train"], KEPT))
            metrics["codes"] = usage.metrics()
            plots.bits_plot(pictures / "bits.png", usage)
        with parts("representation"):
            train, val, near = features.result()
            representation = represent(section, train, val, near, len(classes), device)
            metrics |= representation.metrics()
            representation.draw(pictures, classes)
            save_statistics(root / "models" / "features", representation.statistics, root / "models" / "bigr")
        measure_zero_shot(settings, metrics, parts, tokenizer, model.to(device), classifier, originals, val_labels)
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
    remove_parts(unfinished)


def shared_classifier(section: "Section", shards: Path, workers: int, device: torch.device) -> Classifier:
    """The classifier, which the first process trains, in every process."""
    trained = together(lambda: train_on_shards(section, shards, workers, device) if is_main() else None)
    if trained is not None and world() == 1:
        return trained
    state = None if trained is None else {name: value.cpu() for name, value in trained.state_dict().items()}
    config, state = from_first((None if trained is None else trained.config, state))
    if trained is None:
        assert config is not None and state is not None
        trained = Classifier(config)
        trained.load_state_dict(state)
    ready = trained.eval().requires_grad_(False)
    return together(lambda: ready.to(device))


def needed(classifier: Attempt[Classifier]) -> Classifier:
    """The classifier, for a part that looks through it. Raises `NotApplicable` where its training failed."""
    if classifier.error is not None:
        raise NotApplicable("it needs the classifier, which failed")
    return classifier.result()


def check_probe(section: "Section", classes: int, images: int) -> None:
    """Raise `NotApplicable` where there is one class, or too few training images to choose a layer by."""
    if classes < 2:
        raise NotApplicable("there is one class: nothing to tell it from")
    try:
        selection(images, section.selection_fraction)
    except BigrError as error:
        raise NotApplicable(str(error)) from None


def look(
    section: "Section",
    inception: Mapping[str, Tensor] | None,
    classifier: Attempt[Classifier],
    sets: Mapping[str, ImageStream],
    unfinished: Path,
    device: torch.device,
) -> Extractor:
    """The extractor of the distances, after every process has looked at its share of each set through it."""
    if inception is None:
        known = needed(classifier)
        extractor = together(lambda: classifier_extractor(known, device))
    else:
        weights = inception
        extractor = together(lambda: inception_extractor(weights, device))
    for name, images in sets.items():
        measure = partial(measure_share, extractor, images, section.batch_size, unfinished, name=name)
        together(measure)
    return extractor


def layers(
    section: "Section",
    model: BiGR,
    codes: Mapping[str, CodesDataset],
    shards: ShardIndex,
    val_images: int,
    unfinished: Path,
    classes: int,
    device: torch.device,
) -> tuple[Features, Features, Neighbourhood]:
    """Every layer's features of both splits, and k-NN on them."""
    counts = {"train": min(section.probe_images, shards.images("train")), "val": val_images}
    check_probe(section, classes, counts["train"])
    train, val = (
        layer_features(unfinished, split, model, codes[split], counts[split], section.batch_size) for split in SPLITS
    )
    return train, val, neighbourhood(section, train, val, classes, device)


def distances(
    section: "Section",
    extractor: Extractor,
    sets: Mapping[str, ImageStream],
    unfinished: Path,
    device: torch.device,
    parts: Parts,
) -> dict[str, dict[str, float]]:
    """The distances of samples, reconstructions and the validation split, each under its name in metrics.json."""
    looks = {
        name: read_measured(extractor, len(images), section.batch_size, unfinished, name=name)
        for name, images in sets.items()
    }
    fidelity = Fidelity.of(section, device)
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
    settings: "Settings",
    metrics: dict[str, dict[str, float]],
    parts: Parts,
    tokenizer: Tokenizer,
    model: BiGR,
    classifier: Attempt[Classifier],
    originals: Mapping[str, ImageStream],
    labels: Tensor,
) -> None:
    """Add what needs no further training to `metrics`, each application a part of its own."""
    section = settings.evaluation
    count = min(section.zero_shot_images, len(originals["val"]))
    if count == 0:
        parts.leave_out("zero_shot", "evaluation.zero_shot_images is 0")
        return
    with parts("zero_shot"):
        drawing = measured_model(
            tokenizer,
            model,
            settings.samples,
            settings.editing,
            section.batch_size,
            knows_labels=settings.generator.use_labels and not model.config.text_tokens,
        )
        measured = ZeroShot(drawing, needed(classifier), section.batch_size)
        images = originals["val"].first(count, section.batch_size)
        metrics["zero_shot"]["images"] = float(count)
        every = measured.applications(images, labels[:count], mean_picture(originals["train"]))
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


def about(section: "Section", extractor: str, shards: ShardIndex, counts: Mapping[str, int]) -> dict[str, object]:
    """What the distances depend on besides the images measured: metrics compare only where all of it is the same.

    extractor: the hash of its weights.
    """
    reference = section.reference
    return {
        "extractor": {"name": section.extractor, "hash": extractor},
        "reference": {
            "split": reference,
            "images": counts[reference],
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


def predictions(classifier: Attempt[Classifier], images: ImageStream, batch_size: int) -> Tensor:
    """The class that the classifier sees in each image, int64 [n]; each process looks at its share."""
    seeing, mine = needed(classifier), my_range(len(images), batch_size)
    seen = together(lambda: [seeing.predict(batch) for batch in images.batches(batch_size, mine)])
    return torch.cat([batch for part in of_each(seen) for batch in part])


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
