"""Damaged files: each is noticed and made again, or refused with one line, and then the results are the same."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import scratch
from tests.faults.stages import STAGES, results

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1800)]

DAMAGED = {
    "data/shards/train-000000.tar": "shards",
    "data/codes/train-000000.safetensors": "codes",
    "models/tokenizer/model.safetensors": "tokenizer",
    "models/generator/model.safetensors": "generator",
    "models/bigr/config.json": "transcoder",
    "outputs/samples.npz": "samples",
    "outputs/metrics.json": "evaluation",
}
"""File → the stage that writes it."""


def damage(path: Path) -> None:
    """Change bytes in the middle of a file, whose size stays."""
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 16] = bytes(255 - value for value in data[middle : middle + 16])
    path.unlink()  # it may be a link into DVC's cache
    path.write_bytes(data)


def test_a_damaged_output_is_noticed_and_made_again(
    trained: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    project = scratch.copy(trained, tmp_path / "damaged")
    expected = {stage: results(project, stage) for stage in STAGES}
    for file in DAMAGED:
        damage(project / file)
        said = scratch.run(project, "dvc", "repro")
        assert DAMAGED[file] in said, f"nobody noticed {file}:\n{said}"
        assert {stage: results(project, stage) for stage in STAGES} == expected, file
        assert scratch.run(project, "dvc", "status").strip() == "Data and pipelines are up to date."
    record_property("measured", f"damaged outputs: {len(DAMAGED)} files, 0 lost")


def test_a_damaged_entry_of_the_cache_is_never_used(trained: Path, tmp_path: Path) -> None:
    project = scratch.copy(trained, tmp_path / "damaged")
    expected = {stage: results(project, stage) for stage in STAGES}
    model = project / "models" / "generator" / "model.safetensors"
    data = model.read_bytes()
    entries = [
        path
        for path in (project / ".dvc" / "cache" / "files").rglob("*")
        if path.is_file() and path.read_bytes() == data
    ]
    assert len(entries) == 1
    damage(entries[0])
    model.unlink()
    scratch.run(project, "dvc", "repro")
    assert model.read_bytes() == data
    assert {stage: results(project, stage) for stage in STAGES} == expected


def test_a_damaged_checkpoint_is_left_alone_and_the_training_starts_again(trained: Path, tmp_path: Path) -> None:
    project = scratch.copy(trained, tmp_path / "damaged")
    expected = results(project, "generator")
    checkpoint = project / "checkpoints" / "generator" / "checkpoint.safetensors"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_bytes((project / "models" / "generator" / "model.safetensors").read_bytes()[:1000])
    done = subprocess.run(
        ("dvc", "repro", "--single-item", "--force", "--no-run-cache", "generator"),
        cwd=project,
        env=scratch.environment(project),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "cannot be read" in done.stdout + done.stderr
    assert results(project, "generator") == expected
