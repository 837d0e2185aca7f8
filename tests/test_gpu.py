"""What only a GPU can show: its arithmetic, that training and sampling do there what they do here, and how fast.

`make test-gpu` runs this and prints what it measured. Without a GPU all of it is skipped; `BIGR_TEST_DEVICE=cpu` runs
the same code on the CPU, with a small model in place of the published one, so that it can be changed without a GPU.
"""

import copy
import csv
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bigr.models.autoencoder.tokenizer import Tokenizer, TokenizerConfig
from bigr.models.masked.compiled import compile_blocks
from bigr.models.masked.generator import BiGR, BiGRConfig
from bigr.models.presets import PRESETS, TOKENIZERS
from bigr.models.psnr import psnr
from bigr.runtime.context import Context
from bigr.runtime.device import resolve_device
from bigr.runtime.precision import autocast
from bigr.sampling.decode import decoded
from bigr.sampling.graphs import drop_graphs, use_graphs
from bigr.sampling.unmask import Sampling, sample_codes
from bigr.stages import draw_samples, encode_codes, train_generator, train_tokenizer, train_transcoder
from tests.fake_cuda import READS, places
from tests.test_golden import FILES, errors_of
from tests.test_training import run_killed_after, run_two_processes, steps_of, weights
from tests.worlds import lpips_weights, settings, write_codes, write_models, write_shards, write_text_rows

NAME = os.environ.get("BIGR_TEST_DEVICE", "cuda")
HERE = NAME != "cuda" or torch.cuda.is_available()

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not HERE, reason="torch sees no CUDA device here"),
]

Measured = Callable[[str], None]


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Measured:
    """Takes a line for the end of the run."""
    return partial(record_property, "measured")


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """The stages ask for deterministic kernels, which cuBLAS must be told before its first call; other tests do not."""
    resolve_device(NAME)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")


def on_device(**changes: Any) -> Any:
    return settings(run__device=NAME, run__workers=1, **changes)


def peak() -> str:
    """The most memory that was in use since the last call."""
    if not torch.cuda.is_available():
        return "peak memory not measured"
    most = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return f"peak memory {most / 2**30:.2f} GiB"


def seconds(run: Callable[[], object]) -> float:
    """How long a call takes, all that it has asked of the GPU included."""
    finish = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    finish()
    start = time.perf_counter()
    run()
    finish()
    return time.perf_counter() - start


# Arithmetic. The vectors are float32 of a CPU; TF32 rounds the factors of products to 10 bits, bfloat16 all to 7.

PRECISIONS = {"float32": 1e-4, "TF32": 1e-2, "bfloat16": 5e-2}
"""The largest error of any output, as a share of its largest number."""


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    torch.set_float32_matmul_precision("high" if precision == "TF32" else "highest")
    narrow: AbstractContextManager[object] = nullcontext()
    if precision == "bfloat16":
        narrow = torch.autocast(NAME, dtype=torch.bfloat16)
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=precision == "TF32"), narrow:
        yield


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_models_compute_what_the_published_ones_compute(path: Path, precision: str, measured: Measured) -> None:
    with arithmetic(precision):
        errors = errors_of(path, NAME, unsure=PRECISIONS[precision], relative=True)
    worst = max(errors, key=errors.__getitem__)
    measured(f"largest error {errors[worst]:.1e} ({worst}), allowed {PRECISIONS[precision]:.0e}")
    assert all(error <= PRECISIONS[precision] for error in errors.values()), errors


# Training.

