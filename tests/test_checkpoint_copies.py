"""Copies of checkpoints in a bucket: another machine continues from them, and a bucket that fails stops no training."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from bigr.pipeline.check import check_files
from bigr.runtime import remote_files
from bigr.runtime.context import Context
from bigr.runtime.errors import BigrError
from bigr.stages import train_generator
from bigr.training.checkpoint_copies import CheckpointCopies
from bigr.training.checkpoint_files import StoredCheckpoint
from bigr.training.checkpoints import Checkpoint
from tests import s3_server
from tests.groups import run_processes
from tests.scratch import ROOT
from tests.test_checkpoints import damage, filled
from tests.test_many_processes import GENERATOR, TRAIN, assert_same
from tests.worlds import settings, write_codes

ON_MACHINES = "import os\nos.environ['LOCAL_RANK'] = '0'\n" + TRAIN.replace(
    "pathlib.Path(folder)", "pathlib.Path(f'{folder}-{distributed.rank()}')"
)
"""As `TRAIN`, each process on a machine of its own, with a folder whose name ends with its number."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
pytest.importorskip("s3fs")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with s3_server.serving(tmp_path_factory.mktemp("s3")):
        yield


@pytest.fixture
def url(server: None, request: pytest.FixtureRequest) -> str:
    """A new bucket, and a prefix in it."""
    bucket = request.node.name.replace("_", "-").replace("[", "-").rstrip("]")[-60:].strip("-")
    fsspec.filesystem("s3").mkdir(bucket)
    return f"s3://{bucket}/runs"


def checkpoint(folder: Path, url: str, fingerprint: str = "f") -> Checkpoint:
    return Checkpoint(folder, fingerprint, copies=CheckpointCopies(url, "generator", fingerprint))


def save(folder: Path, url: str, *steps: int) -> Checkpoint:
    own = checkpoint(folder, url)
    own.resume({"model": filled(-1)}, {})
    for step in steps:
        own.save({"model": filled(step)}, {}, {"step": step})
        own.wait()
    return own


def resumed(folder: Path, url: str, fingerprint: str = "f") -> int | None:
    """The step that is resumed, which is that of the weights."""
    module = filled(-1)
    progress = checkpoint(folder, url, fingerprint).resume({"model": module}, {})
    assert module.weight.unique().tolist() == [progress["step"] if progress else -1]
    return progress["step"] if progress else None


def copies(url: str) -> list[str]:
    system = fsspec.filesystem("s3")
    system.invalidate_cache()
    return sorted(name.rpartition("/")[2] for name in system.find(url))


def test_another_machine_continues_from_the_newest_copy(tmp_path: Path, url: str) -> None:
    own = save(tmp_path / "one", url, 1, 2, 3)
    assert copies(url) == ["index.json", "step-2-part-0-of-1.safetensors", "step-3-part-0-of-1.safetensors"]
    assert resumed(tmp_path / "two", url) == 3
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"checkpoint.safetensors"}
    assert resumed(tmp_path / "three", url, "of other settings") is None
    own.remove()
    assert copies(url) == [] or copies(url) == ["index.json"]  # of the other settings
    assert resumed(tmp_path / "four", url) is None


def test_the_newer_one_counts_of_folder_and_bucket(tmp_path: Path, url: str) -> None:
    save(tmp_path / "one", url, 1)
    save(tmp_path / "two", url, 2)  # fetched 1
    assert resumed(tmp_path / "one", url) == 2
    Checkpoint(tmp_path / "one", "f").save({"model": filled(5)}, {}, {"step": 5})  # without a copy
    assert resumed(tmp_path / "one", url) == 5
    assert resumed(tmp_path / "two", url) == 2


def test_a_damaged_checkpoint_is_replaced_by_its_copy_and_a_damaged_copy_by_the_one_before(
    tmp_path: Path, url: str
) -> None:
    save(tmp_path / "one", url, 1, 2)
    for name in ("checkpoint", "before"):
        damage(tmp_path / "one" / f"{name}.safetensors")
    assert resumed(tmp_path / "one", url) == 2

    system, broken = fsspec.filesystem("s3"), tmp_path / "broken"
    (newest,) = (name for name in system.find(url) if "step-2" in name)
    system.get_file(newest, str(broken))
    damage(broken)
    system.put_file(str(broken), newest)
    assert resumed(tmp_path / "two", url) == 1


