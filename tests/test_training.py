"""The one training loop: resuming to the bit, stopping on what is not finite, averages, schedules, many processes."""

import csv
import errno
import json
import math
import os
import re
import shutil
import socket
import subprocess
import threading
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from bigr.interop.folders import load_model
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.models.masked.generator import BiGR, BiGRConfig
from bigr.runtime.context import Context, Report
from bigr.runtime.errors import BigrError
from bigr.stages import train_generator, train_tokenizer, train_transcoder
from bigr.training import checkpoints, loop
from bigr.training.autoencoding import ImageBatch
from bigr.training.masked_batches import MaskedBatches
from bigr.training.optimiser import EMA, adamw, learning_rate
from bigr.training.prefetch import on_device
from tests import preloaded
from tests.fake_cuda import CUDA, fake_cuda
from tests.worlds import ROOT, settings, write_codes, write_shards


class Killed(Exception):
    """Stands for a kill in tests that stay in one process."""


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def run_killed_after(monkeypatch, steps, run):
    """Run a stage, killed by an exception once `steps` steps are done."""
    update = EMA.update
    count = iter(range(1, 1000))

    def counting(self, source):
        update(self, source)
        if next(count) == steps:
            raise Killed

    monkeypatch.setattr(EMA, "update", counting)
    with pytest.raises(Killed):
        run()
    monkeypatch.undo()


def steps_of(monkeypatch, run) -> int:
    """How many steps a run of a stage takes."""
    update, steps = EMA.update, []
    with monkeypatch.context() as patch:
        patch.setattr(EMA, "update", lambda self, source: steps.append(1) or update(self, source))
        run()
    return len(steps)


def test_a_killed_generator_continues_and_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, monkeypatch):
    changes = {"generator__steps": 7, "generator__dropout": 0.2, "run__checkpoint_every": 3}
    for name in ("straight", "killed"):
        write_codes(tmp_path / name)
    straight, killed = (Context(tmp_path / name, "f") for name in ("straight", "killed"))
    train_generator.run(settings(**changes), straight)
    later, waited, add, write = threading.Event(), [], loop.Losses.add, checkpoints.write_tensors

    def write_later(*tensors):  # the training goes on meanwhile, and the copy stays that of its step
        waited.append(later.wait(30))
        write(*tensors)

    def next_step(self, losses):
        add(self, losses)
        (later.clear if self._step + len(self._waiting) <= 3 else later.set)()

    monkeypatch.setattr(checkpoints, "write_tensors", write_later)
    monkeypatch.setattr(loop.Losses, "add", next_step)
    run_killed_after(monkeypatch, 5, lambda: train_generator.run(settings(**changes), killed))
    assert waited == [True]
    assert not (killed.root / "models" / "generator").exists()
    assert steps_of(monkeypatch, lambda: train_generator.run(settings(**changes), killed)) == 7 - 3
    assert weights(straight.root / "models" / "generator") == weights(killed.root / "models" / "generator")
    curves = [(c.root / "outputs" / "curves" / "generator.csv").read_text() for c in (straight, killed)]
    assert curves[0] == curves[1]
    assert not list((killed.root / "checkpoints").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("error", "reason"),
    [(OSError(errno.ENOSPC, "No space left on device"), "No space left"), (MemoryError(), "Memory")],
)
def test_a_checkpoint_that_cannot_be_written_is_one_error(tmp_path, monkeypatch, error, reason):
    def full(*tensors):
        raise error

    write_codes(tmp_path)
    monkeypatch.setattr(checkpoints, "write_tensors", full)
    with pytest.raises(BigrError, match=rf"checkpoint .*checkpoint.safetensors cannot be written \({reason}"):
        train_generator.run(settings(generator__steps=3, run__checkpoint_every=1), Context(tmp_path, "f"))
    assert not any(thread.name == "checkpoint" for thread in threading.enumerate())


