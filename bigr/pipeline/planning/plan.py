"""The plan of a params.yaml: parameters, FLOPs, memory, disk, time. Nothing is trained, and no data is needed."""

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from bigr import config
from bigr.config import Settings
from bigr.evaluation.captions.trained_judge import LARGEST_SIDE, image_tower
from bigr.evaluation.fidelity.classifier import Classifier, ClassifierConfig
from bigr.pipeline.planning import image_counts, networks, sampling_cost, speed, training_cost
from bigr.pipeline.planning.image_counts import Disk, ImageCounts
from bigr.pipeline.planning.meter import Arithmetic, flops, measure
from bigr.pipeline.planning.networks import Networks
from bigr.pipeline.planning.sampling_cost import (
    InferenceMemory,
    SamplingCost,
    backbone_flops,
    zero_shot_flops,
)
from bigr.pipeline.planning.training_cost import TrainingCost
from bigr.pipeline.stage_table import NAMES, STAGES
from bigr.runtime.device import resolve_device
from bigr.runtime.errors import BigrError
from bigr.runtime.precision import autocast

_INCEPTION = 11.4e9
"""FLOPs of an image through Inception v3 at 299²: 5.7 GMAC (Szegedy et al., 2016)."""
_RESTORED = 3
"""How often the evaluation decodes the validation images: for distances, for PSNR, for labels."""


@dataclass(frozen=True)
class Speed:
    """TFLOP/s that one process sustains, under bfloat16 autocast and in float32; basis: how that is known."""

    tflops: float
    float32_tflops: float
    basis: str


@dataclass(frozen=True)
class StageCost:
    """Work of one stage over all its processes. note: why it is not known, or what it leaves out.

    flops: under bfloat16 autocast, None where not known; flops_float32: in float32; flops_alone: in float32 too, of the
    process that does most by itself; flops_beside: of others that do less by themselves at that time.
    """

    name: str
    flops: float | None
    flops_float32: float
    processes: int
    note: str = ""
    flops_alone: float = 0.0
    flops_beside: float = 0.0

    def seconds(self, speed: Speed) -> float | None:
        """The time that the arithmetic takes at that speed."""
        if self.flops is None:
            return None
        shared = self.flops / speed.tflops + self.flops_float32 / speed.float32_tflops
        return (shared / self.processes + self.flops_alone / speed.float32_tflops) / 1e12


class EvaluationCost(NamedTuple):
    """FLOPs of the stage `evaluation`: of what all processes share, and of each training that one process does, in the
    order in which the processes take them.
    """

    shared: float
    trainings: tuple[float, ...]


@dataclass(frozen=True)
class Plan:
    """What `bigr plan` says. FLOPs and bytes are plain numbers; encoder: FLOPs of one view of an image."""

    params: str
    device: str
    processes: int
    precision: dict[str, str]
    images: ImageCounts
    parameters: dict[str, dict[str, int]]
    training: list[TrainingCost]
    encoder: float
    sampling: SamplingCost
    inference: list[InferenceMemory]
    disk: Disk
    speed: Speed | None
    stages: list[StageCost]

    def as_json(self) -> dict[str, Any]:
        """Everything, in FLOPs, bytes and seconds; the times of stages are null where they are not known."""
        values = asdict(self)
        for stage, row in zip(self.stages, values["stages"], strict=True):
            row["seconds"] = stage.seconds(self.speed) if self.speed else None
        values["images"]["total"] = self.images.total
        return values


