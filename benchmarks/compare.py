"""Images a second of this project and of the published algorithm, in sampling and in training, in turns."""

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from benchmarks import published
from benchmarks.machine import wait
from benchmarks.parts import DRAWS, Parts, flops
from benchmarks.subjects import Subject
from bigr.models.masked.compiled import compile_blocks
from bigr.models.masked.generator import BiGR
from bigr.pipeline.planning.sampling_cost import network_flops, passes
from bigr.runtime.cpu_parts import in_parts
from bigr.runtime.seeds import generator
from bigr.sampling.acceleration import COMPILED_FROM, accelerate
from bigr.sampling.decode import decoded
from bigr.sampling.graphs import drop_graphs
from bigr.sampling.unmask import sample_codes
from bigr.training.optimiser import EMA, adamw

OURS, PUBLISHED = "this project", "published"
DIRECT = "run.compile: off"
"""This project without CUDA graphs and torch.compile; measured on a GPU alone."""


@dataclass
class Result:
    """What was measured of one kind of work: `seconds` of each round by implementation, in the order of the rounds.

    parts: seconds by part in one more round; flops: of the same, by part or as a whole ("all"); memory: the most bytes
    that were allocated on a GPU; first: seconds until graphs were recorded and code was compiled, on a GPU.
    """

    model: str
    work: str
    batch: int
    settings: str
    seconds: dict[str, list[float]]
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    flops: dict[str, dict[str, float]] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    first: float = 0.0

    def rate(self, who: str) -> float:
        """Images a second: the median of the rounds."""
        return self.batch / statistics.median(self.seconds[who])

    @property
    def ratio(self) -> float | None:
        """This project's rate ÷ the published algorithm's, where both were measured."""
        return self.rate(OURS) / self.rate(PUBLISHED) if PUBLISHED in self.seconds else None

    def sustained(self, who: str) -> float | None:
        """TFLOP/s, of the FLOPs that were counted."""
        if who not in self.flops:
            return None
        return sum(self.flops[who].values()) / statistics.median(self.seconds[who]) / 1e12


