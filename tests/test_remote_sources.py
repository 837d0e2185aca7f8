"""Sources of images at s3:// and http://: the same shards as of local files, a bounded cache, retries, DVC."""

import contextlib
import functools
import hashlib
import io
import json
import os
import pickle
import re
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigr import config
from bigr.data import packing
from bigr.data.packed_parts import Packing
from bigr.data.packing import pack
from bigr.data.sources.opened import manifest_of, open_source
from bigr.data.sources.source import Source, Splitting
from bigr.data.sources.storage import RemoteStorage
from bigr.pipeline import check, dvcfile
from bigr.runtime import remote_files
from bigr.runtime.context import Context
from bigr.runtime.copies import Cache
from bigr.runtime.errors import BigrError
from bigr.stages import pack_shards
from tests import s3_server, scratch, tiny
from tests.source_files import noise_png, tar

pytestmark = pytest.mark.server
pytest.importorskip("boto3")
fsspec = pytest.importorskip("fsspec")
pytest.importorskip("s3fs")
pytest.importorskip("moto.server")

BUCKET = "bucket"
SIZE = 8
NAMES = ["a b", "50%25 #1", "ü+c", "d?e"]
"""Of image files: what is quoted in a web address."""


# The same images in each format, here and on two servers


def png(value: int) -> bytes:
    return noise_png(value, 12, 10)


def members_of(value: int) -> dict[str, bytes]:
    return {"png": png(value), "cls": str(value % 2).encode(), "txt": f"number {value}".encode()}