def make_plan(
    params: Path,
    root: Path,
    *,
    tflops: float | None = None,
    float32_tflops: float | None = None,
    images: int | None = None,
    classes: int | None = None,
    processes: int | None = None,
    parallel: str | None = None,
) -> Plan:
    """The plan of the settings in `params` for the project at `root`. Raises `BigrError` as `bigr check` does.

    processes, parallel: in place of those of the section run.
    tflops, float32_tflops: what one process sustains; if None, measured here, where this machine has the device.
    """
    given = {"tflops": tflops, "float32-tflops": float32_tflops, "images": images, "classes": classes}
    for name, number in {**given, "processes": processes}.items():
        if number is not None and not 0 < number < float("inf"):
            raise BigrError(f"--{name} must be a number above 0, got {number}")
    settings = config.load(params)
    chosen = {"processes": processes, "parallel": parallel}
    if chosen := {name: value for name, value in chosen.items() if value is not None}:
        values = settings.model_dump()
        values["run"] |= chosen
        settings = config.validate(values, params.name)
    found = image_counts.count_images(settings, root, images, classes)
    device, is_here = _device(settings.run.device)
    with torch.device("meta"):
        built = networks.build(settings, found.classes, root)
        widths = {"tokenizer": built.tokenizer.width}
        widths |= dict.fromkeys(("generator", "transcoder", "samples"), settings.generator.dim)
        arithmetic = {
            name: _arithmetic(device, is_here, settings.run.precision, width) for name, width in widths.items()
        }
        parameters = networks.parameters(built)
        trained = [
            work(settings, built, arithmetic[name], settings.run.processes)
            for name, work in (
                ("tokenizer", training_cost.tokenizer_training),
                ("generator", training_cost.generator_training),
                ("transcoder", training_cost.transcoder_training),
            )
            if getattr(settings, name).trains
        ]
        size = settings.shards.image_size
        encoder = flops(lambda: built.tokenizer.codes(torch.zeros(1, 3, size, size)))
        sampled = sampling_cost.sampling_cost(settings, built, arithmetic["samples"], settings.run.processes)
        evaluated = evaluation_flops(settings, built, found)
        inference = sampling_cost.inference_memory(settings, built, arithmetic["samples"].gpu)
    stages = _stages(settings, found, arithmetic, trained, encoder, sampled, evaluated)
    return Plan(
        params=str(params),
        device=str(device),
        processes=settings.run.processes,
        precision={name: "bfloat16" if a.bfloat16 else "float32" for name, a in arithmetic.items()},
        images=found,
        parameters=parameters,
        training=trained,
        encoder=encoder,
        sampling=sampled,
        inference=inference,
        disk=image_counts.disk(settings, root),
        speed=_speed(device, is_here, any(a.bfloat16 for a in arithmetic.values()), tflops, float32_tflops),
        stages=stages,
    )


def evaluation_flops(settings: Settings, built: Networks, images: ImageCounts) -> EvaluationCost:
    """FLOPs of the stage `evaluation`: classifier, distances' features, decoder, every layer's probe, k-NN, zero-shot.

    Where the number of images is not known, the most that the settings allow.
    """
    section, size, count = settings.evaluation, settings.shards.image_size, settings.samples.count
    limit = section.reference_images
    train, val = (min(limit, n or limit) for n in (images.train, images.val))
    probed = min(section.probe_images, images.train or section.probe_images)
    shape = ClassifierConfig(size, images.classes, section.classifier_channels, section.classifier_features)
    classifier = Classifier(shape).train()
    batch, labels = torch.zeros(2, 3, size, size), torch.zeros(2, dtype=torch.long)
    step = measure(lambda: F.cross_entropy(classifier(batch), labels), Arithmetic(gpu=False, bfloat16=False))
    seen = flops(lambda: classifier(batch)) / 2
    extractor = seen if section.extractor == "classifier" else _INCEPTION
    decoder = flops(lambda: built.tokenizer.decode(torch.zeros(1, settings.grid**2, settings.tokenizer.code_bits)))
    probe = 2 * 3 * settings.generator.layers * settings.generator.dim * images.classes * section.probe_epochs * probed
    neighbours = 2 * settings.generator.layers * settings.generator.dim * probed * val
    trained = section.classifier_steps * section.classifier_batch_size * (step.forward + step.backward) / 2
    drawn = min(section.zero_shot_images, val)
    judge = judge_flops(settings, min(train, val), val) if settings.text.used else JudgeCost(0.0, 0.0)
    return EvaluationCost(
        shared=(count + 2 * val) * seen
        + (count + val + val + train) * extractor  # each set once: samples, reconstructions, both splits
        + _RESTORED * val * decoder
        + (probed + val) * backbone_flops(built.bigr)
        + neighbours
        + probe
        + (zero_shot_flops(settings, built, drawn) if drawn else 0)
        + (judge.looking + val * decoder if settings.text.used else 0),
        trainings=(trained, judge.training),
    )


class JudgeCost(NamedTuple):
    """FLOPs of the judge of captions: of its training, and of looking at each set."""

    training: float
    looking: float


