"""Checkpoints on disk: two are kept, a damaged one is passed over, nothing of them is executed, a signal writes one."""

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from bigr.runtime.context import Context
from bigr.runtime.errors import EXIT_STOPPED
from bigr.runtime.files import write_tensors
from bigr.runtime.stop_requests import StoppedOnRequest
from bigr.stages import train_generator
from bigr.training import loop
from bigr.training.checkpoint_files import StoredCheckpoint, UnreadableCheckpoint, metadata_of, part_name
from bigr.training.checkpoints import Checkpoint
from tests.worlds import settings, write_codes

WIDTH = 1000


def saved(folder: Path, *steps: int) -> Checkpoint:
    """A checkpoint of each of the steps, whose weights are all that number."""
    checkpoint = Checkpoint(folder, "f")
    for step in steps:
        module = filled(step)
        checkpoint.save({"model": module}, {}, {"step": step})
        checkpoint.wait()
    return checkpoint


def filled(value: float) -> nn.Module:
    module = nn.Linear(WIDTH, 1, bias=False)
    nn.init.constant_(module.weight, value)
    return module


def resumed(folder: Path, fingerprint: str = "f") -> int | None:
    """The step that is resumed, which is that of the weights."""
    module = filled(-1)
    progress = Checkpoint(folder, fingerprint).resume({"model": module}, {})
    assert module.weight.unique().tolist() == [progress["step"] if progress else -1]
    return progress["step"] if progress else None


def damage(path: Path) -> None:
    """Change one bit in the last tensor of a file, which keeps its length."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    saved(tmp_path, 2, 4, 6)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.safetensors", "before.safetensors"}
    assert resumed(tmp_path) == 6
    (tmp_path / "checkpoint.safetensors").unlink()  # as where a kill came between two renames
    assert resumed(tmp_path) == 4


@pytest.mark.parametrize("broken", [damage, cut, lambda path: path.write_bytes(b"no checkpoint")])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning_and_does_not_replace_the_whole_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken
) -> None:
    saved(tmp_path, 2, 4)
    broken(tmp_path / "checkpoint.safetensors")
    assert resumed(tmp_path) == 2
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "checkpoint.safetensors is passed over" in line

    module, checkpoint = filled(-1), Checkpoint(tmp_path, "f")
    checkpoint.resume({"model": module}, {})
    checkpoint.save({"model": filled(3)}, {}, {"step": 3})
    checkpoint.wait()
    damage(tmp_path / "checkpoint.safetensors")
    assert resumed(tmp_path) == 2


def test_nothing_is_resumed_where_both_are_damaged_or_of_other_settings(tmp_path: Path) -> None:
    saved(tmp_path, 2, 4)
    assert resumed(tmp_path, "g") is None
    for name in ("checkpoint", "before"):
        damage(tmp_path / f"{name}.safetensors")
    assert resumed(tmp_path) is None


def test_a_checkpoint_holds_tensors_and_text_alone(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    with safe_open(tmp_path / "checkpoint.safetensors", "pt") as file:
        assert set(file.metadata()) == {"index", "crc32"}
        assert list(file.keys()) == ["module/model/weight"]


def write_parts(folder: Path, rows: list[int]) -> list[torch.Tensor]:
    """A checkpoint of step 0 whose parts hold so many rows of one tensor; the rows."""
    parts = [torch.rand(count, 3) for count in rows]
    saved(folder, 0)
    checkpoint = StoredCheckpoint(folder / "checkpoint.safetensors")
    for number, tensor in enumerate(parts):
        index = None if number else type(checkpoint.index)("f", 0, len(rows), {"step": 0})
        name = part_name(0, number, len(rows)) if number else "checkpoint.safetensors"
        tensors = {"weight": tensor} | ({} if number else {"step": torch.tensor(7.0)})
        write_tensors(folder / name, tensors, metadata_of(tensors, index))
    return parts


def test_rows_are_read_from_the_files_that_hold_them(tmp_path: Path) -> None:
    whole = torch.cat(write_parts(tmp_path, [2, 2, 1, 0]))
    stored = StoredCheckpoint(tmp_path / "checkpoint.safetensors")
    stored.open(0, 1)
    assert stored.shape("weight") == (5, 3) and stored.shape("step") == ()
    assert stored.read("step") == 7
    for start in range(6):
        for stop in range(start, 6):
            assert torch.equal(stored.read("weight", (start, stop)), whole[start:stop])


def test_each_process_checks_its_share_of_the_files(tmp_path: Path) -> None:
    write_parts(tmp_path, [2, 2])
    damage(tmp_path / part_name(0, 1, 2))
    StoredCheckpoint(tmp_path / "checkpoint.safetensors").open(0, 2)
    with pytest.raises(UnreadableCheckpoint, match="step-0-part-1-of-2"):
        StoredCheckpoint(tmp_path / "checkpoint.safetensors").open(1, 2)
    (tmp_path / part_name(0, 1, 2)).unlink()
    with pytest.raises(UnreadableCheckpoint, match="step-0-part-1-of-2"):
        StoredCheckpoint(tmp_path / "checkpoint.safetensors").open(0, 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("last", [3, 7], ids=["in the middle", "in the last step"])
def test_a_signal_writes_a_checkpoint_after_the_step_and_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, last: int
) -> None:
    changes = {"generator__steps": 7, "generator__dropout": 0.2, "run__checkpoint_every": 100}
    for name in ("whole", "stopped"):
        write_codes(tmp_path / name)
    whole, stopped = (Context(tmp_path / name, "f") for name in ("whole", "stopped"))
    train_generator.run(settings(**changes), whole)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    add, steps = loop.Losses.add, []

    def counted(self, losses):
        add(self, losses)
        steps.append(1)
        if len(steps) == last:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(loop.Losses, "add", counted)
    with pytest.raises(StoppedOnRequest) as end:
        train_generator.run(settings(**changes), stopped)
    assert end.value.code == EXIT_STOPPED == 75
    assert len(steps) == last
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == handlers
    train_generator.run(settings(**changes), stopped)
    assert len(steps) == 7
    for path in ("models/generator/model.safetensors", "outputs/curves/generator.csv"):
        assert (whole.root / path).read_bytes() == (stopped.root / path).read_bytes()
    assert not list((stopped.root / "checkpoints" / "generator").iterdir())