def test_a_last_checkpoint_that_cannot_be_written_is_a_warning_where_all_else_is_done(tmp_path, monkeypatch, caplog):
    def full(*tensors):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_tensors", full)
    with checkpoints.Checkpoint(tmp_path, "f") as checkpoint:
        checkpoint.save({}, {}, {"step": 2})
    (line,) = caplog.messages
    assert "cannot be written (No space left on device)" in line


def test_batches_for_a_gpu_are_made_ahead_in_one_thread_in_their_order_and_with_their_errors():
    makers = set()

    def numbers():
        for number in range(5):
            makers.add(threading.current_thread())
            yield ImageBatch(torch.zeros(number), torch.zeros(1))
        raise BigrError("a damaged shard")

    with fake_cuda(), closing(on_device(numbers(), CUDA)) as stream:
        seen = [next(stream).images for _ in range(5)]
        with pytest.raises(BigrError, match="a damaged shard"):
            next(stream)
    assert [(image.device, len(image)) for image in seen] == [(CUDA, number) for number in range(5)]
    assert len(makers) == 1 and threading.main_thread() not in makers
    assert not any(thread.is_alive() for thread in makers)


def test_a_checkpoint_of_other_settings_is_not_continued(tmp_path, monkeypatch):
    write_codes(tmp_path)
    run_killed_after(monkeypatch, 5, lambda: train_generator.run(settings(), Context(tmp_path, "before")))
    steps = steps_of(monkeypatch, lambda: train_generator.run(settings(), Context(tmp_path, "after")))
    assert steps == settings().generator.steps


def test_a_killed_transcoder_continues_and_ends_with_the_same_weights(tmp_path, monkeypatch):
    changes = {"transcoder__steps": 5, "run__checkpoint_every": 2}
    straight, killed = (Context(tmp_path / name, "f") for name in ("straight", "killed"))
    write_codes(straight.root)
    train_generator.run(settings(**changes), straight)
    shutil.copytree(straight.root, killed.root)
    train_transcoder.run(settings(**changes), straight)
    run_killed_after(monkeypatch, 3, lambda: train_transcoder.run(settings(**changes), killed))
    assert steps_of(monkeypatch, lambda: train_transcoder.run(settings(**changes), killed)) == 5 - 2
    assert weights(straight.root / "models" / "bigr") == weights(killed.root / "models" / "bigr")
    curves = [(c.root / "outputs" / "curves" / "transcoder.csv").read_text() for c in (straight, killed)]
    assert curves[0] == curves[1]


def test_a_killed_tokenizer_with_a_critic_continues_and_ends_with_the_same_weights(tmp_path, monkeypatch):
    changes = {
        "tokenizer__steps": 5,
        "tokenizer__batch_size": 4,
        "tokenizer__gan_weight": 1.0,
        "tokenizer__gan_start": 2,
        "tokenizer__gan_base_channels": 4,
        "tokenizer__channel_multipliers": [1, 1],
        "tokenizer__attention_resolutions": [16],
        "shards__image_size": 32,
        "run__checkpoint_every": 2,
        "run__workers": 1,
    }
    ends = []
    for name in ("straight", "killed"):
        context = Context(tmp_path / name, "f")
        write_shards(context.root)
        run = partial(train_tokenizer.run, settings(**changes), context)
        if name == "killed":
            run_killed_after(monkeypatch, 3, run)
        assert steps_of(monkeypatch, run) == (5 - 2 if name == "killed" else 5)
        ends.append(weights(context.root / "models" / "tokenizer"))
        rows = list(csv.DictReader((context.root / "outputs" / "curves" / "tokenizer.csv").open()))
        assert math.isfinite(float(rows[-1]["train_discriminator_loss"]))
        assert 0 <= float(rows[-1]["train_gan_adaptive"]) <= 1
    assert ends[0] == ends[1]