def test_a_copy_that_is_gone_is_passed_over_for_the_one_before(
    tmp_path: Path, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As where the bucket lets old files expire, but not the index."""
    save(tmp_path / "one", url, 1, 2)
    system = fsspec.filesystem("s3")
    for step, left in ((2, 1), (1, None)):
        (gone,) = (name for name in system.find(url) if f"step-{step}" in name)
        system.rm_file(gone)
        system.invalidate_cache()
        assert resumed(tmp_path / f"after-{step}", url) == left
    assert "the copy of step 2 is passed over" in caplog.text


def test_machines_with_checkpoints_of_different_steps_take_the_copy_that_both_can_have(
    tmp_path: Path, url: str
) -> None:
    """The first has trained on alone, and was killed before its checkpoint had a copy."""
    changes = GENERATOR | {"generator__steps": 8, "run__parallel": "fsdp"}
    roots = [tmp_path / f"machine-{number}" for number in range(2)]
    for folder in (tmp_path / "one", *roots):
        write_codes(folder)
    train_generator.run(settings(**changes), Context(tmp_path / "one", "f"))
    changes["run__checkpoints"] = url
    job = [str(tmp_path / "machine"), "generator", changes]
    run_processes(2, ON_MACHINES, json.dumps([[*job, 3]]))  # step 2, and its copy
    run_processes(1, ON_MACHINES, json.dumps([[*job, 1]]))  # both files of step 2 are on the first machine now
    without_copies = changes | {"run__checkpoints": "checkpoints", "run__parallel": "ddp"}
    run_processes(1, ON_MACHINES, json.dumps([[str(tmp_path / "machine"), "generator", without_copies, 3]]))
    ahead = StoredCheckpoint(roots[0] / "checkpoints" / "generator" / "checkpoint.safetensors")
    assert ahead.index.step == 4 and ahead.index.parts == 1
    run_processes(2, ON_MACHINES, json.dumps([[*job, 0]]))
    assert_same(roots[0], tmp_path / "one", "generator", rounding=1e-4)


def test_projects_that_name_one_absolute_folder_keep_apart(tmp_path: Path) -> None:
    changes = GENERATOR | {"generator__steps": 4, "run__checkpoints": str(tmp_path / "common")}
    for name in ("one", "two"):
        write_codes(tmp_path / name)
    words = json.dumps([[str(tmp_path / "one"), "generator", changes, 3]])
    run_processes(1, TRAIN.replace('"f"', '"one"'), words)
    (kept,) = (tmp_path / "common" / "generator").glob("*/checkpoint.safetensors")
    train_generator.run(settings(**changes), Context(tmp_path / "two", "two"))
    assert kept.exists() and list((tmp_path / "common" / "generator").iterdir()) == [kept.parent]


def test_a_bucket_that_fails_is_a_warning_and_the_next_checkpoint_has_a_copy(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own = save(tmp_path / "one", url, 1)
    monkeypatch.setattr(remote_files, "_FIRST_WAIT_S", 0.01)

    def fails(*of: object) -> None:
        raise OSError("503 Slow Down")

    with monkeypatch.context() as failing:
        failing.setattr(own.copies._folder.files[0], "put_file", fails)
        own.save({"model": filled(2)}, {}, {"step": 2})
        own.wait()
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1 and "step 2 has no copy" in warnings[0] and "503 Slow Down" in warnings[0]
    assert url in warnings[0] and "training goes on" in warnings[0]
    assert resumed(tmp_path / "elsewhere", url) == 1
    own.save({"model": filled(3)}, {}, {"step": 3})
    own.wait()
    assert resumed(tmp_path / "one", url) == 3
    assert "step-1-part-0-of-1.safetensors" in copies(url)


def test_a_bucket_that_is_not_there_ends_a_training_before_its_first_step(tmp_path: Path, server: None) -> None:
    with pytest.raises(BigrError, match=r"s3://absent-bucket/runs/generator/\w+/index.json .*(exist|written)"):
        resumed(tmp_path, "s3://absent-bucket/runs")


def test_sharded_processes_on_machines_of_their_own_continue_in_another_number(tmp_path: Path, url: str) -> None:
    one, killed = tmp_path / "one", tmp_path / "killed"
    changes = GENERATOR | {"generator__steps": 6, "generator__validate_every": 3, "run__parallel": "fsdp"}
    for folder in (one, *(Path(f"{killed}-{number}") for number in range(4))):
        write_codes(folder)
    train_generator.run(settings(**changes), Context(one, "f"))
    changes["run__checkpoints"] = url
    for count, last, step in ((4, 3, 2), (2, 3, 4)):
        run_processes(count, ON_MACHINES, json.dumps([(str(killed), "generator", changes, last)]))
        assert f"step-{step}-part-{count - 1}-of-{count}.safetensors" in copies(url)
    assert not (Path(f"{killed}-0") / "checkpoints" / "generator" / "step-4-part-1-of-2.safetensors").exists()
    train_generator.run(settings(**changes), Context(Path(f"{killed}-3"), "f"))
    assert_same(Path(f"{killed}-3"), one, "generator", rounding=1e-4)
    assert copies(url) == []


@pytest.mark.parametrize(
    "where, named", [("https://example.org/x", "nothing can be written"), ("s4://bucket/x", "run.checkpoints: s4://")]
)
def test_a_wrong_address_is_refused_before_anything_runs(where: str, named: str) -> None:
    with pytest.raises(BigrError, match=named):
        check_files(ROOT, settings(run__checkpoints=where), ["generator"])