def in_turns(works: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each work in each round: one after another, so that what else the machine does falls on all alike.

    A work that returns a float has measured itself.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            found = work()
            wait(device)
            seconds[name].append(found if isinstance(found, float) else time.perf_counter() - start)
    return seconds


def sampling_flops(subject: Subject, batch: int) -> float:
    """FLOPs of this project's networks for a batch, as `bigr plan` counts them."""
    config, how = subject.model.config, subject.sampling
    with torch.device("meta"):
        run = passes(how, config.grid**2, batch, direct=config.target == "direct")
        return batch * sum(network_flops(BiGR(config), run))


def sampling(
    subject: Subject, batch: int, rounds: int, precision: torch.dtype, compare: bool = True, brief: bool = False
) -> Result:
    """Sampling a batch of codes and decoding it, under the settings of the section `samples`.

    compare: with the published algorithm; brief: this project's rate alone, without parts, as of a large batch, which
    fills a GPU without graphs.
    """
    device, model, how = subject.device, subject.model.eval(), subject.sampling
    theirs, literal_model = subject.published or how, subject.published_model
    labels, seeds = subject.labels(batch), list(range(batch))

    def draw(places: slice) -> None:
        with _autocast(device, precision):
            codes = sample_codes(model, labels[places], how, seeds[places])
        decoded(subject.tokenizer, codes)

    def ours() -> None:
        in_parts(draw, range(batch), model.config.grid**2, device)

    def literal() -> None:
        with _autocast(device, precision):
            codes = published.sample_codes(literal_model, labels, theirs, generator(0, "benchmarks", device=device))
        decoded(subject.tokenizer, codes)

    works = {OURS: ours, PUBLISHED: literal} if compare else {OURS: ours}
    described = "" if model.config.target == "flip" else f"target {model.config.target}, "
    described += f"n = {how.iterations}, S = {how.diffusion_steps}, guidance {how.guidance_scale:g}"
    if theirs != how:
        described += f"; published: n = {theirs.iterations}, S = {theirs.diffusion_steps}"
    result = Result(subject.name, "sampling", batch, described, {})
    warm = replace(how, iterations=min(2, how.iterations), diffusion_steps=2)
    with _autocast(device, precision):
        sample_codes(model, labels, warm, seeds)

    def by_part(who: str, work: Callable[[], object]) -> float:
        parts, own = Parts(device), literal_model if who == PUBLISHED else model
        networks = [("backbone", own.backbone, "forward"), ("decoder", subject.tokenizer, "decode")]
        networks += [("transcoder", own.transcoder, name) for name in ("forward", "denoise")]
        networks += [("transcoder", getattr(own.transcoder, name), "forward") for name in ("c_embedder", "t_embedder")]
        with parts.measuring(*networks, (DRAWS, torch, "rand")):
            work()
        result.parts[who], result.flops[who] = parts.seconds(), parts.flops
        return parts.total

    if brief:
        _reset_memory(device)
        result.seconds = in_turns({OURS: ours}, rounds, device)
        result.flops[OURS] = {"networks": sampling_flops(subject, batch)}
        _remember_memory(result, OURS, device)
        return result
    if device.type == "cuda":
        _with_and_without(result, works, rounds, subject)
    else:  # the published algorithm is timed by part in each round: on a CPU it takes minutes
        timed = {OURS: ours} | ({PUBLISHED: lambda: by_part(PUBLISHED, literal)} if compare else {})
        result.seconds = in_turns(timed, rounds, device)
    with _direct(device):  # parts are calls of the networks, which a graph does not make, nor two threads at a time
        by_part(OURS, lambda: draw(slice(0, batch)))
    return result


def _with_and_without(result: Result, works: dict[str, Callable[[], object]], rounds: int, subject: Subject) -> None:
    """Measure this project with `run.compile` off and auto, one after the other, and the published algorithm."""
    device, ours = subject.device, works[OURS]
    others = {DIRECT: ours} | {who: work for who, work in works.items() if who != OURS}
    with _direct(device):
        for who, work in others.items():
            _reset_memory(device)
            result.seconds |= in_turns({who: work}, rounds, device)
            _remember_memory(result, who, device)
    accelerate(subject.model, "auto", device, images=COMPILED_FROM)
    try:
        _reset_memory(device)
        result.first = sum(in_turns({OURS: ours}, 2, device)[OURS])  # compiles, then records
        result.seconds |= in_turns({OURS: ours}, rounds, device)
        _remember_memory(result, OURS, device)
    finally:
        drop_graphs(subject.model)


def training(
    subject: Subject, batch: int, rounds: int, precision: torch.dtype, compare: bool = True, brief: bool = False
) -> Result:
    """Steps of the generator's training, on random codes that are in memory; no batch is too large to be `brief`."""
    device, section = subject.device, subject.settings.generator
    codes, labels, masked = subject.training_batch(batch)
    result = Result(subject.name, "training", batch, f"{masked.shape[1]} of {codes.shape[1]} tokens masked", {})
    model = subject.model.train()
    optimiser, average = adamw(model, section), EMA(model, section.ema_decay)
    theirs = published.TrainingStep(
        subject.published_model.train(), section.learning_rate, section.ema_decay, section.grad_clip
    )
    draws = generator(0, "benchmarks", device=device)

    def forward() -> torch.Tensor:
        with _autocast(device, precision):
            return model.loss(codes, labels, masked, draws)

    def ours(lap: Callable[[str, Callable[[], Any]], Any] = lambda name, work: work()) -> None:
        loss = lap("forward", forward)
        optimiser.zero_grad(set_to_none=True)
        lap("backward", loss.backward)
        lap("clipping", lambda: torch.nn.utils.clip_grad_norm_(model.parameters(), section.grad_clip))
        lap("optimiser", optimiser.step)
        lap("EMA", lambda: average.update(model))

    def literal() -> None:
        with _autocast(device, precision):
            loss = theirs.loss(codes, labels, masked, draws)
        theirs.update(loss)

    works = {OURS: ours, PUBLISHED: literal} if compare else {OURS: ours}
    with _direct(device):
        for who, work in works.items():  # warms up, too
            result.flops[who] = {"all": flops(work)}
        direct = works if device.type != "cuda" else {DIRECT: ours} | {w: f for w, f in works.items() if w != OURS}
        result.seconds = in_turns(direct, rounds, device)
    if device.type == "cuda":
        compile_blocks(model, "auto", device)
        result.first = sum(in_turns({OURS: ours}, 1, device)[OURS])
        result.seconds |= in_turns({OURS: ours}, rounds, device)
    _reset_memory(device)
    parts = Parts(device)
    with parts.measuring():
        ours(parts.lap)
    result.parts[OURS] = parts.seconds()
    _remember_memory(result, OURS, device)
    return result


def _direct(device: torch.device) -> AbstractContextManager[object]:
    """On a GPU: call what was compiled as if it were not."""
    return torch.compiler.set_stance("force_eager") if device.type == "cuda" else nullcontext()


def _autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16)


def _reset_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _remember_memory(result: Result, who: str, device: torch.device) -> None:
    if device.type == "cuda":
        result.memory[who] = torch.cuda.max_memory_allocated(device)
