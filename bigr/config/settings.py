"""The settings: a class for each section of params.yaml, and what one section's settings allow.

No field has a default: every value stands in params.yaml. What settings of several sections allow is in rules.py.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_serializer,
    model_validator,
)

from bigr.config.rules import RULES
from bigr.runtime.explain import InvalidSetting, some
from bigr.runtime.metric_directions import COMPARED_METRICS

EMBEDDED = "data/dataset"
"""Where the stage `dataset` writes the embedded data set."""
LOCAL = "local"
"""The value of `shards.store` with which every shard is packed in data/shards, also those that could stay elsewhere."""

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, StringConstraints(min_length=1)]
Word = Annotated[str, StringConstraints(pattern=r"^\w+$")]
Precision = Literal["auto", "float32", "bfloat16"]
DecodePrecision = Literal["float32", "tf32", "bfloat16"]
Target = Literal["flip", "x0", "direct", "mask"]


def _check_steps(value: Any) -> Any:
    numbers = value if isinstance(value, list) and len(value) == 2 else [value]
    if not all(type(number) is int and number > 0 for number in numbers):
        raise ValueError("steps should be a number above 0, or two: of the first iteration and of the last")
    return value


Steps = Annotated[
    Positive | Annotated[list[Positive], Field(min_length=2, max_length=2)], BeforeValidator(_check_steps)
]


def _check_store(url: str | None, others: str = "empty, or") -> None:
    """Raise `InvalidSetting` for a `store` that is no folder of an object store, which shows only whole files."""
    if url is not None and not re.fullmatch(r"(s3|gs)://[^/{}?#*]+(/[^/{}?#*]+)*/?", url):
        raise InvalidSetting("store", f"{others} an address such as s3://bucket/folder or gs://bucket/folder")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True)


class RunSettings(_Section):
    """Where and how. Nothing here but the two precisions reruns a stage, nor changes what is learnt and drawn from.

    The numbers of a run do depend on it: each device rounds in its own way, as does compiled code, and another number
    of processes adds gradients in another order. Another kind of `device` gives other draws of the same distribution.
    """

    device: Annotated[str, StringConstraints(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
    precision: Precision
    workers: Positive
    cache_gb: PositiveFloat
    processes: Positive
    parallel: Literal["ddp", "fsdp"]
    max_restarts: Count
    timeout_s: Positive
    checkpoint_every: Positive
    checkpoints: Annotated[str, StringConstraints(min_length=1)]
    deterministic: bool
    activation_checkpointing: bool
    decode_precision: DecodePrecision
    compile: Literal["auto", "off"]

    @property
    def one_gpu(self) -> bool:
        """Whether `device` names one GPU by its number: every process of a machine would share it."""
        return ":" in self.device

    @model_validator(mode="after")
    def _a_gpu_for_each_process(self) -> "RunSettings":
        if self.one_gpu and self.processes > 1:
            raise InvalidSetting(
                "device", f"cuda, auto or cpu where run.processes = {self.processes} (each takes its own GPU)"
            )
        return self


class TrainingSettings(_Section):
    """What every trained stage sets: the loop, the optimiser, the EMA."""

    steps: Positive
    batch_size: Positive
    accumulate: Positive
    learning_rate: PositiveFloat
    schedule: Literal["cosine", "constant"]
    warmup_steps: Count
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]
    weight_decay: Weight
    grad_clip: PositiveFloat
    ema_decay: Fraction
    validate_every: Positive

    @property
    def trains(self) -> bool:
        """Whether the stage trains at all; where it does not, nothing above is used but `batch_size`, to measure."""
        return self.steps > 0  # 0: the joint transcoder is handed on

    @model_validator(mode="after")
    def _warms_up(self) -> "TrainingSettings":
        if self.trains and self.warmup_steps > self.steps:
            raise InvalidSetting("warmup_steps", f"at most {self.steps}, the number of steps")
        return self


class DatasetSettings(_Section):
    """The embedded data set: images that need no download."""

    name: Literal["digits", "scenes", "emoji", "none"]
    image_size: Annotated[int, Field(ge=8)]
    train_count: Positive
    val_count: Annotated[int, Field(ge=10)]
    emoji_font: Name
    emoji_names: Name
    emoji_val_share: Annotated[float, Field(gt=0, lt=1)]

    @model_validator(mode="after")
    def _fits(self) -> "DatasetSettings":
        if self.name == "digits" and self.val_count > 1787:
            raise InvalidSetting("val_count", "at most 1787 where dataset.name is digits (there are 1797)")
        return self


class ShardsSettings(_Section):
    """From a source of images to webdataset shards."""

    source: Name
    store: Name | None
    class_names: Annotated[list[Name], Field(min_length=1)] | None
    image_size: Positive
    val_fraction: Annotated[float, Field(gt=0, lt=1)]
    images_per_shard: Positive
    max_bad_fraction: Fraction
    max_pixels: Positive

    @property
    def store_url(self) -> str | None:
        """Where the shards go, if not to data/shards."""
        return self.store if self.used_as_is else None

    @property
    def used_as_is(self) -> bool:
        """Whether webdataset files that fit are not written again."""
        return self.store != LOCAL

    @model_validator(mode="after")
    def _fits(self) -> "ShardsSettings":
        if self.used_as_is:
            _check_store(self.store, f"empty, {LOCAL}, or")
        return self

    @property
    def embedded(self) -> bool:
        """Whether the images are those of the stage `dataset`, however the path is written."""
        if "://" in self.source:
            return False
        return Path(os.path.normpath(self.source)).is_relative_to(EMBEDDED)


class _Importable(TrainingSettings):
    """A stage that takes a ready model in place of training one, where `from` names it."""

    from_: Name | None = Field(alias="from")

    @property
    def trains(self) -> bool:
        return self.from_ is None


class TokenizerSettings(_Importable):
    """The binary autoencoder (docs/method.md, section 1)."""

    quantizer: Literal["bernoulli", "lfq"]
    code_bits: Annotated[int, Field(ge=1, le=256)]
    embed_dim: Positive
    base_channels: Positive
    channel_multipliers: Annotated[list[Positive], Field(min_length=1)]
    res_blocks: Positive
    attention_resolutions: list[Positive]
    norm_first: bool
    reconstruction_weight: Weight
    perceptual_weight: Weight
    perceptual_weights: Name | None
    gan_weight: Weight
    gan_start: Positive
    gan_augment: bool
    gan_base_channels: Positive
    lfq_entropy_weight: Weight
    lfq_commitment_weight: Weight
    horizontal_flip: bool

    @property
    def perceptual_file(self) -> str | None:
        """The file of LPIPS' weights, where the training needs it."""
        return self.perceptual_weights if self.trains and self.perceptual_weight > 0 else None

    @property
    def downsampling(self) -> int:
        """f: pixels along one side of a token."""
        return int(2 ** (len(self.channel_multipliers) - 1))

    @model_validator(mode="after")
    def _fits(self) -> "TokenizerSettings":
        groups = 32
        if self.base_channels % groups:
            raise InvalidSetting("base_channels", f"a multiple of {groups} (GroupNorm has {groups} groups)")
        if self.norm_first and self.embed_dim % groups:
            raise InvalidSetting("embed_dim", f"a multiple of {groups} where tokenizer.norm_first is true")
        if self.trains and self.perceptual_weight > 0 and self.perceptual_weights is None:
            raise InvalidSetting(
                "perceptual_weights", "a file with LPIPS' and VGG-16's weights where tokenizer.perceptual_weight is > 0"
            )
        return self