def idx_of(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source of each kind."""
    root = tmp_path_factory.mktemp("here")
    for value in range(24):
        path = root / "images" / ("train", "val")[value % 3 == 2] / f"class {value % 2}" / f"{NAMES[value % 4]}{value}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name + ".png").write_bytes(png(value))
        path.with_name(path.name + ".txt").write_text(f"number {value}")
    (root / "images" / ".hidden").write_text("")
    for number in range(4):
        samples = [members_of(value) for value in range(8 * number, 8 * number + 8)]
        tar(root / "tars" / f"x-{number}.tar", samples)
    (root / "tars" / "labels.txt").write_text("cat\ndog\n")
    (root / "spaced").mkdir()
    for path in (root / "tars").glob("*.tar"):
        (root / "spaced" / path.name.replace("-", " ")).write_bytes(path.read_bytes())
    (root / "parquet").mkdir()
    for split, values in (("train", range(16)), ("test", range(16, 24))):
        columns = {"image": [{"bytes": png(v)} for v in values], "label": [v % 2 for v in values]}
        pq.write_table(pa.table(columns), root / "parquet" / f"{split}-0.parquet", row_group_size=5)
    draws = np.random.default_rng(0)
    arrays = {"x_train": (20, 9, 9, 3), "x_test": (6, 9, 9, 3)}
    images = {name: draws.integers(0, 256, shape, dtype=np.uint8) for name, shape in arrays.items()}
    labels = {name.replace("x", "y"): np.arange(len(array)) % 2 for name, array in images.items()}
    np.savez(root / "some data.npz", **images, **labels)  # type: ignore[arg-type]
    (root / "idx").mkdir()
    for split, name in (("train", "x_train"), ("t10k", "x_test")):
        grey, numbers = images[name][..., 0], np.arange(len(images[name]), dtype=np.uint8) % 3
        (root / "idx" / f"{split}-images-idx3-ubyte").write_bytes(idx_of(grey))
        (root / "idx" / f"{split}-labels-idx1-ubyte").write_bytes(idx_of(numbers))
    return root


@pytest.fixture(scope="module")
def s3(here: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of a server of S3 with the files of `here`, which the environment names."""
    files = {path.relative_to(here).as_posix(): path.read_bytes() for path in here.rglob("*") if path.is_file()}
    files["images/train/"] = b""  # as the console makes a folder
    with s3_server.holding(BUCKET, tmp_path_factory.mktemp("moto"), files) as client:
        yield client


class Web(SimpleHTTPRequestHandler):
    """Serves a folder. faults: what the next requests for a path get instead; asked: requests for each path."""

    faults: dict[str, list[str]]
    asked: Counter[str]

    def send_head(self) -> Any:
        self.asked[self.path] += 1
        waiting = self.faults.get(self.path, [])
        if self.command == "HEAD" and waiting and waiting[0] in ("half", "cut"):
            return super().send_head()
        fault = waiting.pop(0) if waiting else ""
        if fault.isdigit():
            self.send_error(int(fault))
            return None
        if fault == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return None
        if fault in ("half", "cut"):  # the former says that all of it comes
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            if fault == "half":
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            return io.BytesIO(content[: len(content) // 2])
        return super().send_head()

    def list_directory(self, path: Any) -> Any:
        if "bare" in Path(path).parts:
            return self.send_error(403)
        return super().list_directory(path)

    def copyfile(self, source: Any, outputfile: Any) -> None:
        if "slow" not in self.path:
            return super().copyfile(source, outputfile)
        while block := source.read(2048):
            outputfile.write(block)
            time.sleep(0.1)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def web(here: Path) -> Iterator[tuple[str, type[Web]]]:
    """The address of a server of the files of `here`, and its handler."""
    handler = type("Handler", (Web,), {"faults": {}, "asked": Counter()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(here)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "_FIRST_WAIT_S", 0.01)


def opened(source: str, folder: Path, cache_bytes: int = 10**9) -> Source:
    return open_source(source, folder, Splitting(0.25, 3), cache=Cache(folder / "cache", cache_bytes), warn=False)


def packed(source: str, folder: Path, cache_bytes: int = 10**9) -> dict[str, bytes]:
    """The files that packing a source writes. It is read by a copy of it, as another process has it."""
    found = opened(source, folder, cache_bytes)
    found.prepare(folder / "partial")
    copy = pickle.loads(pickle.dumps(found))  # noqa: S301
    pack(copy, folder / "data" / "shards", folder / "partial", Packing(SIZE, 7, 1000), max_bad_fraction=0, workers=1)
    return {path.name: path.read_bytes() for path in sorted((folder / "data" / "shards").iterdir())}


def complaint(source: str, folder: Path) -> str:
    """The one line that opening a source fails with."""
    with pytest.raises(BigrError) as raised:
        packed(source, folder)
    assert "\n" not in str(raised.value)
    return str(raised.value)


# The same shards


SOURCES = [
    "images",
    "tars",
    "tars/x-2.tar",
    "tars/x-{0..3}.tar",
    "spaced/x {0..3}.tar",
    "parquet",
    "parquet/train-0.parquet",
]
ARRAYS = ["some data.npz", "idx", "idx/train-images-idx3-ubyte"]


@pytest.mark.parametrize("source", SOURCES + ARRAYS)
def test_shards_of_s3_are_those_of_the_same_local_files(source: str, here: Path, s3: Any, tmp_path: Path) -> None:
    assert packed(f"s3://{BUCKET}/{source}", tmp_path / "s3") == packed(str(here / source), tmp_path / "local")


@pytest.mark.parametrize("source", SOURCES + ARRAYS)
def test_shards_of_web_files_are_those_of_the_same_local_files(
    source: str, here: Path, web: tuple[str, Any], tmp_path: Path
) -> None:
    address = f"{web[0]}/{source.replace(' ', '%20')}"
    assert packed(address, tmp_path / "web") == packed(str(here / source), tmp_path / "local")


def test_a_file_address_is_its_path(here: Path, tmp_path: Path) -> None:
    assert packed(f"file://{here}/images", tmp_path / "url") == packed(str(here / "images"), tmp_path / "path")


def test_a_web_server_need_not_list_its_files(here: Path, web: tuple[str, Any], tmp_path: Path) -> None:
    bare = here / "bare"
    bare.mkdir(exist_ok=True)
    (bare / "x.tar").write_bytes((here / "tars" / "x-0.tar").read_bytes())
    web[1].faults["/bare/labels.txt"] = ["403"] * 9  # as S3 says of a file that is not there
    assert packed(f"{web[0]}/bare/x.tar", tmp_path / "web") == packed(str(bare / "x.tar"), tmp_path / "local")
    assert re.search("cannot be listed.*; name one", complaint(f"{web[0]}/bare", tmp_path / "folder"))


def test_listing_leaves_no_details_of_the_files_behind(s3: Any, tmp_path: Path) -> None:
    opened(f"s3://{BUCKET}/images", tmp_path)
    opened(f"s3://{BUCKET}/tars", tmp_path)
    assert len(fsspec.filesystem("s3").dircache) == 0


def test_a_manifest_of_remote_images_changes_with_an_image(here: Path, s3: Any, tmp_path: Path) -> None:
    for name in ("train/a/1", "train/a/2", "val/a/3"):
        s3.put_object(Bucket=BUCKET, Key=f"changing/{name}.png", Body=png(1))
    manifests = []
    for value in (1, 1, 2):
        s3.put_object(Bucket=BUCKET, Key="changing/train/a/2.png", Body=png(value))
        listing = manifest_of(opened(f"s3://{BUCKET}/changing", tmp_path))
        listing.save(tmp_path / "source.arrow")
        manifests.append([json.loads(state)[0][:2] for state in listing.table["state"].to_pylist()])
    assert manifests[0] == manifests[1] != manifests[2]
    assert packed(str(tmp_path / "source.arrow"), tmp_path / "a") == packed(f"s3://{BUCKET}/changing", tmp_path / "b")


@pytest.mark.parametrize("by", ["its address", "a manifest"])
def test_a_resumed_stage_packs_all_again_where_a_remote_image_has_changed(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    source = f"s3://{BUCKET}/resumed"

    def put(number: int, value: int) -> None:
        split = "val" if number % 3 == 2 else "train"
        s3.put_object(Bucket=BUCKET, Key=f"resumed/{split}/a/{number}.png", Body=png(value))

    def listed() -> None:
        manifest_of(opened(source, tmp_path)).save(tmp_path / "source.arrow")

    for number in range(24):
        put(number, number)
    listed()
    values = config.read(scratch.ROOT / "params.yaml")
    named = source if by == "its address" else str(tmp_path / "source.arrow")
    values["shards"] |= {"source": named, "images_per_shard": 7}
    settings = config.validate(values, "params.yaml")
    work, jobs = packing.pack_part, []

    def killed(*args: Any) -> Any:
        jobs.append(args)
        if len(jobs) == 3:
            raise KeyboardInterrupt
        return work(*args)

    def shards(root: Path, fingerprint: str) -> dict[str, bytes]:
        pack_shards.run(settings, Context(root, fingerprint))
        return {path.name: path.read_bytes() for path in (root / "data" / "shards").iterdir()}

    monkeypatch.setattr(packing, "pack_part", killed)
    with pytest.raises(KeyboardInterrupt):
        pack_shards.run(settings, Context(tmp_path / "a", "before"))
    monkeypatch.setattr(packing, "pack_part", work)
    for number in range(24):
        put(number, number + 100)
    listed()
    assert shards(tmp_path / "a", "after") == shards(tmp_path / "b", "after")


# The cache


def remote(folder: Path, cache_bytes: int, url: str = f"s3://{BUCKET}/tars") -> RemoteStorage:
    return RemoteStorage(url, cache=Cache(folder / "cache", cache_bytes))


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "cache").iterdir())


def read(storage: RemoteStorage, name: str) -> bytes:
    with storage.open(name) as stream:
        return stream.read()


def test_copies_stay_within_the_bound(here: Path, s3: Any, tmp_path: Path) -> None:
    contents = {path.name: path.read_bytes() for path in (here / "tars").glob("*.tar")}
    bound = sum(map(len, contents.values())) // 2
    storage = remote(tmp_path, bound)
    for name, content in contents.items():
        assert read(storage, name) == content
        assert used(tmp_path) <= bound
    assert used(tmp_path) > bound // 2
    expected = packed(str(here / "tars"), tmp_path / "local")
    assert packed(f"s3://{BUCKET}/tars", tmp_path / "small", bound) == expected
    assert used(tmp_path / "small") <= bound


def test_a_file_above_the_bound_is_read_and_is_the_only_copy(here: Path, s3: Any, tmp_path: Path) -> None:
    storage = remote(tmp_path, 100)
    with storage.open("x-0.tar") as first:
        assert read(storage, "x-1.tar") == (here / "tars" / "x-1.tar").read_bytes()
        assert first.read() == (here / "tars" / "x-0.tar").read_bytes(), "a copy can be read once it is removed"
    assert used(tmp_path) == (here / "tars" / "x-1.tar").stat().st_size


def test_a_file_is_copied_once_and_again_where_it_has_changed(web: tuple[str, Any], here: Path, tmp_path: Path) -> None:
    url, handler = web
    (here / "once.bin").write_bytes(b"first")
    storage = remote(tmp_path, 1000, url)
    assert read(storage, "once.bin") == b"first"
    before = handler.asked["/once.bin"]
    assert read(storage, "once.bin") == b"first"
    assert handler.asked["/once.bin"] == before + 1, "what is copied is asked for its state alone"
    (here / "once.bin").write_bytes(b"second one")
    assert read(storage, "once.bin") == b"second one"


READER = """\
import sys, time
from pathlib import Path
from bigr.runtime.copies import Cache

cache = Cache(Path(sys.argv[1]), 150_000)

def fetch(key):
    def write(path):
        with path.open("wb") as file:
            for _ in range(10):
                file.write(key.encode() * 1000)
                file.flush()
                time.sleep(0.0005)
    return write

for number in range(80):
    key = f"{number * int(sys.argv[2]) % 4:010d}"
    with cache.open(key, fetch(key)) as stream:
        assert stream.read() == key.encode() * 10_000, key
"""


def test_several_processes_share_the_cache(tmp_path: Path) -> None:
    steps = ("1", "3", "1")
    command = [sys.executable, "-c", READER, str(tmp_path / "cache")]
    readers = [subprocess.Popen([*command, step], stderr=subprocess.PIPE) for step in steps]
    errors = [reader.communicate(timeout=60)[1].decode() for reader in readers]
    assert [reader.returncode for reader in readers] == [0, 0, 0], errors
    assert used(tmp_path) <= 150_000


KILLED = """\
import os, signal, sys
from pathlib import Path
from bigr.runtime.copies import Cache

def fetch(path):
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

Cache(Path(sys.argv[1]), 100).open(sys.argv[2], fetch)
"""


def test_what_a_killed_process_has_left_is_no_copy(tmp_path: Path) -> None:
    for key in ("x", "y"):
        killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "cache"), key])
        assert killed.returncode == -signal.SIGKILL and used(tmp_path)
    with Cache(tmp_path / "cache", 100).open("x", lambda path: path.write_bytes(b"whole") and None) as stream:
        assert stream.read() == b"whole"
    assert used(tmp_path) == len(b"whole")