@pytest.mark.parametrize("stage", [train_tokenizer, train_generator, train_transcoder])
def test_a_batch_in_parts_has_the_gradients_and_draws_of_the_whole_batch(tmp_path, monkeypatch, stage):
    """Gradients of the first step, and losses of the first two, whose draws would differ by percents."""
    name, gradients, found = stage.__name__.rpartition(".")[2].removeprefix("train_"), [], []
    clip = nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        nn.utils, "clip_grad_norm_", lambda ps, norm: gradients.append([p.grad.clone() for p in ps]) or clip(ps, norm)
    )
    if stage is train_tokenizer:
        write_shards(tmp_path, size=16, images=4)
    else:
        write_codes(tmp_path)
    if stage is train_transcoder:
        train_generator.run(settings(), Context(tmp_path))
    for parts in (1, 2):
        gradients.clear()
        changes = {f"{name}__{key}": value for key, value in {"steps": 2, "batch_size": 4, "validate_every": 1}.items()}
        stage.run(settings(**changes, **{f"{name}__accumulate": parts}), Context(tmp_path))
        rows = list(csv.DictReader((tmp_path / "outputs" / "curves" / f"{name}.csv").open()))
        losses = [float(row[key]) for row in rows[-2:] for key in row if key.startswith("train_")]
        found.append((torch.cat([g.flatten() for g in gradients[0]]), losses))
    (whole, losses), (parts, losses_in_parts) = found
    assert (whole - parts).abs().max() < 1e-4 * whole.abs().max()
    assert losses_in_parts == pytest.approx(losses, rel=1e-3)


def _keep(sizes, tensor):
    sizes.append(tensor.nbytes)
    return tensor


@pytest.mark.parametrize("stage", [train_tokenizer, train_generator])
def test_recomputed_activations_give_the_same_weights_from_less_memory(tmp_path, stage):
    name, bytes_kept, ends = stage.__name__.rpartition(".")[2].removeprefix("train_"), [], []
    if stage is train_tokenizer:
        write_shards(tmp_path, size=16, images=4)
    else:
        write_codes(tmp_path)
    steps = 2 if stage is train_tokenizer else 5  # the zeros of the transcoder hide the backbone for two
    changes = {f"{name}__steps": steps, f"{name}__batch_size": 4, "generator__dropout": 0.2}
    for switch in (False, True):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(partial(_keep, kept), lambda tensor: tensor):
            stage.run(settings(**changes, run__activation_checkpointing=switch), Context(tmp_path))
        bytes_kept.append(sum(kept))
        ends.append(weights(tmp_path / "models" / name))
    assert ends[0] == ends[1]
    assert bytes_kept[1] < 0.9 * bytes_kept[0]


def test_a_loss_that_is_not_finite_stops_with_its_step_and_batch(tmp_path, monkeypatch):
    write_codes(tmp_path)
    original, calls = BiGR.loss, []

    def explode(self, *batch):
        calls.append(1)
        value = original(self, *batch)
        return value * float("nan") if len(calls) == 3 else value

    monkeypatch.setattr(BiGR, "loss", explode)
    with pytest.raises(BigrError, match=r"loss is nan at step 3 \(batch 2: training codes \d+, \d+"):
        train_generator.run(settings(run__checkpoint_every=1), Context(tmp_path, "f"))
    assert not (tmp_path / "models").exists()


def test_a_gradient_that_is_not_finite_stops_though_the_loss_is(tmp_path, monkeypatch):
    write_codes(tmp_path)
    original = BiGR.loss

    def explode(self, *batch):
        return original(self, *batch) + (0 * self.backbone.mask_tok).sum().sqrt()  # 0, of slope ∞ · 0

    monkeypatch.setattr(BiGR, "loss", explode)
    with pytest.raises(BigrError, match=r"gradient_norm is nan at step 1 \(batch 0: training codes"):
        train_generator.run(settings(), Context(tmp_path))
    assert not (tmp_path / "models").exists()