class CodesSettings(_Section):
    """Every image as packed bits."""

    views: Annotated[list[Literal["identity", "flip"]], Field(min_length=1)]
    draws: Count
    batch_size: Positive
    store: Name | None

    @model_validator(mode="after")
    def _fits(self) -> "CodesSettings":
        _check_store(self.store)
        if len(set(self.views)) != len(self.views):
            raise InvalidSetting("views", "a list without repeated views")
        if self.views[0] != "identity":
            raise InvalidSetting("views", "a list that starts with identity (evaluation reads the first view)")
        return self


class TextSettings(_Section):
    """Texts in the place of classes (docs/text-to-image.md)."""

    encoder: Literal["none", "learned", "clip", "t5"]
    from_: Name | None = Field(alias="from")
    download: bool
    tokens: Positive
    vocabulary: Annotated[int, Field(ge=257)]
    batch_size: Positive
    store: Name | None

    @property
    def used(self) -> bool:
        """Whether the model takes texts."""
        return self.encoder != "none"

    @property
    def frozen(self) -> str | None:
        """What `from` names, where an encoder is read from there."""
        return self.from_ if self.encoder in ("clip", "t5") else None

    @model_validator(mode="after")
    def _fits(self) -> "TextSettings":
        _check_store(self.store)
        if self.encoder in ("clip", "t5") and self.from_ is None:
            raise InvalidSetting("from", f"a folder with the weights of {self.encoder}, where that is text.encoder")
        return self