ADVERSARIAL: dict[str, Any] = {
    "shards__image_size": 32,
    "tokenizer__channel_multipliers": [1, 1],
    "tokenizer__attention_resolutions": [16],
    "tokenizer__batch_size": 4,
    "tokenizer__perceptual_weight": 1.0,
    "tokenizer__perceptual_weights": "lpips.safetensors",
    "tokenizer__gan_weight": 1.0,
    "tokenizer__gan_base_channels": 4,
}
RATES = {
    "tokenizer__learning_rate": 1e-3,
    "generator__learning_rate": 1e-2,
    "generator__ema_decay": 0.5,
    "transcoder__learning_rate": 1e-2,
    "transcoder__ema_decay": 0.5,
}
TEXTS = {"generator__text_layers": 1, "generator__text_heads": 2}
STAGES = {
    "tokenizer": (train_tokenizer, {"tokenizer__schedule": "constant"}),
    "tokenizer, adversarial": (train_tokenizer, {**ADVERSARIAL, "tokenizer__gan_start": 11}),
    "tokenizer, lookup-free": (train_tokenizer, {"tokenizer__quantizer": "lfq"}),
    "generator": (train_generator, {"generator__schedule": "constant"}),
    "generator, texts": (train_generator, {"generator__schedule": "constant", **TEXTS}),
    "transcoder": (train_transcoder, {"transcoder__start": "scratch", "transcoder__schedule": "constant"}),
}


def prepared(root: Path, stage: Any, changes: dict[str, Any], grid: int = 4) -> Context:
    """A project with what the stage reads; grid: of the codes."""
    if stage is train_tokenizer:
        write_shards(root, size=changes.get("shards__image_size", 16))
        save_file(lpips_weights(), root / "lpips.safetensors")
    else:
        write_codes(root, grid=grid)
    if TEXTS.keys() <= changes.keys():
        write_text_rows(root, "learned", images=40)
    if stage is train_transcoder:
        train_generator.run(on_device(**RATES, generator__steps=40), Context(root, "f"))
    return Context(root, "f")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", STAGES)
def test_twenty_steps_lower_the_loss(tmp_path: Path, name: str, precision: str, measured: Measured) -> None:
    stage, own = STAGES[name]
    section = name.split(",")[0]
    changes = {**RATES, **own, f"{section}__steps": 20, f"{section}__validate_every": 5, "run__checkpoint_every": 50}
    changes["run__precision"] = precision
    context = prepared(tmp_path, stage, own)
    peak()
    taken = seconds(lambda: stage.run(on_device(**changes), context))
    rows = list(csv.DictReader((tmp_path / "outputs" / "curves" / f"{section}.csv").open()))
    assert all(math.isfinite(float(value)) for row in rows for value in row.values() if value)
    term = "train_l1" if section == "tokenizer" else "val_loss"  # with fixed draws, whose noise would hide the fall
    losses = [float(row[term]) for row in rows if row[term]]
    measured(
        f"{term} {losses[0]:.4f} to {losses[-1]:.4f}; {20 / taken:.1f} steps/s with all four validations; {peak()}"
    )
    assert losses[-1] < losses[0]


# 16×16 tokens: with fewer, attention has one block, and nothing to add in another order.
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "grid"), [("generator", 4), ("generator", 16), ("generator, texts", 4), ("tokenizer, adversarial", 4)]
)
def test_a_killed_training_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, grid: int, precision: str
) -> None:
    stage, own = STAGES[name]
    section = name.split(",")[0]
    changes = {**own, f"{section}__steps": 7, "run__checkpoint_every": 3, "run__precision": precision}
    if stage is train_tokenizer:
        changes["tokenizer__gan_start"] = 2
    else:
        changes["generator__dropout"] = 0.2
    whole = prepared(tmp_path / "whole", stage, own, grid)
    shutil.copytree(whole.root, tmp_path / "killed")
    killed = Context(tmp_path / "killed", "f")
    stage.run(on_device(**changes), whole)
    run_killed_after(monkeypatch, 5, lambda: stage.run(on_device(**changes), killed))
    assert steps_of(monkeypatch, lambda: stage.run(on_device(**changes), killed)) == 7 - 3
    assert weights(whole.root / "models" / section) == weights(killed.root / "models" / section)


# Waiting.