# Failures


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        *((source, fault) for source in ("tars/x-2.tar", "images") for fault in ("500", "drop", "429", "half")),
        ("tars/x-2.tar", "cut"),
    ],
)
def test_a_read_that_fails_twice_is_tried_again(
    source: str, fault: str, here: Path, web: tuple[str, Any], tmp_path: Path
) -> None:
    url, handler = web
    file = "/tars/x-2.tar" if source != "images" else "/images/val/class%200/a%20b8.png"
    handler.faults = {file: [fault] * 2}
    if source == "images" and fault != "half":
        handler.faults["/images/train/"] = [fault] * 2
    assert packed(f"{url}/{source}", tmp_path / "web") == packed(str(here / source), tmp_path / "local")
    assert not any(handler.faults.values())


@pytest.mark.parametrize("fault", ["503", "drop", "half"])
def test_a_read_that_always_fails_is_one_line_soon(fault: str, web: tuple[str, Any], tmp_path: Path) -> None:
    url, handler = web
    handler.faults = {"/tars/x-2.tar": [fault] * 100}
    said = complaint(f"{url}/tars/x-2.tar", tmp_path)
    assert f"{url}/tars/x-2.tar cannot be read (" in said
    assert handler.asked["/tars/x-2.tar"] <= 20


@pytest.mark.parametrize("fault", ["503", "drop", "half"])
def test_an_image_that_its_storage_does_not_give_ends_the_packing_and_is_not_left_out(
    fault: str, web: tuple[str, Any], tmp_path: Path
) -> None:
    url, handler = web
    handler.faults = {"/images/val/class%200/a%20b8.png": [fault] * 100}
    found = opened(f"{url}/images", tmp_path)
    found.prepare(tmp_path / "partial")
    with pytest.raises(BigrError, match=r"a b8\.png cannot be read.*try again later"):
        pack(found, tmp_path / "shards", tmp_path / "partial", Packing(SIZE, 7, 1000), max_bad_fraction=1, workers=1)
    assert not (tmp_path / "shards").exists()