class GeneratorSettings(_Importable):
    """The masked backbone and its transcoder, trained jointly (docs/method.md, sections 2 and 3)."""

    dim: Positive
    layers: Positive
    heads: Positive
    ffn_multiple_of: Positive
    dropout: Fraction
    label_dropout: Probability
    text_dropout: Probability
    text_layers: Positive
    text_heads: Positive
    input_flip: Fraction
    use_labels: bool
    condition_rope: bool
    init_std: PositiveFloat
    position_std: PositiveFloat
    noise_draws: Positive
    transcoder_dim: Positive
    transcoder_blocks: Positive
    diffusion_steps: Annotated[int, Field(ge=2)]
    target: Target
    absent_std: PositiveFloat

    def dropout_of_labels(self, *, texts: bool) -> float:
        """The share of labels, or of texts, that become none in training."""
        if not self.use_labels:
            return 1.0
        return self.text_dropout if texts else self.label_dropout

    @model_validator(mode="after")
    def _fits(self) -> "GeneratorSettings":
        if self.dim % 4:
            need = f"a multiple of {4 * self.heads}, 4 for each of generator.heads = {self.heads} (2-D RoPE)"
            raise InvalidSetting("dim", need)
        divisors = [h for h in range(1, self.dim + 1) if self.dim % (4 * h) == 0]
        if self.heads not in divisors:
            need = "a number that leaves each head a width divisible by 4 (2-D RoPE) out"
            need = "a divisor" if self.dim % self.heads else need
            raise InvalidSetting("heads", f"{need} of generator.dim = {self.dim}, such as {some(divisors)}")
        return self


class TranscoderSettings(TrainingSettings):
    """The transcoder, fitted further on the frozen backbone."""

    steps: Count
    start: Literal["joint", "scratch"]
    noise_draws: Positive
    dim: Positive
    blocks: Positive
    diffusion_steps: Annotated[int, Field(ge=2)]
    target: Target
    absent_std: PositiveFloat

    @model_validator(mode="after")
    def _fits(self) -> "TranscoderSettings":
        if self.start == "scratch" and self.steps == 0:
            raise InvalidSetting(
                "steps", "more than 0 where transcoder.start is scratch (an untrained transcoder returns noise)"
            )
        return self


class SamplerSettings(_Section):
    """Entropy-ordered sampling (docs/method.md, section 4)."""

    iterations: Positive
    diffusion_steps: Steps
    order: Literal["entropy", "margin", "random", "raster", "halton"]
    guidance_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    guidance_schedule: Literal["constant", "linear", "cosine"]
    guidance_start: Fraction
    guidance_power: PositiveFloat
    temperature: PositiveFloat
    gumbel_temperature: Weight
    gumbel_schedule: Literal["constant", "up", "down"]
    deterministic_bits: bool
    bit_counts: Annotated[list[Positive], Field(min_length=1)] | None
    bit_noise: Weight


