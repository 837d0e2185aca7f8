"""What all processes of the stage `evaluation` measure together, before the first one writes it.

Every process calls `measure`. In each of its parts all processes take the same steps, whatever fails in one of them.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from bigr.data.codes import CodesDataset
from bigr.data.embedded.scenes import CLASSES as SCENES
from bigr.data.shards import ShardIndex, first_captions
from bigr.data.sources.source import SPLITS
from bigr.evaluation.captions.caption_retrieval import CaptionedSet, Judge, similarities
from bigr.evaluation.captions.clip_judge import ClipJudge
from bigr.evaluation.captions.trained_judge import CaptionJudge, train_judge
from bigr.evaluation.code_usage import CodeUsage, code_usage
from bigr.evaluation.evaluation_parts import Attempt, NotApplicable, at_once
from bigr.evaluation.fidelity.classifier import Classifier, train_on_shards
from bigr.evaluation.fidelity.distances import Fidelity
from bigr.evaluation.fidelity.extractors import Extractor, classifier_extractor, inception_extractor
from bigr.evaluation.fidelity.neighbours import Neighbours, measured_places, nearest, nearest_ratio
from bigr.evaluation.fidelity.statistics import KEPT, Statistics, measure_share, read_measured
from bigr.evaluation.imagesets.image_stream import ImageStream, mean_picture, mean_psnr
from bigr.evaluation.imagesets.npz_images import read_train_samples
from bigr.evaluation.representation.features import Features, layer_features
from bigr.evaluation.representation.linear_probe import selection
from bigr.evaluation.representation.representation_metrics import Accuracies, layer_accuracies
from bigr.evaluation.scene_attributes import SceneReader, attribute_metrics, train_reader
from bigr.evaluation.zero_shot import ZeroShot, measured_model
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.models.masked.generator import BiGR
from bigr.runtime.distributed import from_first, is_main, my_range, of_each, together
from bigr.runtime.errors import BigrError

if TYPE_CHECKING:
    from bigr.config import EvaluationSettings as Section
    from bigr.config import Settings

Trained = TypeVar("Trained", bound=nn.Module)

PAIRS = {
    "samples": ("samples", None),
    "reconstructions": ("reconstructions", "val"),
    "val_against_train": ("val", "train"),
}
"""Name in metrics.json → the sets whose distance it is; None: `evaluation.reference`."""


@dataclass(frozen=True)
class Inputs:
    """What is measured, and with what.

    inception: its weights, where it is the extractor; sets: samples, reconstructions, train and val; labels: of the
    validation images, int64 [n]; texts: those that the samples were drawn from; unfinished: the folder of features.
    """

    settings: "Settings"
    device: torch.device
    root: Path
    shards: ShardIndex
    codes: Mapping[str, CodesDataset]
    tokenizer: Tokenizer
    model: BiGR
    inception: Mapping[str, Tensor] | None
    sets: Mapping[str, ImageStream]
    labels: Tensor
    texts: Sequence[str] | None
    unfinished: Path

    @property
    def section(self) -> "Section":
        """The settings `evaluation`."""
        return self.settings.evaluation

    @property
    def classes(self) -> list[str]:
        """The names of the classes."""
        return self.shards.classes

    @property
    def of_scenes(self) -> bool:
        """Whether the samples are of captions of the embedded scenes."""
        return self.texts is not None and self.classes == SCENES


@dataclass(frozen=True)
class Measured:
    """The results, or what they failed with.

    seen: the classifier's predictions for each set; looked: the extractor, whose features of each set are on disk;
    distances, precision_recall, similar, zero_shot: by the names of sets and applications; copies: the neighbours of
    samples, and the ratio; features: of the validation split.
    """

    classifier: Attempt[Classifier]
    seen: Mapping[str, Attempt[Tensor]]
    looked: Attempt[Extractor]
    distances: Mapping[str, Attempt[dict[str, float]]]
    precision_recall: Mapping[str, Attempt[dict[str, float]]]
    codes: Attempt[CodeUsage]
    copies: Attempt[tuple[Neighbours, float]]
    judge: Attempt[Judge]
    similar: Attempt[Mapping[str, Attempt[Tensor]]]
    attributes: Attempt[dict[str, float]]
    psnr: Attempt[float]
    features: Attempt[tuple[Features, Accuracies]]
    zero_shot: Attempt[Mapping[str, Attempt[dict[str, float]]]]


def measure(inputs: Inputs) -> Measured:
    """Measure; each process its share."""
    section, sets = inputs.section, inputs.sets
    trained = at_once(trainings(inputs))
    classifier = on_device(trained["classifier"], inputs.device)
    judge = Attempt(lambda: judge_of(inputs, trained.get("judge")))
    seen = {
        name: Attempt(partial(predictions, classifier, sets[name], section.batch_size))
        for name in ("val", "reconstructions", "samples")
    }
    looked = Attempt(lambda: look(inputs, classifier))
    compared = at_once(comparisons(inputs, looked) | {"codes": lambda: usage_of_codes(inputs)})
    return Measured(
        classifier=classifier,
        seen=seen,
        looked=looked,
        distances={name: compared[f"distances of {name}"] for name in PAIRS},
        precision_recall={name: compared[f"precision and recall of {name}"] for name in PAIRS},
        codes=compared["codes"],
        copies=Attempt(lambda: copies(inputs)),
        judge=judge,
        similar=Attempt(lambda: similar_captions(inputs, judge.result())),
        attributes=Attempt(lambda: attributes(inputs, trained.get("reader"))),
        psnr=Attempt(lambda: mean_psnr(sets["reconstructions"], sets["val"], section.batch_size)),
        features=Attempt(lambda: layers(inputs)),
        zero_shot=Attempt(lambda: applications(inputs, classifier)),
    )


def trainings(inputs: Inputs) -> dict[str, Callable[[], Any]]:
    """What is trained before anything is measured, by name; each returns modules on the CPU."""
    section, device, shards = inputs.section, inputs.device, inputs.root / "data" / "shards"
    works: dict[str, Callable[[], Any]] = {
        "classifier": lambda: off_device(train_on_shards(section, shards, inputs.settings.run.workers, device))
    }
    if inputs.texts is not None and section.clip is None:
        train = inputs.sets["train"]
        works["judge"] = lambda: off_device(
            train_judge(section, train, first_captions(inputs.shards, "train", len(train)), device)
        )
    if inputs.of_scenes:
        steps, scenes = section.scene_reader_steps, section.scene_reader_scenes

        def reader() -> tuple[SceneReader, float]:
            trained, accuracy = train_reader(inputs.shards.image_size, device, steps=steps, scenes=scenes)
            return off_device(trained), accuracy

        works["reader"] = reader
    return works


def off_device(module: Trained) -> Trained:
    """A copy of a module on the CPU, to be sent to other processes, without what its training has left behind."""
    return copy.deepcopy(module).cpu()


def on_device(trained: Attempt[Trained], device: torch.device) -> Attempt[Trained]:
    """A module that was trained, on the device of every process."""
    return Attempt(lambda: moved(trained.result(), device))


def moved(module: Trained, device: torch.device) -> Trained:
    """The module on the device, when all processes have theirs."""
    return together(lambda: module.to(device))


def needed(classifier: Attempt[Classifier]) -> Classifier:
    """The classifier, for a part that looks through it. Raises `NotApplicable` where its training failed."""
    if classifier.error is not None:
        raise NotApplicable("it needs the classifier, which failed")
    return classifier.result()


def predictions(classifier: Attempt[Classifier], images: ImageStream, batch_size: int) -> Tensor:
    """The class that the classifier sees in each image, int64 [n]; each process looks at its share."""
    seeing, mine = needed(classifier), my_range(len(images), batch_size)
    seen = together(lambda: [seeing.predict(batch) for batch in images.batches(batch_size, mine)])
    return torch.cat([batch for part in of_each(seen) for batch in part])


def look(inputs: Inputs, classifier: Attempt[Classifier]) -> Extractor:
    """The extractor of the distances, after every process has looked at its share of each set through it."""
    if inputs.inception is None:
        known = needed(classifier)
        extractor = together(lambda: classifier_extractor(known, inputs.device))
    else:
        weights = inputs.inception
        extractor = together(lambda: inception_extractor(weights, inputs.device))
    for name, images in inputs.sets.items():
        share = partial(measure_share, extractor, images, inputs.section.batch_size, inputs.unfinished, name=name)
        together(share)
    return extractor


def check_probe(section: "Section", classes: int, images: int) -> None:
    """Raise `NotApplicable` where there is one class, or too few training images to choose a layer by."""
    if classes < 2:
        raise NotApplicable("there is one class: nothing to tell it from")
    try:
        selection(images, section.selection_fraction)
    except BigrError as error:
        raise NotApplicable(str(error)) from None


def layers(inputs: Inputs) -> tuple[Features, Accuracies]:
    """Every layer's features of the validation split, and the accuracies of the probe and of k-NN on them."""
    section, device, classes = inputs.section, inputs.device, len(inputs.classes)
    model = moved(inputs.model, device)
    counts = {"train": min(section.probe_images, inputs.shards.images("train")), "val": len(inputs.sets["val"])}
    check_probe(section, classes, counts["train"])
    train, val = (
        layer_features(inputs.unfinished, split, model, inputs.codes[split], counts[split], section.batch_size)
        for split in SPLITS
    )
    return val, layer_accuracies(section, train, val, classes, device)