@contextmanager
def waits() -> Iterator[list[str]]:
    """Collects the places in which the code waits for the GPU, and is not among those that may."""
    found: list[str] = []

    def noticed(message: Any, *_: Any, **__: Any) -> None:
        if "synchronizing" in str(message):
            around = [place for place, _ in places()]
            if not READS.keys() & set(around):
                found.append(f"{around[0] if around else 'outside'}: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = noticed
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")


def test_recomputed_activations_give_the_same_weights(tmp_path: Path, measured: Measured) -> None:
    write_codes(tmp_path)
    ends = []
    for switch in (False, True):
        peak()
        changes = {"generator__dropout": 0.2, "run__activation_checkpointing": switch, "generator__accumulate": 2}
        train_generator.run(on_device(**changes), Context(tmp_path))
        measured(f"activation checkpointing {switch}: {peak()}")
        ends.append(weights(tmp_path / "models" / "generator"))
    assert ends[0] == ends[1]


MOVES = (
    "stages/train_tokenizer.py learn",
    "stages/train_generator.py learn",
    "stages/train_transcoder.py run",
    "stages/train_transcoder.py with_new_transcoder",
)
"""Where models are put on the GPU."""


@pytest.mark.parametrize("name", STAGES)
def test_training_waits_nowhere_but_where_it_says(tmp_path: Path, name: str) -> None:
    stage, own = STAGES[name]
    section = name.split(",")[0]
    context = prepared(tmp_path, stage, own)
    with waits() as found:
        stage.run(on_device(**own, **{f"{section}__steps": 12, "run__precision": "bfloat16"}), context)
    assert not [place for place in found if place.partition(":")[0] not in MOVES]


# Sampling.


def test_images_are_encoded_and_drawn(tmp_path: Path, measured: Measured) -> None:
    write_shards(tmp_path, size=8)
    write_models(tmp_path)
    small = {"shards__image_size": 8, "tokenizer__attention_resolutions": []}
    encode_codes.run(on_device(**small), Context(tmp_path))
    chosen = on_device(samples__count=40, samples__batch_size=20, samples__iterations=8, samples__diffusion_steps=8)
    peak()
    with waits() as found:
        taken = seconds(lambda: draw_samples.run(chosen, Context(tmp_path)))
    drawn = np.load(tmp_path / "outputs" / "samples.npz")["arr_0"]
    measured(f"{len(drawn) / taken:.0f} images/s of a tiny model; {peak()}")
    assert (drawn.shape, drawn.dtype) == ((40, 8, 8, 3), np.uint8)
    assert drawn.std() > 1  # of 255: not one colour
    assert not [place for place in found if place.startswith("sampling")]


# How fast: the published model L at 256², its twenty-four layers.


def published() -> tuple[BiGRConfig, int, Sampling]:
    """The shape that is timed, images of a batch, and the sampler; a small one where there is no GPU."""
    if NAME != "cuda":
        return BiGRConfig(8, 4, 10, 32, 2, 2, 32, 1, ffn_multiple_of=32), 2, Sampling(2, 2, guidance_scale=2.5)
    return PRESETS["L"], 32, Sampling(20, 100, guidance_scale=2.5, gumbel_temperature=0.17)


def test_the_published_size_trains_and_samples(measured: Measured) -> None:
    shape, batch, sampling = published()
    device = resolve_device(NAME)
    torch.manual_seed(0)
    model = BiGR(shape).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    bits = (torch.rand(batch, shape.grid**2, shape.code_bits, device=device) < 0.5).float()
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    masked = torch.arange(shape.grid**2 // 2, device=device).expand(batch, -1)
    noise = torch.Generator(device=device).manual_seed(0)

    def step() -> None:
        with autocast(device, "auto", shape.dim):
            loss = model.loss(bits, labels, masked, noise)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    step()
    peak()
    taken = seconds(lambda: [step() for _ in range(10)])
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU, with a small model"
    measured(f"{10 / taken:.2f} steps/s of {batch} images on {card}; {peak()}")

    model.eval()

    def draw() -> None:
        with autocast(device, "auto", shape.dim):
            assert sample_codes(model, labels, sampling, list(range(batch))).any()

    draw()
    peak()
    measured(f"{batch / seconds(draw):.2f} images/s sampled, codes alone; {peak()}")
    assert all(parameter.isfinite().all() for parameter in model.parameters())


# CUDA graphs, torch.compile and the decoder's precision.


def drawn(device: torch.device) -> tuple[BiGR, Tensor, Sampling]:
    """A model of the published shape with weights that differ from their initial zeros, labels, and a short sampler."""
    shape, _, sampling = published()
    torch.manual_seed(0)
    model = BiGR(shape)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=shape.init_std)
    labels = torch.arange(4, device=device) % shape.num_classes
    return model.to(device).eval(), labels, replace(sampling, iterations=5, diffusion_steps=10)


@pytest.mark.skipif(NAME != "cuda", reason="graphs need a GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_replayed_graphs_sample_the_same_bits_and_wait_once(precision: str, measured: Measured) -> None:
    device = resolve_device(NAME)
    model, labels, sampling = drawn(device)
    tokens, bits = model.config.grid**2, model.config.code_bits
    unknown = torch.rand(4, tokens, generator=torch.Generator().manual_seed(0)) < 0.5

    def sample(seed: int, **given: Tensor) -> Tensor:
        with autocast(device, precision, model.config.dim):
            return sample_codes(model, labels, sampling, range(seed, seed + 4), **given)

    given = {"codes": torch.zeros(4, tokens, bits), "unknown": unknown.to(device)}
    peak()
    expected = [[sample(seed), sample(seed, **given)] for seed in (0, 10, 20)]
    before, direct = peak(), seconds(lambda: sample(0))
    use_graphs(model, device)
    found = [[sample(seed), sample(seed, **given)] for seed in (0, 10, 20)]  # direct, recorded, replayed
    assert all(torch.equal(*pair) for some in zip(found, expected, strict=True) for pair in zip(*some, strict=True))
    measured(f"{direct:.3f} s without, {seconds(lambda: sample(0)):.3f} s with graphs; {before} without, {peak()} with")
    with waits() as places_that_wait:
        sample(30)
    assert not places_that_wait
    with torch.no_grad():
        model.transcoder.final_layer.linear.bias.add_(1)
    changed = sample(0)
    drop_graphs(model)
    assert torch.equal(changed, sample(0))


@pytest.mark.skipif(NAME != "cuda", reason="graphs need a GPU")
def test_a_replay_waits_for_nothing() -> None:
    device = resolve_device(NAME)
    model, labels, sampling = drawn(device)
    use_graphs(model, device)

    def no_waiting(iteration: Any) -> None:  # after the one read at the beginning
        torch.cuda.set_sync_debug_mode("error")

    for _ in range(2):
        sample_codes(model, labels, sampling, range(4))
    try:
        codes = sample_codes(model, labels, sampling, range(4), on_iteration=no_waiting)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert codes.any()


@pytest.mark.skipif(NAME != "cuda", reason="torch.compile is not used elsewhere")
def test_compiled_blocks_give_the_same_loss_gradients_and_samples_up_to_rounding(measured: Measured) -> None:
    device = resolve_device(NAME)
    plain, labels, sampling = drawn(device)
    model = copy.deepcopy(plain)
    if not compile_blocks(model, "auto", device):
        pytest.skip("Triton or a C compiler is not installed")
    codes = (torch.rand(4, plain.config.grid**2, plain.config.code_bits, device=device) < 0.5).float()
    started = time.perf_counter()
    found = []
    for each in (model, plain):
        for count in (100, 60, 30):
            masked = torch.arange(count, device=device).expand(4, -1)
            noise = torch.Generator(device=device).manual_seed(0)
            with autocast(device, "bfloat16", plain.config.dim):
                loss = each.loss(codes, labels, masked, noise)
            loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in each.parameters() if p.grad is not None])
        found.append((loss.item(), gradients))
    (ours, own), (theirs, expected) = found
    difference = ((own - expected).norm() / expected.norm()).item()
    use_graphs(model, device)
    with autocast(device, "bfloat16", plain.config.dim):
        samples = [sample_codes(each, labels, sampling, range(4)) for each in (plain, model, model, model)]
    measured(
        f"loss {ours:.5f}, plain {theirs:.5f}; gradients differ by {difference:.1e}; bits that differ "
        f"{(samples[0] != samples[1]).float().mean():.1%}; {time.perf_counter() - started:.0f} s with compiling"
    )
    assert ours == pytest.approx(theirs, rel=1e-2) and difference < 5e-2
    assert torch.equal(samples[1], samples[3])  # compiled and direct, compiled and replayed


