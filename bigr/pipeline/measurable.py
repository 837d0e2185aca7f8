"""Whether the evaluation will measure the metrics of the section `promotion` under these settings, on these images."""

from bigr import config
from bigr.pipeline.images_found import LEAST_IMAGES, ImagesFound
from bigr.runtime.errors import BigrError

_SCORE_IMAGES = 10  # that the Inception score is split into, one at least each


def check_promotion(settings: config.Settings, images: ImagesFound | None) -> None:
    """Raise `BigrError`: a line for each metric of `promotion.metrics` that the evaluation will not measure."""
    problems = [
        f"promotion.metrics names {name}, which is not measured where {reason}; name another metric"
        for name in (comparison.name for comparison in settings.promotion.metrics)
        if (reason := _not_measured(name, settings, images))
    ]
    if problems:
        raise BigrError("\n".join(problems))


def _not_measured(name: str, settings: config.Settings, images: ImagesFound | None) -> str:
    """Why a metric is not measured under these settings, of these images; empty where it is."""
    part, metric = name.split(".")
    evaluation, one_class = settings.evaluation, images is not None and images.classes == 1
    if images is not None and (reason := _too_few(part, metric, settings, images)):
        return reason
    of_classifier = metric in ("fd_classifier", "kd_classifier", "is_classifier")
    if of_classifier and evaluation.extractor != "classifier":
        return f"evaluation.extractor is {evaluation.extractor}"
    if metric in ("fid", "kid", "isc") and evaluation.extractor == "classifier":
        return "evaluation.extractor is classifier"
    if part in ("retrieval", "attributes") and (reason := _without_texts(name, settings)):
        return reason
    if name == "samples.label_agreement" and settings.text.used and settings.samples.prompts is not None:
        return "samples.prompts names texts, and no classes"
    if part in ("probe", "knn") and one_class:
        return "there is one class"
    if part == "zero_shot":
        if evaluation.zero_shot_images == 0:
            return "evaluation.zero_shot_images is 0"
        to_a_class = metric in ("edit_label_agreement", "interpolation_agreement")
        if to_a_class or metric == "inpaint_label_agreement":
            if not settings.generator.use_labels:
                return "generator.use_labels is false"
            if settings.text.used:
                return f"texts take the classes' place (text.encoder is {settings.text.encoder})"
        if to_a_class and one_class:
            return "there is one class"
    return ""


def _without_texts(name: str, settings: config.Settings) -> str:
    """Why a metric of texts is not measured; empty where it is."""
    if not settings.text.used:
        return "text.encoder is none"
    if name.startswith("attributes.") and not (settings.shards.embedded and settings.dataset.name == "scenes"):
        return "the images are not the embedded scenes"
    if name.startswith("retrieval.train_") and settings.samples.train_captions == 0:
        return "samples.train_captions is 0"
    if name.endswith("clip_score") and settings.evaluation.clip is None:
        return "evaluation.clip is empty"
    return ""


def _too_few(part: str, metric: str, settings: config.Settings, images: ImagesFound) -> str:
    """Why a metric is not measured of so few images; empty where there are enough."""
    section = settings.evaluation
    splits = {name: min(section.reference_images, getattr(images, name)) for name in ("train", "val")}
    own = settings.samples.count if part == "samples" else splits["val"]
    other = splits[section.reference] if part == "samples" else splits["val"]
    if metric in ("precision", "recall") and min(own, other) <= section.precision_recall_neighbours:
        return f"a set has no more than evaluation.precision_recall_neighbours = {section.precision_recall_neighbours}"
    if metric in ("is_classifier", "isc") and own < _SCORE_IMAGES:
        return f"a set has {own} images, fewer than {_SCORE_IMAGES}"
    learnt = min(section.probe_images, images.train)
    if part in ("probe", "knn") and learnt - max(1, round(learnt * section.selection_fraction)) < LEAST_IMAGES:
        return f"there are {learnt} training images, too few to learn from and choose a layer by"
    return ""
