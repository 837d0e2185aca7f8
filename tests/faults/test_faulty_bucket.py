"""A bucket that fails in mid-run: what reads or writes it ends with one line, and a second run succeeds."""

import io
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import s3_server, scratch, tiny
from tests.faults import faulty_bucket
from tests.faults.faulty_bucket import FAULTS, Faults
from tests.faults.stages import results
from tests.test_storage import clone, outputs

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1800)]
boto3 = pytest.importorskip("boto3")
pytest.importorskip("s3fs")
pytest.importorskip("dvc_s3")
pytest.importorskip("moto.server")

BUCKET = "bucket"
PATIENCE_S = 300
"""A command that takes longer has not noticed that the bucket is silent."""


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    """What the bucket's server does wrong; the environment names it."""
    with (
        s3_server.serving(tmp_path_factory.mktemp("moto")) as own,
        faulty_bucket.serving(own["AWS_ENDPOINT_URL"]) as it,
    ):
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", it.url)
            yield it


def fails(project: Path, *words: str) -> tuple[str, float]:
    """The last line of a command that must fail, and the seconds that it took."""
    start = time.monotonic()
    done = subprocess.run(
        words, cwd=project, env=scratch.environment(project), capture_output=True, text=True, timeout=2 * PATIENCE_S
    )
    took = time.monotonic() - start
    assert done.returncode, done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    assert took < PATIENCE_S
    return done.stderr, took


def put(project: Path, kind: str) -> str:
    """The project's images in the bucket, one by one or in four tar files: the source's address."""
    client = boto3.client("s3")
    images = sorted((project / "pictures").rglob("*.png"))
    if kind == "images":
        for image in images:
            client.put_object(Bucket=BUCKET, Key=image.relative_to(project).as_posix(), Body=image.read_bytes())
        return f"s3://{BUCKET}/pictures"
    for number in range(4):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for index, image in enumerate(images[number::4]):
                for suffix, content in (("png", image.read_bytes()), ("cls", str(index % 2).encode())):
                    member = tarfile.TarInfo(f"{number}-{index:04d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        client.put_object(Bucket=BUCKET, Key=f"tars/x-{number}.tar", Body=buffer.getvalue())
    return f"s3://{BUCKET}/tars"


@pytest.mark.parametrize(("kind", "after"), [("images", 20), ("tars", 2)])
def test_a_bucket_that_fails_while_shards_are_packed_is_one_line_and_a_second_run_succeeds(
    trained: Path,
    tmp_path: Path,
    faults: Faults,
    kind: str,
    after: int,
    record_property: Callable[[str, object], None],
) -> None:
    project = scratch.copy(trained, tmp_path / "packed")
    tiny.apply(project / "params.yaml", {"shards.source": put(project, kind), "shards.images_per_shard": 8})
    repro = ("dvc", "repro", "--single-item", "--force", "--no-run-cache", "shards")
    scratch.run(project, *repro)
    expected, took = results(project, "shards"), []
    for fault in FAULTS:
        for old in ("data/shards", ".cache"):
            shutil.rmtree(project / old, ignore_errors=True)
        faults.begin(fault, "GET", after)
        said, seconds = fails(project, *repro)
        took.append(round(seconds))
        assert faults.asked, "nothing was asked for after the fault began"
        faults.end()
        words = [line for line in said.splitlines() if f"s3://{BUCKET}" in line and "WARN" not in line]
        assert len(words) == 1 and "try again later" in words[0], said
        assert not (project / "data" / "shards").exists()
        scratch.run(project, *repro[:3], "--no-run-cache", "shards")
        assert results(project, "shards") == expected
    record_property("measured", f"bucket fails in shards ({kind}): {', '.join(FAULTS)} noticed in {took} s, 0 lost")


def committed(trained: Path, folder: Path) -> Path:
    """The project with all its results in git and in DVC's cache."""
    project = scratch.copy(trained, folder)
    for words in ("git add -A", "git commit -q -m trained"):
        scratch.run(project, *words.split())
    return project


def with_remote(project: Path, folder: Path, prefix: str) -> Path:
    """A fresh clone whose DVC has the bucket as its remote."""
    copy = clone(project, folder)
    scratch.run(copy, "dvc", "remote", "add", "--local", "--default", "storage", f"s3://{BUCKET}/{prefix}")
    return copy


def in_bucket(prefix: str) -> dict[str, int]:
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/files/md5/")
    return {one["Key"]: one["Size"] for page in pages for one in page.get("Contents", [])}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_push_and_a_pull_that_a_bucket_breaks_off_are_completed_by_the_next(
    trained: Path, tmp_path: Path, faults: Faults, fault: str, record_property: Callable[[str, object], None]
) -> None:
    project = committed(trained, tmp_path / "whole")
    here = with_remote(project, tmp_path / "here", fault)
    scratch.run(here, "dvc", "cache", "dir", "--local", str(project / ".dvc" / "cache"))
    faults.begin(fault, "PUT", 5)
    said, pushing = fails(here, "dvc", "push")
    faults.end()
    assert "ERROR" in said
    scratch.run(here, "dvc", "push")
    pushed = in_bucket(fault)
    sizes = {size for path in (project / ".dvc/cache/files/md5").rglob("*") if (size := path.stat().st_size)}
    assert len(pushed) > 10 and set(pushed.values()) <= sizes

    there = with_remote(project, tmp_path / "there", fault)
    faults.begin(fault, "GET", 5)
    said, pulling = fails(there, "dvc", "pull")
    faults.end()
    assert "ERROR" in said
    whole = {path.name for path in (project / ".dvc/cache/files/md5").rglob("*") if path.is_file()}
    found = [path for path in (there / ".dvc/cache/files/md5").rglob("*") if path.is_file()]
    assert {path.name for path in found} <= whole
    for path in found:
        assert path.read_bytes() == (project / ".dvc/cache/files/md5" / path.parent.name / path.name).read_bytes()
    scratch.run(there, "dvc", "pull")
    assert outputs(there) == outputs(project)
    assert "up to date" in scratch.run(there, "dvc", "status")
    record_property("measured", f"bucket {fault}: push failed in {pushing:.0f} s, pull in {pulling:.0f} s, 0 lost")