DECODED = {"tf32": 45.0, "bfloat16": 30.0}
"""The least PSNR against float32, in dB."""


@pytest.mark.parametrize("precision", DECODED)
def test_the_decoder_in_another_precision_is_close_to_float32(precision: str, measured: Measured) -> None:
    device = resolve_device(NAME)
    torch.manual_seed(0)
    shape = TOKENIZERS["256"] if NAME == "cuda" else TokenizerConfig(32, 8, 32, 32, (1, 2), 1, ())
    tokenizer = Tokenizer(shape).to(device).eval()
    codes = torch.rand(16, shape.grid**2, shape.code_bits, device=device) < 0.5
    exact = decoded(tokenizer, codes)
    taken = [seconds(partial(decoded, tokenizer, codes, kind)) for kind in ("float32", precision)]
    found = decoded(tokenizer, codes, precision)
    error = psnr(found.float() / 255, exact.float() / 255).mean().item()
    measured(f"{error:.1f} dB against float32, {1e3 * taken[0]:.0f} ms in float32, {1e3 * taken[1]:.0f} ms")
    assert error > DECODED[precision]
    assert torch.equal(decoded(tokenizer, codes), exact)  # what was set is set back


# Many GPUs.


@pytest.mark.skipif(
    NAME == "cuda" and torch.cuda.device_count() < 2, reason=f"two GPUs are needed, {torch.cuda.device_count()} here"
)
def test_two_processes_train_resume_and_sample_together(tmp_path: Path, measured: Measured) -> None:
    for place in ("whole", "killed"):
        write_codes(tmp_path / place)
    write_models(tmp_path / "drawn")
    started = time.perf_counter()
    run_two_processes(_TOGETHER, tmp_path)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    measured(f"two processes over {ranks[0]['backend']}: {time.perf_counter() - started:.0f} s")
    assert ranks[0]["weights"] == ranks[1]["weights"]
    assert all(map(math.isfinite, ranks[0]["weights"]))
    ends = [weights(tmp_path / place / "models" / "generator") for place in ("whole", "killed")]
    assert ends[0] == ends[1]
    assert len(np.load(tmp_path / "drawn" / "outputs" / "samples.npz")["arr_0"]) == 5