def test_a_file_that_is_refused_or_missing_is_not_tried_again(web: tuple[str, Any], tmp_path: Path) -> None:
    url, handler = web
    handler.faults = {"/tars/x-2.tar": ["401"] * 9, "/tars/x-1.tar": ["400"] * 9}
    assert re.search("access denied.*credentials", complaint(f"{url}/tars/x-2.tar", tmp_path))
    assert "400" in complaint(f"{url}/tars/x-1.tar", tmp_path)
    assert "x-9.tar does not exist" in complaint(f"{url}/tars/x-9.tar", tmp_path)
    assert all(handler.asked[f"/tars/x-{number}.tar"] <= 2 for number in (1, 2, 9)), "HEAD, and perhaps GET"


def test_a_file_may_take_longer_than_a_web_client_allows_by_itself(
    here: Path, web: tuple[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import aiohttp

    default = aiohttp.ClientTimeout(total=0.3)
    monkeypatch.setattr("aiohttp.client.DEFAULT_TIMEOUT", default)
    (here / "slow.bin").write_bytes(bytes(12_000))
    assert len(read(remote(tmp_path, 10**6, web[0]), "slow.bin")) == 12_000


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("s3://no-such-bucket/images", "s3://no-such-bucket/images does not exist"),
        (f"s3://{BUCKET}/nothing", f"s3://{BUCKET}/nothing does not exist"),
        (f"s3://{BUCKET}/tars/x-9.tar", f"s3://{BUCKET}/tars/x-9.tar does not exist"),
        (f"s3://{BUCKET}/tars/x-{{3..5}}.tar", f"s3://{BUCKET}/tars/x-4.tar does not exist"),
        ("s3://bucket{0..3}/x.tar", "braces must come after the bucket"),
        ("foo://bucket/images", "foo.*use s3://"),
        ("http://127.0.0.1:1/x.tar?key=1", "an address with [?] is not read; leave out"),
        ("http://127.0.0.1:1/x.tar", "http://127.0.0.1:1/x.tar cannot be read"),
    ],
)
def test_what_is_not_there_is_named(source: str, said: str, s3: Any, tmp_path: Path) -> None:
    assert re.search(said, complaint(source, tmp_path))