def test_training_lowers_the_validation_loss(tmp_path):
    write_codes(tmp_path)
    changes = {"generator__steps": 200, "generator__validate_every": 50, "generator__learning_rate": 0.01}
    train_generator.run(settings(**changes, generator__ema_decay=0.5), Context(tmp_path))
    rows = list(csv.DictReader((tmp_path / "outputs" / "curves" / "generator.csv").open()))
    assert [row["step"] for row in rows] == ["50", "100", "150", "200"]
    losses = [float(row["val_loss"]) for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.97 * losses[0]  # the noise that no model can predict keeps wBCE from falling far


def test_the_transcoder_stage_leaves_the_backbone_and_moves_the_transcoder(tmp_path):
    write_codes(tmp_path)
    train_generator.run(settings(), Context(tmp_path))
    train_transcoder.run(settings(), Context(tmp_path))
    before, after = (load_model(tmp_path / "models" / name, BiGR).state_dict() for name in ("generator", "bigr"))
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"transcoder"}
    rows = list(csv.DictReader((tmp_path / "outputs" / "curves" / "transcoder.csv").open()))
    assert rows[0]["step"] == "0"
    assert float(rows[0]["val_loss"]) > 0


def test_no_transcoder_steps_hand_the_joint_model_on(tmp_path):
    write_codes(tmp_path)
    train_generator.run(settings(), Context(tmp_path))
    train_transcoder.run(settings(transcoder__steps=0), Context(tmp_path))
    assert weights(tmp_path / "models" / "bigr") == weights(tmp_path / "models" / "generator")


def test_a_transcoder_from_scratch_takes_its_own_shape(tmp_path):
    write_codes(tmp_path)
    train_generator.run(settings(), Context(tmp_path))
    changes = {"transcoder__start": "scratch", "transcoder__dim": 48, "transcoder__blocks": 2}
    train_transcoder.run(settings(**changes, transcoder__diffusion_steps=8, transcoder__target="x0"), Context(tmp_path))
    config = load_model(tmp_path / "models" / "bigr", BiGR).config
    assert (config.transcoder_dim, config.transcoder_blocks) == (48, 2)
    assert (config.diffusion_steps, config.target) == (8, "x0")


def test_codes_of_another_tokenizer_are_refused_by_the_transcoder(tmp_path):
    write_codes(tmp_path)
    train_generator.run(settings(), Context(tmp_path))
    write_codes(tmp_path, tokenizer="another")
    with pytest.raises(BigrError, match="tokenizer"):
        train_transcoder.run(settings(), Context(tmp_path))


def test_the_tokenizer_stage_writes_a_model_its_curves_and_a_picture(tmp_path):
    write_shards(tmp_path, size=16)
    chosen = settings(tokenizer__batch_size=4)
    train_tokenizer.run(chosen, Context(tmp_path))
    model = load_model(tmp_path / "models" / "tokenizer", Tokenizer)
    assert model.codes(torch.rand(2, 3, 16, 16)).shape == (2, chosen.grid**2, chosen.tokenizer.code_bits)
    assert (tmp_path / "outputs" / "reconstructions.png").stat().st_size > 0
    row = next(csv.DictReader((tmp_path / "outputs" / "curves" / "tokenizer.csv").open()))
    assert {"train_loss", "train_l1", "val_psnr", "val_dead_bits", "val_bit_entropy"} <= row.keys()


def test_the_lookup_free_quantizer_trains_with_its_penalties(tmp_path):
    write_shards(tmp_path, size=16)
    train_tokenizer.run(settings(tokenizer__batch_size=4, tokenizer__quantizer="lfq"), Context(tmp_path))
    row = next(csv.DictReader((tmp_path / "outputs" / "curves" / "tokenizer.csv").open()))
    assert {"train_entropy", "train_commitment"} <= row.keys()


def test_the_cosine_schedule_warms_up_and_ends_near_zero():
    section = settings(generator__steps=100, generator__warmup_steps=10, generator__learning_rate=0.1).generator
    rates = [learning_rate(section, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.01 * (i + 1) for i in range(10)])
    assert rates[55] == pytest.approx(0.05, rel=0.02)
    assert 0 < rates[99] < 1e-4


def test_weight_decay_spares_vectors_biases_and_the_transcoder():
    model = BiGR(BiGRConfig.of(settings().generator, code_bits=24, grid=4, num_classes=10))
    optimiser = adamw(model, settings().generator, train_generator.UNDECAYED)
    decay = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    named = {name: decay[id(p)] for name, p in model.named_parameters()}
    assert named["backbone.layers.0.attention.wqkv.weight"] == settings().generator.weight_decay > 0
    for name, value in named.items():
        if name.endswith(("bias", "norm.weight", "mask_tok")) or name.startswith("transcoder."):
            assert value == 0, name


