"""DVC's cache and remote as docs/deploy.md has them: nothing is copied twice, and a fresh clone runs nothing again."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import s3_server, scratch

pytestmark = pytest.mark.server
boto3 = pytest.importorskip("boto3")
pytest.importorskip("dvc_s3")
pytest.importorskip("moto.server")

BUCKET = "bucket"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of a server of S3, which the environment names."""
    with s3_server.serving(tmp_path_factory.mktemp("moto")):
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        yield client


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project after `dvc repro`, with stages that take no time, committed. Not to be changed."""
    project = scratch.make(tmp_path_factory.mktemp("finished"), real=False)
    scratch.run(project, "dvc", "repro")
    assert len(scratch.ran(project)) == 9
    for words in ("git add -A", "git commit -q -m finished"):
        scratch.run(project, *words.split())
    return project


def clone(project: Path, folder: Path) -> Path:
    """A fresh clone as another machine has it: neither outputs nor cache nor what DVC remembers."""
    copy = folder / "project"
    folder.mkdir()
    (folder / "bin").symlink_to(project.parent / "bin")
    scratch.run(project, "git", "clone", "--quiet", str(project), str(copy))
    (copy / ".dvc" / "config.local").write_text(f"[core]\n    site_cache_dir = {folder / 'site'}\n")
    return copy


def outputs(project: Path) -> dict[str, bytes]:
    names = [folder for folder in ("data", "models", "outputs") if (project / folder).exists()]
    files = [path for name in names for path in (project / name).rglob("*") if path.is_file()]
    return {path.relative_to(project).as_posix(): path.read_bytes() for path in files if path.name != ".gitignore"}


def cached(project: Path) -> dict[str, int]:
    """The cache's files of outputs, and for each its number of bytes."""
    folder = Path(scratch.run(project, "dvc", "cache", "dir").strip()) / "files"
    return {str(path): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def test_a_fresh_clone_pulls_from_s3_and_runs_no_stage(s3: Any, finished: Path, tmp_path: Path) -> None:
    here = clone(finished, tmp_path / "here")
    scratch.run(here, "dvc", "cache", "dir", "--local", str(finished / ".dvc" / "cache"))
    for words in (f"remote add --local --default storage s3://{BUCKET}/bigr", "push"):
        scratch.run(here, "dvc", *words.split())
    assert s3.list_objects_v2(Bucket=BUCKET, Prefix="bigr/files/md5/")["KeyCount"] == len(cached(finished))

    there = clone(finished, tmp_path / "there")
    scratch.run(there, "dvc", "remote", "add", "--local", "--default", "storage", f"s3://{BUCKET}/bigr")
    scratch.run(there, "dvc", "pull")
    assert outputs(there) == outputs(finished)
    scratch.run(there, "dvc", "repro")
    assert scratch.ran(there) == []
    assert "secret" not in "".join(path.read_text() for path in (there / ".dvc").glob("config*"))


def test_without_the_remote_a_fresh_clone_would_run_everything(finished: Path, tmp_path: Path) -> None:
    there = clone(finished, tmp_path / "there")
    scratch.run(there, "dvc", "repro")
    assert len(scratch.ran(there)) == 9


def test_an_output_takes_no_more_room_for_being_in_the_cache(finished: Path) -> None:
    held = {(status.st_dev, status.st_ino) for status in map(os.stat, cached(finished))}
    of_content: dict[bytes, list[os.stat_result]] = {}
    for name, content in outputs(finished).items():
        of_content.setdefault(content, []).append((finished / name).stat())
    for same in of_content.values():  # of two outputs with the same content, DVC may link one
        linked = [status for status in same if (status.st_dev, status.st_ino) in held]
        assert linked and not any(status.st_mode & 0o222 for status in linked)


def test_a_stage_that_runs_again_leaves_the_cache_as_it_is(finished: Path, tmp_path: Path) -> None:
    project = clone(finished, tmp_path / "again")
    scratch.run(project, "dvc", "repro")
    before = {path: Path(path).read_bytes() for path in cached(project)}
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("seed: 0", "seed: 1", 1))
    scratch.run(project, "dvc", "repro")
    assert {path: Path(path).read_bytes() for path in before} == before
    assert len(cached(project)) > len(before)


def test_clones_that_share_a_cache_on_another_file_system_neither_copy_nor_run_again(
    finished: Path, tmp_path: Path
) -> None:
    shared = tmp_path / "cache"
    projects = [clone(finished, tmp_path / name) for name in ("ada", "grace")]
    for project in projects:
        with (project / ".dvc" / "config.local").open("a") as file:
            file.write(f"[cache]\n    dir = {shared}\n    shared = group\n    type = symlink\n")
    scratch.run(projects[0], "dvc", "repro")
    assert len(scratch.ran(projects[0])) == 9
    scratch.run(projects[1], "dvc", "checkout")
    scratch.run(projects[1], "dvc", "repro")
    assert scratch.ran(projects[1]) == []
    for name in outputs(projects[1]):
        assert (projects[1] / name).resolve().is_relative_to(shared), name
    folders = [path for path in (shared / "files").rglob("*") if path.is_dir()]
    assert all(path.stat().st_mode & stat.S_IWGRP for path in folders)