def _without_defaults(properties: dict[str, Any]) -> None:
    for one in properties.values():
        del one["default"]


class PresetSettings(SamplerSettings):
    """What a preset changes of the sampler; all else is as in the section."""

    model_config = ConfigDict(json_schema_extra=lambda schema: _without_defaults(schema["properties"]))

    @property
    def named(self) -> dict[str, Any]:
        """The settings that the preset names, and their values."""
        return {name: getattr(self, name) for name in sorted(self.model_fields_set)}

    @model_serializer
    def _as_named(self) -> dict[str, Any]:
        return self.named


for _field in PresetSettings.model_fields.values():
    _field.default = None  # of what a preset does not name; `named` never has it
PresetSettings.model_rebuild(force=True)


class PresetsSettings(_Section):
    """The presets by their names."""

    quality: PresetSettings
    balanced: PresetSettings
    fast: PresetSettings


class SamplesSettings(SamplerSettings):
    """How many images are drawn, and how: under the preset, where one is chosen (`bigr.config.validate` applies it)."""

    count: Positive
    prompts: Name | None
    train_captions: Count
    batch_size: Positive
    grid_rows: Positive
    preset: Literal["quality", "balanced", "fast"] | None
    presets: PresetsSettings

    @property
    def by_preset(self) -> dict[str, "SamplesSettings"]:
        """The section under each preset, by the preset's name."""
        presets = {name: getattr(self.presets, name) for name in PresetsSettings.model_fields}
        return {name: self.model_copy(update={**preset.named, "preset": name}) for name, preset in presets.items()}

    @model_validator(mode="after")
    def _fits(self) -> "SamplesSettings":
        counts = self.bit_counts
        if counts is not None and counts != sorted(counts):
            raise InvalidSetting("bit_counts", "numbers of which none is smaller than the one before it")
        if counts is not None and len(counts) != self.diffusion_steps:
            raise InvalidSetting("diffusion_steps", f"{len(counts)}, the length of samples.bit_counts")
        return self


class EditingSettings(_Section):
    """What the model does without further training (docs/method.md, section 5)."""

    guidance_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    gumbel_temperature: Weight
    feather: Weight
    enrich_guidance_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    enrich_rounds: Annotated[int, Field(ge=1, le=4)]


class EvaluationSettings(_Section):
    """Fidelity, reconstruction, representation and code usage."""

    extractor: Literal["classifier", "inception-v3-compat"]
    extractor_weights: Name | None
    reference: Literal["train", "val"]
    reference_images: Annotated[int, Field(ge=10)]
    probe_images: Annotated[int, Field(ge=10)]
    kid_subset_size: Annotated[int, Field(ge=2)]
    kid_subsets: Positive
    precision_recall_neighbours: Positive
    batch_size: Positive
    classifier_channels: Positive
    classifier_features: Positive
    classifier_steps: Positive
    classifier_batch_size: Annotated[int, Field(ge=2)]
    classifier_learning_rate: PositiveFloat
    probe_epochs: Positive
    probe_batch_size: Annotated[int, Field(ge=2)]
    probe_learning_rate: PositiveFloat
    probe_weight_decay: Weight
    selection_fraction: Annotated[float, Field(gt=0, le=0.5)]
    knn_neighbours: Positive
    knn_temperature: PositiveFloat
    tsne_images: Positive
    tsne_perplexity: PositiveFloat
    zero_shot_images: Count
    clip: Name | None
    judge_width: Positive
    judge_vocabulary: Annotated[int, Field(ge=257)]
    judge_steps: Positive
    judge_batch_size: Annotated[int, Field(ge=2)]
    judge_learning_rate: PositiveFloat
    judge_weight_decay: Weight
    judge_noise: Weight
    scene_reader_steps: Positive
    scene_reader_scenes: Positive

    @model_validator(mode="after")
    def _fits(self) -> "EvaluationSettings":
        if self.extractor != "classifier" and self.extractor_weights is None:
            raise InvalidSetting(
                "extractor_weights", f"a file with the weights of evaluation.extractor = {self.extractor}"
            )
        return self