def test_the_average_follows_its_decay():
    module = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(module.weight)
    average = EMA(module, 0.9)
    nn.init.ones_(module.weight)
    for _ in range(3):
        average.update(module)
    assert average.module.weight.item() == pytest.approx(1 - 0.9**3)


class Recorder(Report):
    """Keeps the points of curves, by name and step, and what is told without a step."""

    def __init__(self):
        self.points, self.results = [], {}

    def metrics(self, values, step=None):
        if step is None:
            self.results |= values
        self.points += [(name, step, value) for name, value in values.items() if step is not None]


@pytest.mark.parametrize("stage", [train_generator, train_transcoder])
def test_a_name_stands_for_one_thing_in_the_records_of_whole_and_resumed_runs(tmp_path, monkeypatch, stage):
    """`loss` is that of one step, `train_loss` the mean since the last validation; no step has two values of either."""
    name = stage.__name__.rpartition(".")[2].removeprefix("train_")
    changes = {f"{name}__steps": 45, f"{name}__validate_every": 20, "run__checkpoint_every": 30}
    write_codes(tmp_path / "whole")
    train_generator.run(settings(), Context(tmp_path / "whole", "f"))
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    losses, add = {}, loop.Losses.add
    monkeypatch.setattr(
        loop.Losses, "add", lambda self, found: losses.setdefault(len(losses) + 1, found) and add(self, found)
    )
    whole, resumed = (Context(tmp_path / place, "f", Recorder()) for place in ("whole", "resumed"))
    stage.run(settings(**changes), whole)
    run_killed_after(monkeypatch, 33, lambda: stage.run(settings(**changes), Context(tmp_path / "resumed", "f")))
    assert steps_of(monkeypatch, lambda: stage.run(settings(**changes), resumed)) == 15

    for context in (whole, resumed):
        points = {(name, step): value for name, step, value in context.report.points}
        assert len(points) == len(context.report.points), "a point of a curve was told twice"
        assert not {"loss", "train_loss", "val_loss"} & context.report.results.keys()
        rows = list(csv.DictReader((context.root / "outputs" / "curves" / f"{name}.csv").open()))
        curve = {(key, int(row["step"])): float(value) for row in rows for key, value in row.items() if value != "nan"}
        windows = {key: value for key, value in points.items() if key[0].startswith(("train_", "val_"))}
        assert windows == pytest.approx({key: value for key, value in curve.items() if key[0] != "step"}, rel=1e-5)
        for step in (20, 40):
            if ("loss", step) in points:
                assert points["loss", step] == losses[step]["loss"].item()
        assert points["train_loss", 20] == pytest.approx(sum(losses[step]["loss"].item() for step in range(1, 21)) / 20)
    assert {step for name, step, _ in whole.report.points if name == "loss"} == {20, 40}


def test_losses_are_averaged_over_their_window():
    losses = loop.Losses([], 0, lambda step: "")
    for value in (1.0, 2.0, 6.0):
        losses.add({"loss": torch.tensor(value)})
    assert losses.read() == {"loss": 6.0}
    assert losses.mean() == {"train_loss": 3.0}


def run_two_processes(text, folder):
    """Run a program, which gets the folder, in two processes of one group, and end those that hang."""
    assert run_processes(text, folder, 2) == [0, 0]