def check_credentials(after: bytes) -> None:
    """Have the server of S3 check them, once it has answered so many requests."""
    address = os.environ["AWS_ENDPOINT_URL"] + "/moto-api/reset-auth"
    urllib.request.urlopen(urllib.request.Request(address, after, {"Content-Type": "text/plain"})).close()


def test_wrong_and_missing_credentials_are_told_at_once(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("tried again"))
    check_credentials(after=b"0")
    try:
        for source in ("images", "tars/x-2.tar"):
            assert re.search("access denied.*check the credentials", complaint(f"s3://{BUCKET}/{source}", tmp_path))
    finally:
        check_credentials(after=b"inf")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    fsspec.filesystem("s3").clear_instance_cache()
    try:
        assert re.search("credentials", complaint(f"s3://{BUCKET}/images", tmp_path))
    finally:
        fsspec.filesystem("s3").clear_instance_cache()


@pytest.mark.parametrize(
    ("source", "module", "remedy"),
    [
        ("s3://bucket/images", "s3fs", "pip install 'bigr[s3]'"),
        ("gs://bucket/images", "gcsfs", "pip install 'bigr[gs]'"),
        ("https://127.0.0.1:1/x.tar", "aiohttp", "pip install aiohttp"),
    ],
)
def test_a_missing_package_is_named(
    source: str, module: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    loaded = sys.modules["fsspec.registry"]._registry  # type: ignore[attr-defined]
    monkeypatch.delitem(loaded, source.partition("://")[0], raising=False)
    assert remedy in complaint(source, tmp_path)


def test_a_full_disk_is_told_with_the_folder_of_the_cache(tmp_path: Path) -> None:
    def fetch(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(BigrError, match=f"{tmp_path}.*No space left.*lower run.cache_gb"):
        Cache(tmp_path, 100).open("x", fetch)


# DVC


def test_dvc_runs_shards_again_where_a_remote_file_has_changed(s3: Any, web: tuple[str, Any], tmp_path: Path) -> None:
    for value in range(24):
        key = f"project/{('train', 'val')[value % 3 == 2]}/class {value % 2}/{value}.png"
        s3.put_object(Bucket=BUCKET, Key=key, Body=png(value))
    project = scratch.make(tmp_path, real=True)
    source = f"s3://{BUCKET}/project"
    tiny.apply(project / "params.yaml", tiny.OVERRIDES | {"shards.source": source})

    def repro() -> tuple[bool, str]:
        said = scratch.run(project, "dvc", "repro", "shards")
        index = (project / "data" / "shards" / "index.json").read_bytes()
        return "Running stage 'shards'" in said, hashlib.sha256(index).hexdigest()

    def in_lock() -> str:
        deps = config.read(project / "dvc.lock")["stages"]["shards"]["deps"]
        entry = next(dep for dep in deps if dep["path"] == source)
        return str(next(entry[key] for key in dvcfile.HASHES if key in entry))

    ran, first = repro()
    assert ran and in_lock() == dvcfile.content_hashes(project, [source])[source]
    assert repro() == (False, first)
    s3.put_object(Bucket=BUCKET, Key="project/train/class 0/0.png", Body=png(99))
    assert in_lock() != dvcfile.content_hashes(project, [source])[source], "asked for anew, before dvc.lock has it"
    ran, second = repro()
    assert ran and second != first
    before = source, in_lock()

    source = f"{web[0]}/tars/x-2.tar"
    tiny.apply(project / "params.yaml", {"shards.source": source})
    ran, third = repro()
    assert ran and third != second
    with contextlib.closing(sqlite3.connect(project / "mlflow.db")) as records:
        recorded = set(records.execute("select name, digest from datasets"))
    assert recorded >= {before, (source, in_lock()[:36])}
    assert source in scratch.run(project, "bigr", "lineage", "data/shards", COLUMNS="200")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (f"s3://{BUCKET}/tars/x-{{0..3}}.tar", "write a manifest.*--manifest"),
        ("file:///data/images", "name the path alone, /data/images"),
        ("foo://bucket/images", "DVC knows no foo://; name s3://"),
    ],
)
def test_what_dvc_cannot_follow_is_told_by_the_check(source: str, said: str, tmp_path: Path) -> None:
    values = config.read(scratch.ROOT / "params.yaml")
    values["shards"]["source"] = source
    with pytest.raises(BigrError, match=said):
        check.check_files(tmp_path, config.validate(values, "params.yaml"), ["shards"])
