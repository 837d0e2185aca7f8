"""Every kind of source, from its files to shards: pixels, labels, names, captions and splits; what a run repeats."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bigr.data import image_batches, packed_parts, packing
from bigr.data.codes import Encoding, encode_shard, place_shards
from bigr.data.image_batches import ImageBatches
from bigr.data.packed_parts import Packing, pack_part
from bigr.data.packing import pack
from bigr.data.shards import ShardIndex, load_split
from bigr.data.sources.source import Source
from bigr.runtime.errors import BigrError
from tests.source_files import (
    ALL,
    NAMES,
    SIZE,
    TRAIN,
    VAL,
    cifar,
    folder,
    idx_set,
    manifest,
    npz,
    opened,
    packed,
    parquet,
    pixels,
    png,
    put,
    rows,
    sample,
    stack,
    table,
    tar,
    tars,
)

FASHION = Path("/usr/share/datasets/fashion-mnist")


def images_in(folder: Path, split: str, grey: bool = False) -> dict[int, int]:
    """The value of each image, in order, and its label; its pixels are compared."""
    index = ShardIndex.load(folder)
    found = {}
    for image, label in zip(*load_split(folder, split), strict=True):
        value = int(image[1, 2, 2])
        expected = torch.from_numpy(pixels(value, grey, index.image_size)).permute(2, 0, 1)
        assert torch.equal(image, expected), f"image {value} has other pixels"
        found[value] = int(label)
    assert len(found) == index.images(split)
    return found


def members_of(folder: Path, suffix: str) -> list[bytes]:
    found = []
    for split in ("train", "val"):
        for file in ShardIndex.load(folder).tars(split):
            with tarfile.open(file.path) as tar:
                found += [tar.extractfile(m).read() for m in tar if m.name.endswith(suffix)]  # type: ignore[union-attr]
    return found


@dataclass
class Kind:
    """A source and what is in it. split: "given", or how many of 12 images are held out; None where that is drawn."""

    make: Callable[[Path], Path | str]
    kind: str
    classes: list[str]
    split: str | int | None = "given"
    captions: bool = False
    grey: bool = False
    size: int = SIZE


DRAWN: dict[str, Any] = {"fraction": 0.4, "seed": 4}
"""With which each class has images in both splits, where each image is drawn."""
NUMBERS, ONE = ["0", "1", "2"], ["image"]
KINDS = {
    "class folders": Kind(
        lambda r: folder(folder(r, TRAIN, "train/{label}/"), VAL, "val/{label}/"), "image folder", NUMBERS
    ),
    "captions beside": Kind(lambda r: folder(r, ALL, captions=True), "image folder", NUMBERS, 3, captions=True),
    "captions alone": Kind(lambda r: folder(r, ALL, "", True), "image folder", ONE, 3, captions=True),
    "metadata.jsonl": Kind(
        lambda r: table(
            folder(folder(r, TRAIN, "train/"), VAL, "val/"),
            "metadata.jsonl",
            rows(TRAIN, "text", "label", prefix="train/") + rows(VAL, "text", "label", prefix="val/"),
        ),
        "image folder",
        NUMBERS,
        captions=True,
    ),
    "metadata.csv and labels.txt": Kind(
        lambda r: (
            put(table(folder(r, ALL, ""), "metadata.csv", rows(ALL, "label")) / "labels.txt", "\n".join(NAMES)).parent
        ),
        "image folder",
        NAMES,
        3,
    ),
    "captions.csv and folders": Kind(
        lambda r: table(
            folder(folder(r, TRAIN, "train/{label}/"), VAL, "val/{label}/"),
            "captions.csv",
            [row for v in ALL for row in rows([v], "text", prefix=f"{'train' if v in TRAIN else 'val'}/{v % 3}/")],
        ),
        "image folder",
        NUMBERS,
        captions=True,
    ),
    "captions.csv of one folder": Kind(
        lambda r: table(folder(r, ALL, "train/"), "captions.csv", rows(ALL, "text", prefix="train/")),
        "image folder",
        ONE,
        3,
        captions=True,
    ),
    "IDX": Kind(idx_set, "IDX files", NUMBERS, grey=True),
    "IDX, one file": Kind(
        lambda r: idx_set(idx_set(r, "a-"), "b-", end=".gz") / "b-train-images-idx3-ubyte.gz",
        "IDX files",
        NUMBERS,
        grey=True,
    ),
    "EMNIST": Kind(
        lambda r: (
            put(
                idx_set(r, "emnist-letters-", "test", ".gz", first_label=1) / "emnist-letters-mapping.txt",
                "1 65 97\n2 66 98\n3 67 99\n",
            ).parent
        ),
        "IDX files",
        ["A", "B", "C"],
        grey=True,
    ),
    "CIFAR-10": Kind(cifar, "CIFAR-10, binary", NAMES, size=32),
    "CIFAR-100": Kind(lambda r: cifar(r, True), "CIFAR-100, binary", NAMES, size=32),
    "npz": Kind(
        lambda r: npz(r / "a.npz", arr_0=stack(ALL), arr_1=np.array([[v % 3] for v in ALL])), "npz file", NUMBERS, 3
    ),
    "npz, planes first, in a folder": Kind(
        lambda r: (
            put(
                npz(
                    r / "a.npz",
                    x_train=stack(TRAIN).transpose(0, 3, 1, 2).copy(),
                    y_train=np.array([v % 3 for v in TRAIN], ">i2"),
                    x_test=stack(VAL),
                    y_test=np.array([v % 3 for v in VAL]),
                ).with_name("class_names.json"),
                json.dumps({str(number): name for number, name in enumerate(NAMES)}),
            ).parent
        ),
        "npz file",
        NAMES,
    ),
    "npz, grey": Kind(lambda r: npz(r / "a.npz", arr_0=stack(ALL, True)[..., 0]), "npz file", ONE, 3, grey=True),
    "tar files": Kind(
        lambda r: tars(r, train=(sample(v, txt=f"number {v}") for v in TRAIN), val=map(sample, VAL)).parent / r.name,
        "webdataset shards",
        NUMBERS,
        captions=True,
    ),
    "a compressed tar, with JSON": Kind(
        lambda r: tar(
            r / "a.tgz",
            ({"png": png(v), "json": json.dumps({"label": v % 3, "caption": f"number {v}"})} for v in ALL),
            "w:gz",
        ),
        "webdataset shards",
        NUMBERS,
        None,
        captions=True,
    ),
    "tar files by a pattern": Kind(
        lambda r: str(
            put(
                tars(r, **{f"s-{n}": map(sample, ALL[n * 3 : n * 3 + 3]) for n in range(4)}) / "labels.txt",
                "\n".join(NAMES),
            ).with_name("s-{0..3}.tar")
        ),
        "webdataset shards",
        NAMES,
        3,
    ),
    "parquet of Hugging Face": Kind(
        lambda r: parquet(
            parquet(r / "data" / "train-00000-of-00001.parquet", TRAIN, names=NAMES).with_name(
                "test-00000-of-00001.parquet"
            ),
            VAL,
        ).parents[1],
        "parquet files",
        NAMES,
    ),
    "parquet, one file": Kind(
        lambda r: parquet(
            r / "a.parquet",
            ALL,
            bare=True,
            text=[f"number {v}" for v in ALL],
            label=[f"class {v % 3 + 9}" for v in ALL],
        ),
        "parquet files",
        ["class 9", "class 10", "class 11"],
        None,
        captions=True,
    ),
    "manifest of a folder": Kind(
        lambda r: manifest(folder(r / "x", ALL, captions=True), r / "m.arrow"),
        "image folder",
        NUMBERS,
        3,
        captions=True,
    ),
    "manifest of tar files": Kind(
        lambda r: manifest(tars(r / "x", train=map(sample, TRAIN), val=map(sample, VAL)), r / "m.arrow"),
        "webdataset shards",
        NUMBERS,
    ),
    "manifest of parquet files": Kind(
        lambda r: manifest(parquet(r / "x" / "a.parquet", ALL, names=NAMES), r / "m.arrow"),
        "parquet files",
        NAMES,
        None,
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_shards_hold_what_the_source_holds(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    source = kind.make(tmp_path / "source")
    assert opened(source).kind == kind.kind
    counts = packed(source, tmp_path / "shards", size=kind.size, **DRAWN if kind.split is None else {})
    index = json.loads((tmp_path / "shards" / "index.json").read_text())
    assert index["classes"] == kind.classes and counts["bad_files"] == 0
    train, val = (images_in(tmp_path / "shards", split, kind.grey) for split in ("train", "val"))
    number = 3 if len(kind.classes) > 1 else 1
    assert train | val == {value: value % number for value in ALL} and len(train) + len(val) == len(ALL)
    assert index["splits"]["val"]["class_counts"] == [list(val.values()).count(label) for label in range(number)]
    if kind.split == "given":
        assert set(val) == set(VAL)
    else:
        assert len(val) == kind.split if kind.split is not None else 0 < len(val) < 12
    texts = sorted(text.decode() for text in members_of(tmp_path / "shards", ".txt"))
    captioned = sum(index["splits"][split].get("captions", 0) for split in ("train", "val"))
    assert captioned == counts.get("captions", 0) == len(texts)
    assert texts == [f"number {value}" for value in (TRAIN if name == "tar files" else ALL) if kind.captions]
    modes = {Image.open(io.BytesIO(data)).mode for data in members_of(tmp_path / "shards", ".png")}
    assert modes == {"L" if kind.grey else "RGB"}
    assert not (tmp_path / "partial").exists()


@pytest.mark.skipif(not FASHION.exists(), reason=f"{FASHION} (Debian's dataset-fashion-mnist) is not there")
def test_fashion_mnist(tmp_path: Path) -> None:
    found = opened(FASHION)
    found.prepare(tmp_path)
    assert found.counts() == {"train": 60000, "val": 10000} and found.classes == [str(number) for number in range(10)]
    with gzip.open(FASHION / "train-images-idx3-ubyte.gz") as stream:
        raw = np.frombuffer(stream.read()[16:], np.uint8).reshape(-1, 28, 28)
    with gzip.open(FASHION / "train-labels-idx1-ubyte.gz") as stream:
        labels = stream.read()[8:]
    for one in islice(found.read(next(part for part in found.parts(1000) if part.split == "train")), 50):
        place = int(one.name.rpartition("[")[2].rstrip("]"))
        assert np.array_equal(one.image, raw[place]) and one.label == labels[place]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["captions beside", "npz", "a compressed tar, with JSON", "parquet, one file"])
def test_split_and_order_follow_from_the_seed(tmp_path: Path, name: str) -> None:
    source = KINDS[name].make(tmp_path / "source")

    def drawn(seed: int) -> list[tuple[int, bool]]:
        packed(source, tmp_path / "shards", seed=seed, fraction=0.4)
        return [
            (value, split == "val") for split in ("train", "val") for value in images_in(tmp_path / "shards", split)
        ]

    first = drawn(4)
    assert drawn(4) == first and drawn(5) != first


# What a second run, or several processes, repeat


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def killed_after(parts: int, monkeypatch: pytest.MonkeyPatch, source: Path | str, folder: Path, **options: Any) -> None:
    """Pack until `parts` parts are finished and the next one has begun."""
    calls, whole = list[str](), packed_parts.stored

    def stored(*args: Any) -> Image.Image:
        if len(calls) > parts:
            raise KeyboardInterrupt
        return whole(*args)

    def counted(source: Source, packing_: Packing, job: Any) -> Any:
        calls.append(job[1].name)
        return pack_part(source, packing_, job)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(packed_parts, "stored", stored)
        patch.setattr(packing, "pack_part", counted)
        packed(source, folder, **options)


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.glob("*.tar")}


@pytest.mark.parametrize("name", ["captions beside", "npz", "parquet of Hugging Face"])
def test_a_run_after_a_kill_packs_the_rest_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    source = KINDS[name].make(tmp_path / "source")
    packed(source, tmp_path / "whole" / "shards")
    killed_after(1, monkeypatch, source, tmp_path / "shards")
    before = inodes(tmp_path / "partial")
    assert before and all(name.startswith("train-000000") for name in before)
    assert not list((tmp_path / "partial").glob("*.part"))
    packed(source, tmp_path / "shards")
    after = inodes(tmp_path / "shards")
    assert len(after) > len(before) and before.items() <= after.items()
    assert files(tmp_path / "shards") == files(tmp_path / "whole" / "shards")


def test_what_changed_since_the_kill_is_packed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder(tmp_path / "source", ALL, captions=True)
    killed_after(2, monkeypatch, source, tmp_path / "shards", most=4)
    before = inodes(tmp_path / "partial")
    assert list(before) and len(before) == 2
    with tarfile.open(tmp_path / "partial" / "train-000000.tar") as archive:
        changed = next(archive.extractfile(m).read() for m in archive if m.name.endswith("txt"))  # type: ignore[union-attr]
    caption = next(path for path in source.rglob("*.txt") if path.read_bytes().strip() == changed)
    caption.write_text("another caption")
    packed(source, tmp_path / "shards", most=4)
    after = inodes(tmp_path / "shards")
    assert after["train-000001.tar"] == before["train-000001.tar"]
    assert after["train-000000.tar"] != before["train-000000.tar"]
    assert b"another caption" in members_of(tmp_path / "shards", ".txt")


@pytest.mark.parametrize("name", ["npz", "two drawn tars", "two drawn parquets"])
def test_parts_of_another_seed_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    halves = (range(10, 16), range(16, 22))
    for number, values in enumerate(halves):
        if "tars" in name:
            tar(tmp_path / "source" / f"{number}.tgz", map(sample, values), "w:gz")
        elif "parquets" in name:
            parquet(tmp_path / "source" / f"{number}.parquet", values)
    source = KINDS["npz"].make(tmp_path / "source") if name == "npz" else tmp_path / "source"
    packed(source, tmp_path / "whole" / "shards", fraction=0.24, seed=5)
    killed_after(1, monkeypatch, source, tmp_path / "shards", fraction=0.24, seed=3)
    packed(source, tmp_path / "shards", fraction=0.24, seed=5)
    assert files(tmp_path / "shards") == files(tmp_path / "whole" / "shards")


def test_shards_of_two_killed_runs_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tar(tmp_path / "source.tgz", map(sample, ALL), "w:gz")
    packed(source, tmp_path / "whole" / "shards", most=3)

    def interrupt() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(packing, "barrier", interrupt)  # the part is finished, the folder of shards is not
        packed(source, tmp_path / "shards", most=3)
    whole, calls = packed_parts.stored, list[object]()

    def stored(*args: Any) -> Image.Image:
        calls.append(args)
        return whole(*args) if len(calls) < len(ALL) else interrupt()  # type: ignore[func-returns-value, return-value]

    before = inodes(tmp_path / "partial")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(packed_parts, "stored", stored)
        packed(source, tmp_path / "shards", most=3, size=2 * SIZE)  # some shards take the place of finished ones
    assert inodes(tmp_path / "partial") != before
    packed(source, tmp_path / "shards", most=3)
    assert files(tmp_path / "shards") == files(tmp_path / "whole" / "shards")


@pytest.mark.parametrize("name", ["captions beside", "tar files by a pattern", "parquet of Hugging Face"])
def test_two_processes_of_torchrun_write_what_one_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    source = opened(KINDS[name].make(tmp_path / "source"))
    written: dict[int, set[str]] = {}
    here = 0

    def run(root: Path, met: Callable[[], None] = lambda: None) -> dict[str, int]:
        monkeypatch.setattr(packing, "barrier", met)
        source.prepare(root / "partial")
        options = {"max_bad_fraction": 0.0, "workers": 1}
        return pack(source, root / "shards", root / "partial", Packing(4, 4, 10**6), **options)  # type: ignore[arg-type]

    def other() -> None:
        """The second process begins once the first one has packed its share."""
        nonlocal here
        if not here:
            here, shared = 1, tmp_path / "two"
            written[0] = {path.name for path in (shared / "partial").glob("*.tar")}
            assert run(shared) == {}
            written[1] = {path.name for path in (shared / "partial").glob("*.tar")} - written[0]
            here = 0
            monkeypatch.setattr(packing, "barrier", lambda: None)

    alone = run(tmp_path / "one")
    monkeypatch.setattr(packing, "rank", lambda: here)
    monkeypatch.setattr(packing, "is_main", lambda: here == 0)
    monkeypatch.setattr(packing, "by_first", lambda work: {} if here else work())
    monkeypatch.setattr(packing, "world", lambda: 2)
    assert run(tmp_path / "two", other) == alone and all(written.values())
    assert files(tmp_path / "one" / "shards") == files(tmp_path / "two" / "shards")
    with pytest.raises(BigrError, match=r"partial/\S+ is missing.*need the same folder"):
        run(tmp_path / "apart")  # the second process has written to a folder of its own


# Tars that are used as they are


def test_tars_that_fit_are_used_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = Image.fromarray(pixels(99, True)).convert("L")
    with io.BytesIO() as stream:
        grey.save(stream, format="PNG")
        fits = [sample(v, txt="a") for v in TRAIN[:4]] + [sample(99, png=stream.getvalue())]
    broken = png(TRAIN[7])[:60]  # with a whole header
    mine = tmp_path / "tars"
    tars(
        mine,
        **{
            "train-0": fits,
            "train-1": [sample(TRAIN[4]), sample(TRAIN[5], png=png(TRAIN[5], size=2 * SIZE))],
            "train-2": [sample(TRAIN[6]), sample(TRAIN[7], png=broken)],
            "val-0": map(sample, VAL),
        },
    )
    before = inodes(mine)
    shards = tmp_path / "data" / "shards"
    counts = packed(mine, shards, max_bad_fraction=0.1)
    index = json.loads((shards / "index.json").read_text())["splits"]
    assert [shard["name"] for split in ("train", "val") for shard in index[split]["shards"]] == [
        "../../tars/train-0.tar",
        "train-000001.tar",
        "train-000002.tar",
        "../../tars/val-0.tar",
    ]
    assert (counts["train_images"], counts["bad_files"], counts["captions"]) == (8, 1, 4) and inodes(mine) == before
    (bad,) = json.loads((shards / "report.json").read_text())["bad"]
    assert bad["file"] == "train-2.tar: a/001" and bad["reason"]
    values = {int(image[1, 2, 2]) for image in load_split(shards, "train")[0]}
    assert values == {*TRAIN[:7], 99}

    for limit in (1 << 30, 0):  # in memory, and streamed
        monkeypatch.setattr(image_batches, "_IN_MEMORY_BYTES", limit)
        batches = ImageBatches(shards, "train", 8, seed=0, horizontal_flip=False, workers=limit and 1)
        images, labels = next(batches.from_step(0))
        shown = {round(float(image[1, 2, 2]) * 255): int(label) for image, label in zip(images, labels, strict=True)}
        assert shown == {value: value % 3 for value in values}

    class Encoder:
        def encode(self, images: torch.Tensor) -> torch.Tensor:
            return images[:, :, :2, 2].transpose(1, 2).repeat(1, 2, 1)

    done: list[int] = []
    for placed in place_shards(ShardIndex.load(shards)):
        encoding = Encoding(3, 2, ["identity"], "a" * 64, 0, 0)
        options = {"batch_size": 4, "device": torch.device("cpu"), "workers": 1, "advance": done.append}
        encode_shard(Encoder(), placed, tmp_path / placed.codes_name, encoding, **options)  # type: ignore[arg-type]
    assert sum(done) == 12

    packed(mine, tmp_path.parent / f"{tmp_path.name}-elsewhere" / "data" / "shards", max_bad_fraction=0.1)
    other = ShardIndex.load(tmp_path.parent / f"{tmp_path.name}-elsewhere" / "data" / "shards")
    assert other.splits["train"]["shards"][0]["name"] == str(mine / "train-0.tar")


def test_a_tar_with_other_members_between_its_images_is_written_anew(tmp_path: Path) -> None:
    mine = tars(tmp_path / "tars", val=map(sample, VAL))
    with tarfile.open(mine / "train.tar", "w") as archive:
        for value in TRAIN[:3]:
            directory = tarfile.TarInfo(f"d{value}")
            directory.type = tarfile.DIRTYPE
            archive.addfile(directory)
            for suffix, data in (("png", png(value)), ("cls", str(value % 3).encode())):
                member = tarfile.TarInfo(f"d{value}/0.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    packed(mine, tmp_path / "shards")
    assert [tar.path.name for tar in ShardIndex.load(tmp_path / "shards").tars("train")] == ["train-000000.tar"]
    assert images_in(tmp_path / "shards", "train") == {value: value % 3 for value in TRAIN[:3]}