def comparisons(inputs: Inputs, looked: Attempt[Extractor]) -> dict[str, Callable[[], Any]]:
    """What compares two sets by their features on disk, by name: precision and recall first, which take longest."""
    section, fidelity = inputs.section, Fidelity.of(inputs.section, inputs.device)

    @cache
    def statistics(name: str) -> Statistics:
        count = len(inputs.sets[name])
        return read_measured(looked.result(), count, section.batch_size, inputs.unfinished, name=name)

    def pair(name: str) -> tuple[Statistics, Statistics]:
        ours, theirs = PAIRS[name]
        return statistics(ours), statistics(theirs or section.reference)

    kinds = {"precision and recall": fidelity.precision_recall, "distances": fidelity.distances}

    def work(compare: Callable[[Statistics, Statistics], dict[str, float]], name: str) -> dict[str, float]:
        return compare(*pair(name))

    return {f"{kind} of {name}": partial(work, compare, name) for kind, compare in kinds.items() for name in PAIRS}


def usage_of_codes(inputs: Inputs) -> CodeUsage:
    """Of the training split."""
    return code_usage(inputs.codes["train"], min(len(inputs.sets["train"]), KEPT))


def copies(inputs: Inputs) -> tuple[Neighbours, float]:
    """The nearest training images of some samples, and the ratio of their distances to held-out images'."""
    sets, size = inputs.sets, inputs.section.batch_size
    places = measured_places(len(sets["samples"]), len(sets["val"]))
    queries = together(lambda: [sets["samples"].some(places), sets["val"].first(len(places), size)])
    samples, held_out = nearest(queries, sets["train"], inputs.device)
    return samples, nearest_ratio(samples, held_out)


