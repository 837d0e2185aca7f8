"""Shards, codes and texts in a bucket: batches and weights as of files here; copies are made once, checked, bounded."""

import gc
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bigr import config
from bigr.data import image_batches, packing, stored_files
from bigr.data.codes import CodesDataset
from bigr.data.image_batches import ImageBatches
from bigr.data.shards import ShardIndex, load_split
from bigr.pipeline import check
from bigr.pipeline.images_found import ImagesFound, check_images
from bigr.pipeline.runner import function_of
from bigr.runtime import copies as copied
from bigr.runtime import remote_files
from bigr.runtime.context import Context
from bigr.runtime.copies import Cache, set_bound
from bigr.runtime.errors import BigrError
from bigr.runtime.files import sha256_file
from bigr.runtime.remote_files import RemoteFolder
from bigr.stages import encode_codes
from tests import s3_server, scratch
from tests.groups import run_processes
from tests.source_files import noise_png, tar
from tests.test_storage import clone
from tests.worlds import settings

pytestmark = pytest.mark.server
pytest.importorskip("boto3")
pytest.importorskip("fsspec")
pytest.importorskip("s3fs")
pytest.importorskip("moto.server")

BUCKET = "bucket"
SIZE, EACH = 16, 8
TRAIN, VAL = 5 * EACH, 2 * EACH
ALL = ("shards", "tokenizer", "codes", "text", "generator")
SMALL = {
    "run__device": "cpu",
    "run__precision": "float32",
    "run__workers": 1,
    "shards__images_per_shard": EACH,
    "text__encoder": "learned",
    "text__vocabulary": 260,
    "tokenizer__steps": 2,
    "tokenizer__validate_every": 2,
    "generator__steps": 3,
    "generator__validate_every": 3,
}


def stores(prefix: str) -> dict[str, str]:
    return {f"{stage}__store": f"s3://{BUCKET}/{prefix}/{stage}" for stage in ("shards", "codes", "text")}


def run(root: Path, stages: tuple[str, ...], fingerprint: str = "f", **changes: object) -> None:
    root.mkdir(exist_ok=True)
    for stage in stages:
        function_of(stage)(settings(**SMALL | changes), Context(root, fingerprint))


def members_of(value: int) -> dict[str, bytes]:
    png = noise_png(value, SIZE, SIZE)
    return {"png": png, "cls": str(value % 2).encode(), "txt": f"number {value % 7}".encode()}


def tar_from(first: int, path: Path) -> Path:
    return tar(path, [members_of(value) for value in range(first, first + EACH)])


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and captions, and one with the same as webdataset files."""
    root = tmp_path_factory.mktemp("here")
    for split, values in (("train", range(TRAIN)), ("val", range(TRAIN, TRAIN + VAL))):
        for value in values:
            path = root / "images" / split / str(value % 2) / f"{value}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            members = members_of(value)
            path.write_bytes(members["png"])
            path.with_suffix(".txt").write_bytes(members["txt"])
        for number, first in enumerate(range(values.start, values.stop, EACH)):
            tar_from(first, root / "tars" / f"{split}-{number}.tar")
    return root


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server of S3 writes each request."""
    return tmp_path_factory.mktemp("moto") / "s3.log"


@pytest.fixture(scope="module")
def s3(here: Path, log: Path) -> Iterator[Any]:
    """A client of a server of S3 with the webdataset files, which the environment names."""
    files = {f"tars/{path.name}": path.read_bytes() for path in (here / "tars").iterdir()}
    with s3_server.holding(BUCKET, log.parent, files) as client:
        yield client


