"""Training over processes: the same curves and weights in 1, 2 and 4, with whole and with sharded parameters."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bigr.runtime.context import Context
from bigr.stages import train_generator, train_tokenizer, train_transcoder
from tests.groups import run_processes
from tests.worlds import settings, write_codes, write_shards

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STAGES = {"tokenizer": train_tokenizer, "generator": train_generator, "transcoder": train_transcoder}
WRITTEN = {"tokenizer": "tokenizer", "generator": "generator", "transcoder": "bigr"}

ON_CPU = {"run__device": "cpu", "run__precision": "float32", "run__checkpoint_every": 2, "run__workers": 1}
GENERATOR = ON_CPU | {
    "generator__steps": 8,
    "generator__validate_every": 4,
    "generator__batch_size": 8,
    "generator__input_flip": 0.1,
    "generator__learning_rate": 0.01,
}
TRANSCODER = GENERATOR | {"transcoder__steps": 4, "transcoder__validate_every": 2, "transcoder__batch_size": 8}
TOKENIZER = ON_CPU | {
    "tokenizer__steps": 3,
    "tokenizer__batch_size": 4,
    "tokenizer__channel_multipliers": [1, 1],
    "tokenizer__attention_resolutions": [16],
    "tokenizer__gan_weight": 1.0,
    "tokenizer__gan_start": 1,
    "tokenizer__gan_base_channels": 4,
    "tokenizer__horizontal_flip": True,
    "shards__image_size": 32,
    "dataset__name": "none",
    "shards__source": "pictures",
}

TRAIN = """
# One of several processes: trains each stage of a list, until it is done or has taken `last` steps.
import json, pathlib, sys
import torch
import torch.distributed as dist
from bigr.runtime import distributed
from bigr.runtime.context import Context
from bigr.training.optimiser import EMA
from tests.test_many_processes import STAGES
from tests.worlds import settings

class Killed(Exception):
    pass

update, left = EMA.update, [0]

def counting(self, source):
    update(self, source)
    left[0] -= 1
    if left[0] == 0:
        raise Killed

EMA.update = counting
with distributed.process_group(torch.device("cpu")):
    for folder, stage, changes, last in json.loads(sys.argv[1]):
        left[0] = last or -1
        try:
            STAGES[stage].run(settings(**changes), Context(pathlib.Path(folder), "f"))
        except Killed:
            pass
        dist.barrier()
"""


def run(count: int, *jobs: tuple[Path, str, dict, int]) -> None:
    run_processes(count, TRAIN, json.dumps([(str(folder), *rest) for folder, *rest in jobs]))


def curve(root: Path, stage: str) -> list[dict[str, float]]:
    with (root / "outputs" / "curves" / f"{stage}.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def assert_same(root: Path, other: Path, stage: str, *, rounding: float) -> None:
    """Curves agree to `rounding`, relative to each value, and weights in most places to as much of the largest."""
    for row, expected in zip(curve(root, stage), curve(other, stage), strict=True):
        assert row == pytest.approx(expected, rel=rounding, abs=rounding, nan_ok=True)
    ours, theirs = (load_file(folder / "models" / WRITTEN[stage] / "model.safetensors") for folder in (root, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, rtol=0, atol=rounding * 10), name


def test_a_generator_does_not_depend_on_the_number_of_processes_nor_on_shards(tmp_path: Path) -> None:
    one = tmp_path / "one"
    write_codes(one, drawn=2)
    fresh = {name: tmp_path / name for name in ("ddp-2", "fsdp-2", "ddp-4", "fsdp-4", "recomputed")}
    for folder in fresh.values():
        shutil.copytree(one, folder)
    train_generator.run(settings(**GENERATOR), Context(one, "f"))
    for count in (2, 4):
        jobs = []
        for mode in ("ddp", "fsdp"):
            jobs.append((fresh[f"{mode}-{count}"], "generator", GENERATOR | {"run__parallel": mode}, 0))
        if count == 2:
            parts = {"run__parallel": "fsdp", "run__activation_checkpointing": True, "generator__accumulate": 2}
            jobs.append((fresh["recomputed"], "generator", GENERATOR | parts, 0))
        run(count, *jobs)
    for folder in fresh.values():
        assert_same(folder, one, "generator", rounding=1e-4)


def test_kills_and_other_numbers_of_processes_leave_the_curve_of_one_undisturbed_process(tmp_path: Path) -> None:
    """4 sharded → 2 → 4 → 2 sharded processes → 1, each killed one step after a checkpoint."""
    one, killed = tmp_path / "one", tmp_path / "killed"
    changes = GENERATOR | {"generator__steps": 12, "generator__validate_every": 3}
    for folder in (one, killed):
        write_codes(folder)
    train_generator.run(settings(**changes), Context(one, "f"))
    for count, mode, last in ((4, "fsdp", 3), (2, "ddp", 3), (4, "ddp", 3), (2, "fsdp", 3)):
        run(count, (killed, "generator", changes | {"run__parallel": mode}, last))
        assert not (killed / "models").exists()
    train_generator.run(settings(**changes), Context(killed, "f"))
    assert [int(row["step"]) for row in curve(killed, "generator")] == [3, 6, 9, 12]
    assert_same(killed, one, "generator", rounding=1e-4)
    assert not list((killed / "checkpoints" / "generator").iterdir())


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_as_many_processes_end_with_the_same_bytes_after_a_kill(tmp_path: Path, mode: str) -> None:
    changes = GENERATOR | {"run__parallel": mode, "generator__dropout": 0.2}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        write_codes(folder)
    run(2, (whole, "generator", changes, 0), (killed, "generator", changes, 5), (killed, "generator", changes, 0))
    ends = [(folder / "models" / "generator" / "model.safetensors").read_bytes() for folder in (whole, killed)]
    assert ends[0] == ends[1]
    assert curve(whole, "generator") == curve(killed, "generator")


@pytest.mark.parametrize("quantizer", ["bernoulli", "lfq"])
def test_a_tokenizer_with_a_discriminator_does_not_depend_on_the_number_of_processes(
    tmp_path: Path, quantizer: str
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    changes = TOKENIZER | {"tokenizer__quantizer": quantizer}
    write_shards(one)
    shutil.copytree(one, two)
    train_tokenizer.run(settings(**changes), Context(one, "f"))
    run(2, (two, "tokenizer", changes | {"run__parallel": "fsdp"}, 0))
    assert_same(two, one, "tokenizer", rounding=2e-3)


def test_a_sharded_transcoder_is_that_of_one_process(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write_codes(one)
    train_generator.run(settings(**GENERATOR), Context(one, "f"))
    shutil.copytree(one, two)
    train_transcoder.run(settings(**TRANSCODER), Context(one, "f"))
    run(2, (two, "transcoder", TRANSCODER | {"run__parallel": "fsdp"}, 0))
    assert_same(two, one, "transcoder", rounding=1e-4)