def judge_of(inputs: Inputs, trained: Attempt[CaptionJudge] | None) -> Judge:
    """CLIP, where the settings name its weights, else the judge that was trained."""
    clip = inputs.section.clip
    if trained is not None:
        return moved(trained.result(), inputs.device)
    if clip is None or inputs.texts is None:
        raise NotApplicable("the samples have no texts")
    return together(lambda: ClipJudge(inputs.root / clip, inputs.device))


def similar_captions(inputs: Inputs, judge: Judge) -> dict[str, Attempt[Tensor]]:
    """The similarities of each set's images to captions, by the set's name in metrics.json."""
    size = inputs.section.batch_size
    every = captioned_sets(inputs)
    return {name: Attempt(partial(similarities, judge, *of_one, size)) for name, of_one in every.items()}


def captioned_sets(inputs: Inputs) -> dict[str, CaptionedSet]:
    """The sets of retrieval, by their names in metrics.json: samples, and what the judge can be compared by."""
    sets, samples = inputs.sets, inputs.root / "outputs" / "samples.npz"

    def captions() -> dict[str, list[str]]:
        return {split: first_captions(inputs.shards, split, len(sets[split])) for split in SPLITS}

    texts = from_first(together(lambda: captions() if is_main() else {}))
    few = min(len(sets["val"]), len(sets["train"]))
    found = {
        "top1": CaptionedSet(sets["samples"], inputs.texts or []),
        "judge_accuracy": CaptionedSet(sets["val"], texts["val"]),
        "judge_train_accuracy": CaptionedSet(sets["train"].limited(few), texts["train"][:few]),
        "reconstructions_top1": CaptionedSet(sets["reconstructions"], texts["val"]),
    }
    if (train := together(lambda: read_train_samples(samples))) is not None:
        images, shown = train
        found["train_top1"] = CaptionedSet(ImageStream(len(images), lambda: iter(images)), shown)
    return found


def attributes(inputs: Inputs, trained: Attempt[tuple[SceneReader, float]] | None) -> dict[str, float]:
    """What a network reads in the samples of scenes, beside their texts; each process reads its share."""
    if trained is None:
        raise NotApplicable("the samples are of no captions of scenes")
    module, accuracy = trained.result()
    reader = moved(module, inputs.device)
    drawn, size = inputs.sets["samples"], inputs.section.batch_size
    mine = my_range(len(drawn), size)
    shown = together(lambda: [one for batch in drawn.batches(size, mine) for one in reader.read(batch, len(batch))])
    every = [one for part in of_each(shown) for one in part]
    return {"reader_accuracy": accuracy, **attribute_metrics(inputs.texts or [], every)}


def applications(inputs: Inputs, classifier: Attempt[Classifier]) -> dict[str, Attempt[dict[str, float]]]:
    """What needs no further training, by application."""
    settings, section, sets = inputs.settings, inputs.section, inputs.sets
    count = min(section.zero_shot_images, len(sets["val"]))
    if count == 0:
        raise NotApplicable("evaluation.zero_shot_images is 0")
    known, model = needed(classifier), moved(inputs.model, inputs.device)
    drawing = measured_model(
        inputs.tokenizer,
        model,
        settings.samples,
        settings.editing,
        section.batch_size,
        knows_labels=settings.generator.use_labels and not model.config.text_tokens,
    )
    measured = ZeroShot(drawing, known, section.batch_size)
    images, mean = sets["val"].limited(count), mean_picture(sets["train"])
    every = measured.applications(images, inputs.labels[:count], mean)
    return {name: Attempt(application) for name, application in every.items()}