class PromotionMetric(_Section):
    """One metric of metrics.json by which the gate compares a challenger with the champion."""

    name: Name
    tolerance: Weight
    relative: bool
    limit: Finite | None

    @model_validator(mode="after")
    def _known(self) -> "PromotionMetric":
        if self.name not in COMPARED_METRICS:
            raise InvalidSetting("name", f"one of {', '.join(COMPARED_METRICS)}")
        return self


class PromotionSettings(_Section):
    """The gate in front of the alias `champion`. No stage reads it."""

    metrics: Annotated[list[PromotionMetric], Field(min_length=1)]

    @model_validator(mode="after")
    def _each_once(self) -> "PromotionSettings":
        names = [comparison.name for comparison in self.metrics]
        if len(set(names)) != len(names):
            raise InvalidSetting("metrics", "a list without repeated metrics")
        return self


class ServingSettings(_Section):
    """What a version of the registry answers. No stage reads it."""

    max_images: Positive


class Settings(_Section):
    """All of params.yaml: a section per stage, `seed`, `run`, `editing`, `targets`, `promotion` and `serving`."""

    seed: Annotated[int, Field(ge=0, lt=2**63)]
    run: RunSettings
    dataset: DatasetSettings
    shards: ShardsSettings
    tokenizer: TokenizerSettings
    codes: CodesSettings
    text: TextSettings
    generator: GeneratorSettings
    transcoder: TranscoderSettings
    samples: SamplesSettings
    editing: EditingSettings
    evaluation: EvaluationSettings
    targets: dict[Word, dict[Word, Finite]]
    promotion: PromotionSettings
    serving: ServingSettings

    @property
    def grid(self) -> int:
        """g: tokens along one side of an image."""
        return self.shards.image_size // self.tokenizer.downsampling

    @property
    def images_drawn(self) -> int:
        """How many images the stage `samples` draws: those of training captions too, where the model takes texts."""
        return self.samples.count + (self.samples.train_captions if self.text.used else 0)

    @property
    def emoji(self) -> bool:
        """Whether the stage `dataset` renders emoji."""
        return self.shards.embedded and self.dataset.name == "emoji"

    @property
    def stores(self) -> dict[str, str]:
        """The URLs to which stages put their files: key → URL. The first word of the key is the stage."""
        named = {
            "shards.store": self.shards.store_url,
            "codes.store": self.codes.store,
            "text.store": self.text.store if self.text.used else None,
        }
        return {key: url for key, url in named.items() if url is not None}

    @property
    def files(self) -> dict[str, str]:
        """The user's files and folders that these settings make a stage read: key → path below the project's folder,
        absolute, or a URL. The first word of the key is the stage."""
        evaluation = self.evaluation
        named = {
            "dataset.emoji_font": self.dataset.emoji_font if self.emoji else None,
            "dataset.emoji_names": self.dataset.emoji_names if self.emoji else None,
            "shards.source": None if self.shards.embedded else self.shards.source,
            "tokenizer.from": self.tokenizer.from_,
            "tokenizer.perceptual_weights": self.tokenizer.perceptual_file,
            "text.from": self.text.frozen if self.text.frozen and not self.text.download else None,
            "generator.from": self.generator.from_,
            "samples.prompts": self.samples.prompts if self.text.used else None,
            "evaluation.extractor_weights": (
                evaluation.extractor_weights if evaluation.extractor != "classifier" else None
            ),
            "evaluation.clip": evaluation.clip if self.text.used else None,
        }
        return {key: path for key, path in named.items() if path is not None}

    @model_validator(mode="after")
    def _fits(self) -> "Settings":
        for rule in RULES:
            rule(self)
        return self