def judge_flops(settings: Settings, train: int, val: int) -> JudgeCost:
    """FLOPs of the judge of captions, of so many training and validation images. Left out: CLIP, a scene's reader."""
    section, side = settings.evaluation, min(settings.shards.image_size, LARGEST_SIDE)
    if section.clip is not None:
        return JudgeCost(0.0, 0.0)
    tower = Classifier(image_tower(side, section)).train()
    batch = torch.zeros(2, 3, side, side)
    step = measure(lambda: tower(batch).sum(), Arithmetic(gpu=False, bfloat16=False))
    similar = 2 * 2 * section.judge_batch_size * section.judge_width  # of an image to all texts, in both directions
    trained = section.judge_steps * section.judge_batch_size * ((step.forward + step.backward) / 2 + similar)
    return JudgeCost(trained, (settings.images_drawn + train + 2 * val) * step.forward / 2)


def _stages(
    settings: Settings,
    images: ImageCounts,
    arithmetic: dict[str, Arithmetic],
    trained: list[TrainingCost],
    encoder: float,
    sampled: SamplingCost,
    evaluated: EvaluationCost,
) -> list[StageCost]:
    processes, views = settings.run.processes, len(settings.codes.views)
    by_name = {t.stage: t for t in trained}

    def cost(name: str) -> StageCost:
        def work(flops: float, float32: float = 0.0, note: str = "") -> StageCost:
            if not arithmetic[name].bfloat16:
                flops, float32 = 0.0, flops + float32
            return StageCost(name, flops, float32, processes, note)

        if name in by_name:
            return work(by_name[name].flops)
        if name == "samples":
            return work(sampled.flops, sampled.flops_float32, "the decoder in float32")
        if name == "codes":
            note = f"{views} view{'s' if views > 1 else ''}, in float32"
            if images.total is None:
                return StageCost(name, None, 0.0, processes, note)
            return StageCost(name, 0.0, encoder * views * images.total, processes, note)
        if name == "evaluation":
            shared, trainings = evaluated
            alone = max(sum(trainings[process::processes]) for process in range(processes))
            share = alone / (shared + sum(trainings))
            note = f"in float32, {share:.0%} by one process alone; without precision, recall and KID"
            return StageCost(name, 0.0, shared, processes, note, alone, sum(trainings) - alone)
        if name == "text":
            used = settings.text.used
            note = "nothing is read: no encoder"
            if used:
                counts_none = settings.text.frozen is None
                note = (
                    "byte pairs, on the CPU: not in FLOPs" if counts_none else f"{settings.text.encoder}: not counted"
                )
            return StageCost(name, None if used else 0.0, 0.0, processes, note)
        if not STAGES[name].on_device:
            return StageCost(name, None, 0.0, 1, "decodes and packs images on the CPU: not in FLOPs")
        start = getattr(getattr(settings, name), "from_", None)
        return StageCost(name, 0.0, 0.0, processes, f"nothing is trained: {f'from {start}' if start else 'steps is 0'}")

    return [cost(name) for name in NAMES]


def _device(name: str) -> tuple[torch.device, bool]:
    """The device to plan for, and whether this machine has it."""
    try:
        return resolve_device(name), True
    except BigrError:
        return torch.device(name), False


def _arithmetic(device: torch.device, is_here: bool, precision: str, width: int) -> Arithmetic:
    """What the training loop would compute in. A GPU that is not here is assumed to have bfloat16."""
    gpu = device.type == "cuda"
    if precision != "auto" or (gpu and not is_here):
        return Arithmetic(gpu, bfloat16=precision != "float32")
    return Arithmetic(gpu, bfloat16=not isinstance(autocast(device, precision, width), nullcontext))


def _speed(
    device: torch.device, is_here: bool, bfloat16: bool, tflops: float | None, float32_tflops: float | None
) -> Speed | None:
    """The speed given, else measured; None where the device is not here."""
    if tflops is not None and float32_tflops is None:
        return Speed(tflops, tflops, "as given; also for what is computed in float32, which GPUs do slower")
    if tflops is not None and float32_tflops is not None:
        return Speed(tflops, float32_tflops, "as given")
    if not is_here:
        return None
    full = float32_tflops or speed.measured_tflops(device, torch.float32)
    return Speed(speed.measured_tflops(device, torch.bfloat16) if bfloat16 else full, full, speed.describe(device))