_TOGETHER = f"""
# One of two processes: trains, is interrupted and resumes, samples.
import json, pathlib, sys
import torch.distributed as dist
from bigr.runtime.context import Context
from bigr.stages import draw_samples as samples
from bigr.stages import train_generator as generator
from bigr.runtime import distributed
from bigr.runtime.device import resolve_device
from bigr.training.optimiser import EMA
from tests.worlds import settings

class Killed(Exception):
    pass

root, update, seen = pathlib.Path(sys.argv[1]), EMA.update, dict(steps=0)

def watched(self, source):
    update(self, source)
    seen.update(steps=seen["steps"] + 1, weights=[p.double().sum().item() for p in source.parameters()])
    if seen["steps"] == seen.get("last"):
        raise Killed

EMA.update = watched
chosen = settings(run__device="{NAME}", run__checkpoint_every=3, generator__steps=7, samples__count=5)
with distributed.process_group(resolve_device("{NAME}")):
    generator.run(chosen, Context(root / "whole", "f"))
    seen.update(steps=0, last=5)
    try:
        generator.run(chosen, Context(root / "killed", "f"))
    except Killed:
        pass
    seen.update(steps=0, last=None)
    generator.run(chosen, Context(root / "killed", "f"))
    assert seen["steps"] == 7 - 3
    samples.run(chosen, Context(root / "drawn"))
    found = dict(weights=seen["weights"], backend=dist.get_backend())
    (root / f"rank{{distributed.rank()}}.json").write_text(json.dumps(found))
"""
