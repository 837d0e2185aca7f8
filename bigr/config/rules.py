"""What settings of several sections allow together: a function for each rule, which raises `InvalidSetting`."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from bigr.runtime.explain import InvalidSetting
from bigr.runtime.metric_directions import COMPARED_METRICS

if TYPE_CHECKING:
    from bigr.config.settings import Settings

_GROUPS = 32  # of the tokenizer's GroupNorm


def tokens_divide_the_image(settings: "Settings") -> None:
    f = settings.tokenizer.downsampling
    if settings.shards.image_size % f:
        raise InvalidSetting(
            "shards.image_size",
            f"a multiple of {f}, the factor of tokenizer.channel_multipliers ({f} = 2^(levels − 1))",
        )


def one_token_has_two_numbers_a_group(settings: "Settings") -> None:
    """GroupNorm sees one number a channel of a single token: with one channel a group, every image becomes zeros."""
    section = settings.tokenizer
    if not section.trains or settings.grid != 1:
        return
    before = [1, *section.channel_multipliers][-2]  # of the level before, where its last block begins
    widths = {"base_channels": section.base_channels * min(before, section.channel_multipliers[-1])}
    if section.norm_first:
        widths["embed_dim"] = section.embed_dim
    for name, width in widths.items():
        if width <= _GROUPS:
            raise InvalidSetting(
                f"tokenizer.{name}",
                f"larger, for {2 * _GROUPS} channels where an image is a single token (GroupNorm has {_GROUPS} groups)",
            )


def losses_see_large_enough_images(settings: "Settings") -> None:
    for term, least in (("perceptual_weight", 16), ("gan_weight", 24)):  # VGG-16's poolings; the patches
        section = settings.tokenizer
        if section.trains and getattr(section, term) > 0 and settings.shards.image_size < least:
            raise InvalidSetting("shards.image_size", f"{least} or more where tokenizer.{term} is > 0")


def attention_is_at_a_level(settings: "Settings") -> None:
    section = settings.tokenizer
    resolutions = [settings.shards.image_size >> level for level in range(len(section.channel_multipliers))]
    for resolution in section.attention_resolutions:
        if resolution not in resolutions:
            raise InvalidSetting(
                "tokenizer.attention_resolutions",
                f"resolutions of the encoder ({', '.join(map(str, resolutions))})",
            )


def there_is_a_data_set(settings: "Settings") -> None:
    if settings.shards.embedded and settings.dataset.name == "none":
        raise InvalidSetting(
            "dataset.name", f"digits, scenes or emoji where shards.source is {settings.shards.source}, their folder"
        )


def digits_are_not_mirrored(settings: "Settings") -> None:
    if not settings.shards.embedded or settings.dataset.name not in ("digits", "scenes"):
        return
    what = "a mirrored digit is no digit" if settings.dataset.name == "digits" else "left would be right"
    why = f"where dataset.name is {settings.dataset.name} ({what})"
    if settings.tokenizer.trains and settings.tokenizer.horizontal_flip:
        raise InvalidSetting("tokenizer.horizontal_flip", f"false {why}")
    if "flip" in settings.codes.views:
        raise InvalidSetting("codes.views", f"[identity] {why}")


def only_probabilities_are_drawn(settings: "Settings") -> None:
    if settings.codes.draws and settings.tokenizer.quantizer == "lfq":
        raise InvalidSetting("codes.draws", "0 where tokenizer.quantizer is lfq (its bits are signs: nothing is drawn)")


def text_heads_divide_the_width(settings: "Settings") -> None:
    section = settings.generator
    if settings.text.encoder == "learned" and section.trains and section.dim % section.text_heads:
        raise InvalidSetting("generator.text_heads", f"a divisor of generator.dim = {section.dim}")


def sampler_fits_the_model(settings: "Settings") -> None:
    tokens = settings.grid**2
    if settings.samples.iterations > tokens:
        raise InvalidSetting(
            "samples.iterations", f"at most {tokens}, the number of tokens ({settings.grid}×{settings.grid})"
        )
    own = settings.transcoder.start == "scratch"
    transcoder, section = (settings.transcoder, "transcoder") if own else (settings.generator, "generator")
    bits, counts = settings.tokenizer.code_bits, settings.samples.bit_counts
    chosen = settings.samples.diffusion_steps
    steps = [chosen] if isinstance(chosen, int) else chosen
    diffuses = transcoder.target not in ("direct", "mask")
    if diffuses and not all(2 <= count <= transcoder.diffusion_steps for count in steps):
        raise InvalidSetting(
            "samples.diffusion_steps", f"2 to {transcoder.diffusion_steps}, the number of {section}.diffusion_steps"
        )
    if transcoder.target == "mask" and max(steps) > bits:
        raise InvalidSetting(
            "samples.diffusion_steps", f"at most {bits}, the number of bits, where {section}.target is mask"
        )
    if counts is not None and transcoder.target != "mask":
        raise InvalidSetting("samples.bit_counts", f"empty where {section}.target is {transcoder.target}, not mask")
    if counts is not None and sum(counts) != bits:
        raise InvalidSetting("samples.bit_counts", f"numbers whose sum is {bits}, tokenizer.code_bits")


def guidance_has_something_to_guide(settings: "Settings") -> None:
    if settings.samples.guidance_scale == 1.0:
        return
    if not settings.generator.use_labels:
        raise InvalidSetting("samples.guidance_scale", "1.0 where generator.use_labels is false (no label guides)")
    what = "text" if settings.text.used else "label"
    dropout = settings.generator.dropout_of_labels(texts=settings.text.used)
    if dropout == 0 and (settings.generator.trains or settings.transcoder.trains):
        raise InvalidSetting(
            f"generator.{what}_dropout",
            f"above 0 where samples.guidance_scale is not 1.0 (guidance needs the model without a {what})",
        )


def processes_divide_the_batches(settings: "Settings") -> None:
    for name in ("tokenizer", "generator", "transcoder"):
        section = getattr(settings, name)
        if section.trains and section.batch_size % (settings.run.processes * section.accumulate):
            need = f"a multiple of run.processes = {settings.run.processes}"
            if section.accumulate > 1:
                need += f" times {name}.accumulate = {section.accumulate}"
            raise InvalidSetting(f"{name}.batch_size", need)


def parts_of_a_batch_add_up(settings: "Settings") -> None:
    section = settings.tokenizer
    if not section.trains or section.accumulate == 1:
        return
    why = None
    if section.gan_weight > 0:
        why = "tokenizer.gan_weight is > 0 (the adaptive weight"
    elif section.quantizer == "lfq" and section.lfq_entropy_weight > 0:
        why = "tokenizer.lfq_entropy_weight is > 0 (the entropy of the mean bit"
    if why is not None:
        raise InvalidSetting("tokenizer.accumulate", f"1 where {why} is of the whole batch)")


def images_outnumber_neighbours(settings: "Settings") -> None:
    counts = {
        "samples.count": settings.samples.count,
        "evaluation.reference_images": settings.evaluation.reference_images,
    }
    if settings.shards.embedded and settings.dataset.name in ("digits", "scenes"):
        counts["dataset.val_count"] = settings.dataset.val_count
    for key, images in counts.items():
        if images <= (neighbours := settings.evaluation.precision_recall_neighbours):
            raise InvalidSetting(key, f"more than evaluation.precision_recall_neighbours = {neighbours}")


def targets_are_of_metrics(settings: "Settings") -> None:
    for name in (f"{part}.{name}" for part, names in settings.targets.items() for name in names):
        if name not in COMPARED_METRICS:
            raise InvalidSetting(f"targets.{name}", f"a target of one of {', '.join(COMPARED_METRICS)}")


RULES: tuple[Callable[["Settings"], None], ...] = (
    tokens_divide_the_image,
    one_token_has_two_numbers_a_group,
    losses_see_large_enough_images,
    attention_is_at_a_level,
    there_is_a_data_set,
    digits_are_not_mirrored,
    only_probabilities_are_drawn,
    text_heads_divide_the_width,
    sampler_fits_the_model,
    guidance_has_something_to_guide,
    processes_divide_the_batches,
    parts_of_a_batch_add_up,
    images_outnumber_neighbours,
    targets_are_of_metrics,
)
"""In the order in which they are checked: the first that is broken is the one that is reported."""