def run_processes(text, folder, count):
    """Run a program in so many processes of one group, and end those that hang; the exit status of each."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    group = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    environment = os.environ | group | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= {preloaded.VARIABLE: preloaded.start()}
    processes = [
        subprocess.Popen(
            preloaded.python(text, str(folder)), cwd=ROOT, env=environment | {"RANK": rank, "LOCAL_RANK": rank}
        )
        for rank in map(str, range(count))
    ]
    try:
        return [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_two_processes_train_one_model_on_their_halves_of_each_batch_in_two_parts_each(tmp_path):
    dataset = write_codes(tmp_path)
    run_two_processes(_DISTRIBUTED, tmp_path)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]

    batch_size = settings().generator.batch_size
    stream = MaskedBatches(
        dataset,
        batch_size,
        stage="generator",
        seed=settings().seed,
        label_dropout=0.0,
        input_flip=0.0,
    )
    for step in range(2):  # within the first epoch: no image comes twice
        halves = [rank["images"][step] for rank in ranks]
        assert not set(halves[0]) & set(halves[1])
        assert halves[0] + halves[1] == stream.indices(step).tolist()
    assert ranks[0]["masked"] == ranks[1]["masked"]
    assert ranks[0]["masks"] != ranks[1]["masks"]
    for rank in ranks:
        assert rank["off_the_mean"] < 1e-5 < 1e-2 < rank["off_its_own"]
        assert set(rank["parts"]) == {batch_size // 4}
    assert ranks[0]["weights"] == ranks[1]["weights"]
    assert all(map(math.isfinite, ranks[0]["weights"]))
    assert (tmp_path / "models" / "generator" / "model.safetensors").exists()


_DISTRIBUTED = """
# Trains in this process, one of two, and writes what it saw: its images, its masks, and how far the gradients of the
# first step, computed in two parts, are from those of its whole half and from the mean of all halves (largest
# difference, relative to the largest gradient).
import json, pathlib, sys
import torch
import torch.distributed as dist
from torch import nn
from bigr.runtime.context import Context
from bigr.data.codes import CodesDataset
from bigr.models.masked.generator import BiGR
from bigr.stages import train_generator as generator
from bigr.runtime import distributed
from bigr.training import loop
from bigr.training.masked_batches import MaskedBatches
from tests.worlds import settings

root, saw, read, call = pathlib.Path(sys.argv[1]), {"images": [], "masked": [], "masks": [], "parts": []}, [], []
halves = []
codes_of, batch_of, loss_of, clip = CodesDataset.batch, MaskedBatches.batch, BiGR.loss, nn.utils.clip_grad_norm_

def remember_images(self, indices, *rest):
    read.append(indices.tolist())
    return codes_of(self, indices, *rest)

def remember_batch(self, step):
    read.clear()
    batch = batch_of(self, step)
    saw["images"] += read
    saw["masked"].append(batch.masked.shape[1])
    saw["masks"].append(batch.masked.tolist())
    halves.append(batch)
    return batch

def remember_call(self, codes, labels, masked, noise, *rest):
    if not call:
        call.extend([self, noise.get_state(), rest[0]])
    if rest:
        saw["parts"].append(len(codes))
    return loss_of(self, codes, labels, masked, noise, *rest)

def compare(parameters, *rest):
    if "off_the_mean" not in saw:
        model, state, draws = call
        noise = torch.Generator().set_state(state)
        parameters = list(model.parameters())
        own = torch.autograd.grad(loss_of(model, *halves[0], noise, draws, distributed.part_of_batch(0, 1)), parameters)
        own, used = (torch.cat([g.flatten() for g in gradients]) for gradients in (own, [p.grad for p in parameters]))
        mean = own.clone()
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
        for name, expected in (("off_the_mean", mean), ("off_its_own", own)):
            saw[name] = ((used - expected).abs().max() / expected.abs().max()).item()
    return clip(parameters, *rest)

CodesDataset.batch, MaskedBatches.batch, BiGR.loss = remember_images, remember_batch, remember_call
nn.utils.clip_grad_norm_ = compare
with distributed.process_group(torch.device("cpu")):
    generator.run(settings(run__device="cpu", run__precision="float32", generator__accumulate=2), Context(root, "f"))
    saw["weights"] = [p.double().sum().item() for p in call[0].parameters()]
    (root / f"rank{distributed.rank()}.json").write_text(json.dumps(saw))