@pytest.fixture(scope="module")
def local(here: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with all its files here. Not to be changed."""
    root = tmp_path_factory.mktemp("local")
    run(root, ALL, shards__source=str(here / "images"))
    return root


@pytest.fixture(scope="module")
def bucket(here: Path, s3: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with its files in the bucket, after the stage `text`. Not to be changed, but for its cache."""
    root = tmp_path_factory.mktemp("bucket")
    run(root, ALL[:-1], shards__source=str(here / "images"), **stores("run"))
    return root


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(copied, "_bytes", 10**10)


@pytest.fixture
def puts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are copied to the bucket."""
    names, put = [], RemoteFolder.put

    def watched(folder: RemoteFolder, path: Path, name: str) -> None:
        names.append(name)
        put(folder, path, name)

    monkeypatch.setattr(RemoteFolder, "put", watched)
    return names


def without_copies(project: Path, folder: Path) -> Path:
    """A clone of a project as another machine has it: its outputs, and no copy of a file at a URL."""
    folder.mkdir()
    for name in ("data", "models"):
        (folder / name).mkdir()
        for path in (project / name).rglob("*"):
            if path.is_file():
                there = folder / path.relative_to(project)
                there.parent.mkdir(parents=True, exist_ok=True)
                there.write_bytes(path.read_bytes())
    return folder


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def names_in(index: dict[str, Any]) -> list[str]:
    found = []
    for split in index["splits"].values():
        entries = split if isinstance(split, list) else split["shards"]
        found += [entry if isinstance(entry, str) else entry["name"] for entry in entries]
    return found


def index_of(root: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "data" / stage / "index.json").read_text())
    return found


def copies(root: Path) -> list[Path]:
    return [path for path in (root / ".cache" / "sources").iterdir() if not path.suffix]


def used(root: Path) -> int:
    return sum(path.stat().st_size for path in copies(root))


def gets(log: Path) -> Counter[str]:
    """How often each object was copied from the server."""
    return Counter(re.findall(rf'"GET /{BUCKET}/([^ ?]+) HTTP', log.read_text()))


# Files that the stages put there


def test_training_from_a_bucket_has_the_weights_of_training_from_local_files(
    local: Path, bucket: Path, s3: Any, tmp_path: Path
) -> None:
    root = without_copies(bucket, tmp_path / "elsewhere")
    assert listed(root / "data" / "shards") == ["index.json", "report.json"]
    assert listed(root / "data" / "codes") == listed(root / "data" / "text") == ["index.json"]
    assert not (bucket / "checkpoints").exists()
    for stage in ("shards", "codes", "text"):
        assert all(name.startswith(f"s3://{BUCKET}/run/{stage}/") for name in names_in(index_of(root, stage)))
    weights = Path("models", "tokenizer", "model.safetensors")
    run(root, ("tokenizer",), **stores("run"))
    assert (root / weights).read_bytes() == (local / weights).read_bytes()
    run(root, ("generator",), **stores("run"))
    for name in listed(local / "models" / "generator"):
        ours, theirs = (where / "models" / "generator" / name for where in (root, local))
        assert ours.read_bytes() == theirs.read_bytes()
    assert listed(root / "data" / "codes") == ["index.json"]


def test_streamed_batches_are_those_of_local_shards_within_a_bound(
    local: Path, bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_batches, "_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(image_batches, "_BLOCK_IMAGES", EACH)
    root = without_copies(bucket, tmp_path / "elsewhere")
    bound = int(2.5 * max(shard.file.size for shard in ShardIndex.load(root / "data" / "shards").shards("train")))
    set_bound(bound / 1e9)

    def first(project: Path, workers: int) -> list[torch.Tensor]:
        options = {"seed": 3, "horizontal_flip": True, "workers": workers}
        stream = ImageBatches(project / "data" / "shards", "train", 4, **options).from_step(2)  # type: ignore[arg-type]
        return [next(stream)[0] for _ in range(20)]

    for workers in (0, 2):
        for ours, theirs in zip(first(root, workers), first(local, workers), strict=True):
            assert torch.equal(ours, theirs)
        assert 0 < used(root) <= bound


def test_a_second_run_puts_nothing_there(here: Path, bucket: Path, s3: Any, tmp_path: Path, puts: list[str]) -> None:
    root = without_copies(bucket, tmp_path / "again")
    before = {stage: index_of(root, stage) for stage in ("shards", "codes", "text")}
    run(root, ("shards", "codes", "text"), shards__source=str(here / "images"), **stores("run"))
    assert puts == []
    assert {stage: index_of(root, stage) for stage in before} == before


def test_what_another_run_wrote_is_not_replaced(bucket: Path, tmp_path: Path, puts: list[str]) -> None:
    root = without_copies(bucket, tmp_path / "drawn")
    run(root, ("codes",), codes__draws=1, **stores("run"))
    assert len(puts) == len(names_in(index_of(root, "codes")))
    assert CodesDataset.open(root / "data" / "codes", "train", None).draws == 1
    other = without_copies(bucket, tmp_path / "before")
    assert CodesDataset.open(other / "data" / "codes", "train", None).draws == 0


@pytest.mark.parametrize("moment", ["while it computes", "before its note"])
def test_a_killed_stage_continues_part_by_part(
    bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, puts: list[str], moment: str
) -> None:
    prefix = moment.replace(" ", "-")
    root = without_copies(bucket, tmp_path / "killed")
    expected = {name.rsplit("/", 1)[1] for name in names_in(index_of(root, "codes"))}
    encode, made = encode_codes.encode_shard, list[str]()

    def counted(encoder: Any, placed: Any, *args: Any, **options: Any) -> None:
        made.append(placed.codes_name)
        encode(encoder, placed, *args, **options)

    def killed(*args: Any, **options: Any) -> Any:
        if len(made) == 3:
            raise KeyboardInterrupt
        return encode_or_note(*args, **options)

    encode_or_note = counted if moment == "while it computes" else stored_files.write_json
    with monkeypatch.context() as patch:
        patch.setattr(encode_codes, "encode_shard", killed if encode_or_note is counted else counted)
        if encode_or_note is not counted:
            patch.setattr(stored_files, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            run(root, ("codes",), **stores(prefix))
    assert len(puts) == 3
    monkeypatch.setattr(encode_codes, "encode_shard", counted)
    run(root, ("codes",), **stores(prefix))
    again = 0 if moment == "while it computes" else 1  # what is there, and not noted, is made again, not copied again
    assert len(made) == len(expected) + again
    assert set(puts) == expected and len(puts) == len(expected)


def test_a_killed_stage_shards_puts_no_part_there_twice(
    here: Path, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, puts: list[str]
) -> None:
    source = {"shards__source": str(here / "images"), **stores("packed")}
    work, jobs = packing.pack_part, []

    def killed(*args: Any) -> Any:
        jobs.append(args)
        if len(jobs) == 3:
            raise KeyboardInterrupt
        return work(*args)

    with monkeypatch.context() as patch:
        patch.setattr(packing, "pack_part", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "p", ("shards",), **source)
    assert len(puts) == 2
    run(tmp_path / "p", ("shards",), **source)
    assert len(puts) == len(set(puts)) == len(names_in(index_of(tmp_path / "p", "shards"))) == (TRAIN + VAL) // EACH


# Webdataset files that fit


def test_remote_files_that_fit_are_used_where_they_lie(
    here: Path, s3: Any, log: Path, tmp_path: Path, puts: list[str]
) -> None:
    root, twin, before = tmp_path / "p", tmp_path / "local", gets(log)
    run(root, ("shards",), shards__source=f"s3://{BUCKET}/tars")
    run(twin, ("shards",), shards__source=str(here / "tars"))
    assert set((gets(log) - before).values()) == {1}, "checked and counted in one pass"
    assert listed(root / "data" / "shards") == ["index.json", "report.json"] and puts == []
    entries = index_of(root, "shards")["splits"]["train"]["shards"]
    assert [entry["name"] for entry in entries] == [f"s3://{BUCKET}/tars/train-{number}.tar" for number in range(5)]
    assert [entry["size"] for entry in entries] == [
        (here / "tars" / f"train-{number}.tar").stat().st_size for number in range(5)
    ]
    for split in ("train", "val"):
        for ours, theirs in zip(*(load_split(p / "data" / "shards", split) for p in (root, twin)), strict=True):
            assert torch.equal(ours, theirs)
    run(root, ("tokenizer", "codes", "text"))
    run(twin, ("tokenizer", "codes", "text"))
    for stage in ("codes", "text"):
        assert index_of(root, stage) == index_of(twin, stage)


def test_what_is_to_be_local_is_packed_here(here: Path, s3: Any, tmp_path: Path) -> None:
    for name, source in (("s3", f"s3://{BUCKET}/tars"), ("here", str(here / "tars"))):
        run(tmp_path / name, ("shards",), shards__source=source, shards__store="local")
        assert sum(file.endswith(".tar") for file in listed(tmp_path / name / "data" / "shards")) == 7
    assert index_of(tmp_path / "s3", "shards") == index_of(tmp_path / "here", "shards")


def test_local_files_that_fit_are_copied_to_the_bucket_as_they_are(
    here: Path, s3: Any, tmp_path: Path, puts: list[str]
) -> None:
    run(tmp_path / "p", ("shards",), shards__source=str(here / "tars"), shards__store=f"s3://{BUCKET}/copied")
    assert len(puts) == 7 and len(list((here / "tars").iterdir())) == 7
    for name in names_in(index_of(tmp_path / "p", "shards")):
        content = s3.get_object(Bucket=BUCKET, Key=name.removeprefix(f"s3://{BUCKET}/"))["Body"].read()
        original = re.sub(r"-[0-9a-f]{16}", "", name.rsplit("/", 1)[1])
        assert content == (here / "tars" / original).read_bytes()


# Failures


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("longer", "has changed since the stage {stage} ran: it has .* bytes, had .*; run the stage {stage} again"),
        ("damaged", "has changed since the stage {stage} ran, or is damaged.*run the stage {stage} again"),
        ("missing", "is not there any more; put it back, or run the stage {stage} again"),
    ],
)
@pytest.mark.parametrize("stage", ["shards", "codes", "text"])
def test_a_file_that_is_not_what_it_was_is_one_clear_line(
    bucket: Path, s3: Any, tmp_path: Path, stage: str, harm: str, said: str
) -> None:
    root = without_copies(bucket, tmp_path / "elsewhere")
    name = names_in(index_of(root, stage))[1]
    key = name.removeprefix(f"s3://{BUCKET}/")
    content = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
    if harm == "missing":
        s3.delete_object(Bucket=BUCKET, Key=key)
    else:
        other = content + b"x" if harm == "longer" else content[:-1] + bytes([content[-1] ^ 1])
        s3.put_object(Bucket=BUCKET, Key=key, Body=other)
    try:
        with pytest.raises(BigrError, match=re.escape(name) + " " + said.format(stage=stage)) as raised:
            run(root, ("tokenizer" if stage == "shards" else "generator",))
        assert "\n" not in str(raised.value)
        assert not (root / "models" / "generator").exists()
    finally:
        s3.put_object(Bucket=BUCKET, Key=key, Body=content)


def test_a_source_that_changed_after_the_stage_is_told(here: Path, s3: Any, tmp_path: Path) -> None:
    for path in (here / "tars").iterdir():
        s3.put_object(Bucket=BUCKET, Key=f"changing/{path.name}", Body=path.read_bytes())
    run(tmp_path / "p", ("shards",), shards__source=f"s3://{BUCKET}/changing")
    s3.put_object(Bucket=BUCKET, Key="changing/train-3.tar", Body=tar_from(100, tmp_path / "other.tar").read_bytes())
    with pytest.raises(BigrError, match=r"s3://bucket/changing/train-3.tar has changed.*run the stage shards again"):
        load_split(tmp_path / "p" / "data" / "shards", "train")


def test_a_bucket_that_does_not_exist_is_told_and_what_was_made_is_kept(bucket: Path, tmp_path: Path) -> None:
    root = without_copies(bucket, tmp_path / "wrong")
    with pytest.raises(BigrError, match=r"s3://no-such-bucket/codes/train-000000-[0-9a-f]+.safetensors does not exist"):
        run(root, ("codes",), codes__store="s3://no-such-bucket/codes")
    made = (root / "checkpoints" / "codes").glob("*.safetensors")
    assert [path.name for path in made] == ["train-000000.safetensors"]


@pytest.mark.parametrize("key", ["shards__store", "codes__store", "text__store"])
@pytest.mark.parametrize("url", ["bucket/folder", "https://host/folder", "s3://", "s3:///folder", "file:///folder"])
def test_what_is_no_bucket_is_refused_with_the_settings(key: str, url: str) -> None:
    with pytest.raises(BigrError, match=key.replace("__", ".") + " must be empty, .*s3://bucket/folder"):
        settings(**SMALL | {key: url})


def test_a_missing_package_is_told_by_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "gs", raising=False)  # type: ignore[attr-defined]
    chosen = settings(**SMALL, codes__store="gs://bucket/codes")
    with pytest.raises(BigrError, match=r"codes.store: gs://bucket/codes.*pip install 'bigr\[gs\]'"):
        check.check_files(tmp_path, chosen, ["codes", "generator"])
    check.check_files(tmp_path, chosen, ["generator"])


# Copies here


def test_codes_that_the_cache_cannot_hold_are_told_before_any_is_copied(
    bucket: Path, log: Path, tmp_path: Path
) -> None:
    root, before = without_copies(bucket, tmp_path / "elsewhere"), gets(log)
    set_bound(1e-6)
    with pytest.raises(BigrError, match=r"codes of .*index.json take .* must all be here at once, run.cache_gb"):
        run(root, ("generator",))
    assert gets(log) == before
    chosen = settings(**SMALL, run__cache_gb=0.001, codes__store="s3://bucket/codes")
    with pytest.raises(BigrError, match=r"run.cache_gb is 0.001: the codes of 1,000,020 images at codes.store need"):
        check_images(tmp_path, chosen, ImagesFound("there", 10**6, 20, 2))


def test_codes_stay_while_they_are_mapped(bucket: Path, tmp_path: Path) -> None:
    root = without_copies(bucket, tmp_path / "elsewhere")
    codes = CodesDataset.open(root / "data" / "codes", "train", None)
    held, size = {path.name for path in copies(root)}, used(root)
    assert len(held) == TRAIN // EACH
    cache = Cache(root / ".cache" / "sources", size)
    for key in ("x", "y"):
        cache.open(key, lambda path: path.write_bytes(bytes(1000)) and None).close()
    assert held < {path.name for path in copies(root)} and used(root) == size + 1000
    del codes
    gc.collect()
    cache.open("z", lambda path: path.write_bytes(bytes(1000)) and None).close()
    assert used(root) <= size


PROCESS = """
import json, pathlib, sys
import torch
from bigr.pipeline.runner import function_of
from bigr.runtime import distributed
from bigr.runtime.context import Context
from tests.worlds import settings

with distributed.process_group(torch.device("cpu")):
    changes = json.loads(sys.argv[2])
    for stage in ("shards", "tokenizer", "codes", "text", "generator"):
        function_of(stage)(settings(**changes), Context(pathlib.Path(sys.argv[1]), "f"))
        distributed.barrier()  # the next stage is another start of the processes
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_write_and_read_what_one_does(here: Path, s3: Any, log: Path, tmp_path: Path) -> None:
    root, twin, before = tmp_path / "bucket", tmp_path / "local", gets(log)
    changes = SMALL | {"shards__source": f"s3://{BUCKET}/tars", **stores("two")}
    run_processes(2, PROCESS, str(root), json.dumps(changes))
    asked = gets(log) - before
    run_processes(2, PROCESS, str(twin), json.dumps(SMALL | {"shards__source": str(here / "tars")}))
    for stage in ("codes", "text"):
        for stored, name in zip(*(names_in(index_of(place, stage)) for place in (root, twin)), strict=True):
            digest = sha256_file(twin / "data" / stage / name)
            assert stored == f"s3://{BUCKET}/two/{stage}/{name.replace('.', f'-{digest[:16]}.')}"
            assert asked[stored.removeprefix(f"s3://{BUCKET}/")] == 0, "what a process here wrote is here"
    assert {asked[f"tars/{path.name}"] for path in (here / "tars").iterdir()} == {2}, "to be checked, and to be read"
    model = Path("models", "generator", "model.safetensors")
    assert (root / model).read_bytes() == (twin / model).read_bytes()


# DVC


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_second_clone_pulls_indexes_runs_nothing_and_trains_from_the_bucket(s3: Any, tmp_path: Path) -> None:
    project = scratch.make_tiny(tmp_path / "first", **stores("dvc"))
    stages = ("dataset", *ALL)
    for stage in stages:  # here, since `dvc repro` starts a process for each
        function_of(stage)(config.load(project / "params.yaml"), Context(project))
    scratch.run(project, "dvc", "commit", "--force", *stages)
    for words in (f"dvc remote add --default storage s3://{BUCKET}/remote", "dvc push", "git add -A"):
        scratch.run(project, *words.split())
    scratch.run(project, "git", "commit", "-q", "-m", "trained")
    there = clone(project, tmp_path / "second")
    scratch.run(there, "dvc", "pull", *stages)
    assert [listed(there / "data" / stage) for stage in ("codes", "text")] == [["index.json"]] * 2
    assert "Running stage" not in scratch.run(there, "dvc", "repro", "generator")
    assert not (there / ".cache" / "sources").exists()
    weights = there / "models" / "generator" / "model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    function_of("generator")(config.load(there / "params.yaml"), Context(there))
    assert weights.read_bytes() == before and copies(there)