"""


@pytest.mark.slow
def test_processes_without_a_shared_folder_resume_as_the_first_one_says(tmp_path):
    """Each of two processes has a folder of its own; only the first one's has the checkpoint. The ends are those of
    two processes that were not interrupted: weights and average of both, to the byte."""
    for place in ("whole", "absent", "broken"):
        for rank in ("0", "1"):
            write_codes(tmp_path / place / rank)
            write_shards(tmp_path / place / rank)
    run_two_processes(_RESUMED_APART, tmp_path)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    for stage, steps, done in (("generator", 7, 3), ("tokenizer", 4, 2)):
        whole = weights(tmp_path / "whole" / "0" / "models" / stage)
        for place in ("absent", "broken"):
            assert weights(tmp_path / place / "0" / "models" / stage) == whole
            for rank in ranks:
                assert rank[f"{place} {stage}"]["steps"] == steps - done
                assert rank[f"{place} {stage}"]["average"] == ranks[0][f"whole {stage}"]["average"]


def test_processes_of_other_inputs_do_not_train_together(tmp_path):
    write_codes(tmp_path)
    run_two_processes(_OTHER_INPUTS, tmp_path)
    for rank in (0, 1):
        assert re.match(r"process 1 .* code, settings or inputs", (tmp_path / f"rank{rank}.txt").read_text())


_RESUMED_APART = """
# One of two processes: trains once without and twice with an interruption, in folders of its own.
import hashlib, json, pathlib, sys
import torch
from bigr.runtime.context import Context
from bigr.stages import train_generator as generator
from bigr.stages import train_tokenizer as tokenizer
from bigr.runtime import distributed
from bigr.training.optimiser import EMA
from tests.worlds import settings

class Killed(Exception):
    pass

update, seen = EMA.update, {}

def watched(self, source):
    update(self, source)
    seen["steps"] += 1
    digest = hashlib.sha256()
    for tensor in self.module.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    seen["average"] = digest.hexdigest()
    if seen["steps"] == seen["last"]:
        raise Killed

EMA.update = watched
own = {"run__device": "cpu", "run__precision": "float32", "run__checkpoint_every": 1, "run__workers": 1}
adversarial = {
    "tokenizer__steps": 4, "tokenizer__batch_size": 4, "tokenizer__channel_multipliers": [1, 1],
    "tokenizer__gan_weight": 1.0, "tokenizer__gan_start": 1, "tokenizer__gan_base_channels": 4,
    "tokenizer__attention_resolutions": [16], "shards__image_size": 32,
}
stages = [(generator, 3, settings(**own, generator__steps=7)), (tokenizer, 2, settings(**own, **adversarial))]
with distributed.process_group(torch.device("cpu")):
    root, rank, found = pathlib.Path(sys.argv[1]), distributed.rank(), {}
    for place in ("whole", "absent", "broken"):
        for stage, last, chosen in stages:
            name = stage.__name__.rpartition(".")[2].removeprefix("train_")
            context = Context(root / place / str(rank), "f")
            if place != "whole":
                seen.update(steps=0, last=last + 1)  # killed after the step that follows the checkpoint's
                try:
                    stage.run(chosen, context)
                except Killed:
                    pass
            if place == "broken" and rank == 1:
                file = context.root / "checkpoints" / name / "checkpoint.safetensors"
                file.parent.mkdir(parents=True)
                file.write_bytes(b"no checkpoint")
            seen.update(steps=0, last=None)
            stage.run(chosen, context)
            found[f"{place} {name}"] = {"steps": seen["steps"], "average": seen["average"]}
    (root / f"rank{rank}.json").write_text(json.dumps(found))
"""

_OTHER_INPUTS = """
import pathlib, sys
import torch
from bigr.runtime.context import Context
from bigr.runtime.errors import BigrError
from bigr.stages import train_generator as generator
from bigr.runtime import distributed
from tests.worlds import settings

with distributed.process_group(torch.device("cpu")):
    root, rank = pathlib.Path(sys.argv[1]), distributed.rank()
    try:
        generator.run(settings(run__device="cpu"), Context(root, f"inputs of process {rank}"))
    except BigrError as error:
        (root / f"rank{rank}.txt").write_text(str(error))
"""
