"""What is wrong with a source is one line that names the file and the remedy; a list of images takes little memory."""

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigr.data.sources import storage
from bigr.runtime.errors import BigrError
from tests.source_files import (
    ALL,
    NAMES,
    TRAIN,
    VAL,
    cifar,
    folder,
    idx,
    idx_set,
    manifest,
    npz,
    opened,
    packed,
    parquet,
    png,
    put,
    rows,
    sample,
    stack,
    table,
    tar,
    tars,
)

Change = Callable[[bytes], bytes]


def changed(path: Path, change: Change) -> Path:
    path.write_bytes(change(path.read_bytes()))
    return path


def gone(path: Path) -> Path:
    path.unlink()
    return path.parent


def cut(root: Path, name: str, **options: Any) -> Path:
    """IDX files of which one has lost half of its images, or its last label."""
    return changed(
        idx_set(root, **options) / name, lambda data: data[: len(data) // 2 if "images" in name else -1]
    ).parent


def lines(root: Path, *texts: str | bytes, name: str = "metadata.jsonl") -> Path:
    """A folder of images with the lines of a table that is made by hand."""
    return put(folder(root, ALL, "") / name, b"\n".join(t.encode() if isinstance(t, str) else t for t in texts)).parent


def lost(root: Path) -> Path:
    path = manifest(folder(root / "x", ALL), root / "m.arrow")
    (root / "x").rename(root / "y")
    return path


def two(root: Path, **second: Any) -> Path:
    """A tar of good images and one that is not, with a split that its name tells."""
    members = {key: value for key, value in sample(TRAIN[0], **second).items() if value is not None}
    return tars(root, train=[*map(sample, TRAIN), members], val=map(sample, VAL))


LINE = '{"file_name": "10.png", "text": "a"}'
BAD: dict[str, tuple[Callable[[Path], Path | str], str]] = {
    "IDX images cut off": (
        lambda r: cut(r, "train-images-idx3-ubyte"),
        r"train-images-idx3-ubyte is cut off: 512 bytes",
    ),
    "IDX images of gzip cut off": (
        lambda r: cut(r, "train-images-idx3-ubyte.gz", end=".gz"),
        r"train-images-idx3-ubyte.gz cannot be read \(Compressed file ended.*get it again",
    ),
    "IDX labels cut off": (
        lambda r: cut(r, "t10k-labels-idx1-ubyte"),
        "holds 4 images, t10k-labels-idx1-ubyte 3 labels",
    ),
    "IDX of no gzip": (
        lambda r: put(idx_set(r, end=".gz") / "train-images-idx3-ubyte.gz", b"html").parent,
        r"train-images-idx3-ubyte.gz cannot be read \(Not a gzipped file",
    ),
    "IDX header": (
        lambda r: changed(idx_set(r) / "train-images-idx3-ubyte", lambda data: data[:10]).parent,
        "train-images-idx3-ubyte is cut off; get it again",
    ),
    "IDX of floats": (
        lambda r: changed(idx_set(r) / "train-images-idx3-ubyte", lambda data: data[:2] + b"\x0d" + data[3:]).parent,
        "train-images-idx3-ubyte is not an IDX file of bytes",
    ),
    "IDX without labels": (
        lambda r: gone(idx_set(r) / "train-labels-idx1-ubyte"),
        "train-labels-idx1-ubyte.gz, are missing",
    ),
    "IDX of another count": (
        lambda r: put(idx_set(r) / "train-labels-idx1-ubyte", idx(np.zeros(7, np.uint8))).parent,
        "holds 8 images, train-labels-idx1-ubyte 7 labels",
    ),
    "IDX of 2 channels": (
        lambda r: (
            put(
                gone(idx_set(r) / "train-images-idx3-ubyte") / "train-images-idx4-ubyte",
                idx(np.zeros((8, 4, 4, 2), np.uint8)),
            ).parent
        ),
        "2 channels; they must have 1 or 3",
    ),
    "IDX without an image": (
        lambda r: (
            put(
                put(idx_set(r) / "train-images-idx3-ubyte", idx(np.zeros((0, 8, 8), np.uint8))).with_name(
                    "train-labels-idx1-ubyte"
                ),
                idx(np.zeros(0, np.uint8)),
            ).parent
        ),
        "train-images-idx3-ubyte holds no image",
    ),
    "IDX of test alone": (
        lambda r: gone(idx_set(r) / "train-images-idx3-ubyte"),
        "no training images, only those of t10k",
    ),
    "IDX of a class of test alone": (
        lambda r: put(idx_set(r) / "t10k-labels-idx1-ubyte", idx(np.full(4, 7, np.uint8))).parent,
        "images of class 7, which train-images-idx3-ubyte has not",
    ),
    "several IDX sets": (lambda r: idx_set(idx_set(r, "a-"), "b-"), r"several IDX data sets \(a, b\); name .* a-t"),
    "EMNIST's mapping": (
        lambda r: put(idx_set(r, "emnist-x-", "test") / "emnist-x-mapping.txt", "a b").parent,
        "emnist-x-mapping.txt must have a label and the code",
    ),
    "too few names": (lambda r: put(idx_set(r) / "labels.txt", "a\nb").parent, "2 class names are given.*3 classes"),
    "a name twice": (lambda r: put(idx_set(r) / "labels.txt", "a\nb\na").parent, "labels.txt has the class 'a' twice"),
    "names not UTF-8": (lambda r: put(idx_set(r) / "labels.txt", b"\xff").parent, "labels.txt cannot be read"),
    "names by number with a gap": (
        lambda r: put(idx_set(r) / "class_names.json", '{"0": "a", "2": "b"}').parent,
        "class_names.json cannot be read",
    ),
    "a name of half a character": (
        lambda r: put(idx_set(r) / "class_names.json", r'["a", "\ud800", "b"]').parent,
        "class_names.json has a class name that is not valid text",
    ),
    "CIFAR's pickles": (lambda r: put(r / "data_batch_1", pickle.dumps({})).parent, "pickles.*get the binary version"),
    "CIFAR of another size": (
        lambda r: changed(cifar(r) / "data_batch_3.bin", lambda data: data[:-1]).parent,
        "data_batch_3.bin has 6,145 bytes, not a multiple of 3,073",
    ),
    "CIFAR without a batch": (lambda r: gone(cifar(r) / "data_batch_4.bin"), "has no data_batch_4.bin"),
    "CIFAR of another label": (
        lambda r: changed(cifar(r) / "data_batch_1.bin", lambda data: b"\x09" + data[1:]).parent,
        "3 class names are given.*4 classes, 0 to 9",
    ),
    "npz of objects": (lambda r: npz(r / "a.npz", arr_0=np.array([{}])), r"a.npz: arr_0 must be uint8 .*got object"),
    "npz of floats": (lambda r: npz(r / "a.npz", arr_0=stack(ALL) / 255), "arr_0 must be uint8 .*got float64"),
    "npz of one image": (lambda r: npz(r / "a.npz", arr_0=stack(ALL)[0, 0]), r"arr_0 must be uint8 .*\[8, 3\]"),
    "npz of 5 channels": (lambda r: npz(r / "a.npz", arr_0=np.zeros((2, 8, 8, 5), np.uint8)), r"\[2, 8, 8, 5\]"),
    "npz with labels of objects": (
        lambda r: npz(r / "a.npz", arr_0=stack(ALL), arr_1=np.array([None] * 12)),
        "arr_1 must be integers, got object",
    ),
    "npz with too few labels": (
        lambda r: npz(r / "a.npz", arr_0=stack(ALL), arr_1=np.zeros(5, int)),
        "arr_1 has 5 numbers, arr_0 12 images",
    ),
    "npz of other names": (lambda r: npz(r / "a.npz", pictures=stack(ALL)), "has pictures; images must be in x_train"),
    "npz cut off": (
        lambda r: changed(npz(r / "a.npz", arr_0=stack(ALL)), lambda data: data[:-50]),
        r"a.npz cannot be read .*zip file",
    ),
    "several npz": (
        lambda r: npz(npz(r / "a.npz", arr_0=stack(ALL)).with_name("b.npz")).parent,
        "2 .npz files; name one",
    ),
    "a tar cut off": (
        lambda r: changed(two(r) / "train.tar", lambda data: data[:5000]).parent,
        "train.tar cannot be read as a tar file",
    ),
    "a tar of something else": (
        lambda r: put(two(r) / "val.tar", b"x" * 2000).parent,
        "val.tar cannot be read as a tar",
    ),
    "an empty tar": (lambda r: tar(r / "a.tar", []), "a.tar has no image"),
    "a tar.gz cut off": (
        lambda r: changed(tar(r / "a.tgz", map(sample, ALL), "w:gz"), lambda data: data[:-200]),
        "a.tgz cannot be read",
    ),
    "a tar without an image": (lambda r: two(r, png=None, gif=b"x"), r"train.tar: a/008 \(no image among .*cls, gif"),
    "a tar without a class": (lambda r: two(r, cls=None), r"train.tar: a/008 \(it has no class"),
    "a tar whose first image alone has no class": (
        lambda r: tars(r, train=[{"png": png(10)}, sample(11)], val=map(sample, VAL[:1])),
        "it has a class, the first image has none",
    ),
    "a tar whose first image has broken JSON": (
        lambda r: tars(r, train=[sample(10, json="{")], val=map(sample, VAL)),
        r"train.tar: a/000: its .json cannot be read",
    ),
    "a tar with a member twice": (
        lambda r: tars(r, train=[sample(10, PNG=png(11))], val=map(sample, VAL)),
        r"train.tar holds a/000.PNG twice; give it another name",
    ),
    "tars of labels from 1": (
        lambda r: tars(r, train=[sample(v, cls=str(v % 3 + 1)) for v in TRAIN], val=map(sample, VAL)),
        "class '0' .*has no readable train image; add some, or number the classes from 0",
    ),
    "a tar of which no image is drawn for val": (
        lambda r: tar(r / "a.tar", [sample(TRAIN[0])]),
        "none of the val images .* are there; add some, or raise shards.val_fraction",
    ),
    "a tar with another label": (
        lambda r: two(r, cls="cat"),
        "its label 'cat' is not a number, and there is no labels.txt",
    ),
    "a tar with a label below 0": (lambda r: two(r, cls="-1"), "its label is -1; labels are 0 or more"),
    "a tar with a huge label": (lambda r: two(r, cls="9999999999999"), "class '3' .*has no readable train image"),
    "a label that no name has": (
        lambda r: put(two(r, cls="3") / "labels.txt", "\n".join(NAMES)).parent,
        r"its label is 3; labels are in \[0, 3\)",
    ),
    "a tar's caption not UTF-8": (lambda r: two(r, txt=b"\xff"), "its caption is not UTF-8"),
    "a tar's caption of half a character": (
        lambda r: two(r, json='{"text": "\\ud800"}'),
        "its caption is not valid text",
    ),
    "a tar's JSON": (lambda r: two(r, cls=None, json="{"), "its .json cannot be read"),
    "tar and parquet files": (lambda r: parquet(two(r) / "a.parquet", ALL).parent, "tar files and parquet files; name"),
    "a split in some names alone": (
        lambda r: tars(two(r), other=map(sample, VAL)),
        "other.tar says neither train nor val",
    ),
    "val alone": (lambda r: gone(two(r) / "train.tar"), r"files of val \(val.tar\) but none of train"),
    "a pattern of missing files": (
        lambda r: f"{two(r)}/train{{,-1,-2}}.tar",
        "train-1.tar does not exist, nor do 1 other",
    ),
    "a pattern of other files": (
        lambda r: str(npz(npz(r / "a.npz").with_name("b.npz")).with_name("{a,b}.npz")),
        "all tar files or all parquet",
    ),
    "parquet with a name twice": (
        lambda r: parquet(r / "a.parquet", ALL, names=["a", "b", "a"]),
        "a.parquet, in its metadata, has the class 'a' twice",
    ),
    "parquet in a folder below": (
        lambda r: parquet(r / "plain_text" / "train.parquet", ALL).parents[1],
        r"plain_text holds train.parquet and no image; name that folder",
    ),
    "parquet of something else": (lambda r: put(r / "a.parquet", b"x" * 100), "a.parquet cannot be read as a parquet"),
    "parquet cut off": (
        lambda r: changed(parquet(r / "a.parquet", ALL), lambda data: data[:-20]),
        "a.parquet cannot be read as a parquet",
    ),
    "parquet with a damaged page": (
        lambda r: (
            changed(
                parquet(parquet(r / "train.parquet", ALL, names=NAMES).with_name("val.parquet"), VAL).with_name(
                    "train.parquet"
                ),
                lambda data: data[:4] + bytes(400) + data[404:],
            ).parent
        ),
        "train.parquet cannot be read as a parquet",
    ),
    "parquet without images": (
        lambda r: parquet(r / "a.parquet", ALL, picture=[1] * 12, image=[1] * 12),
        "no column `image` .*its columns: image, pict",
    ),
    "parquet with a label missing": (
        lambda r: parquet(r / "a.parquet", ALL, label=[None] + [1] * 11),
        "some images have no label",
    ),
    "parquet with a label below 0": (
        lambda r: parquet(r / "a.parquet", ALL, label=[-1] * 12),
        "class numbers from 0 on",
    ),
    "parquet with a huge label": (
        lambda r: parquet(r / "a.parquet", ALL, label=[0, 10**15] * 6),
        "no image has the label 1, but one has 10000000000",
    ),
    "parquet with a label missing, and names": (
        lambda r: (
            parquet(
                parquet(r / "train.parquet", ALL, names=NAMES, label=[None, *(v % 3 for v in ALL[1:])]).with_name(
                    "val.parquet"
                ),
                VAL,
            ).parent
        ),
        r"train.parquet\[0\] \(its label None is not a number, and no class has this name",
    ),
    "parquet with several captions": (
        lambda r: parquet(r / "a.parquet", ALL, label=[0] * 12, text=[["a", "b"]] * 12),
        "the column text holds list",
    ),
    "parquet with other columns": (
        lambda r: parquet(parquet(r / "train.parquet", ALL).with_name("val.parquet"), VAL, text=["a"] * 4).parent,
        "val.parquet has no column label, as the other files have",
    ),
    "parquet with an empty image": (
        lambda r: parquet(parquet(r / "train.parquet", ALL).with_name("val.parquet"), VAL, images=[None] * 4).parent,
        r"val.parquet\[0\] \(its column image has no bytes",
    ),
    "a line without file_name": (lambda r: lines(r, LINE, '{"text": "a"}'), "metadata.jsonl, line 2: has no file_name"),
    "a line of a missing file": (lambda r: lines(r, '{"file_name": "x.png"}'), "line 1: x.png is not an image in that"),
    "a file twice": (lambda r: lines(r, LINE, "", LINE), "line 3: 10.png is there twice"),
    "a line that is not JSON": (lambda r: lines(r, LINE, "{'file_name'"), "line 2: is not JSON"),
    "a line that is no object": (lambda r: lines(r, "[]"), "line 1: must be an object"),
    "a table not UTF-8": (lambda r: lines(r, LINE, b"\xff"), "metadata.jsonl is not UTF-8"),
    "a caption of half a character": (
        lambda r: lines(r, LINE.replace('"a"', '"\\ud800"')),
        "line 1: has an escape of half",
    ),
    "a caption that is no text": (lambda r: lines(r, LINE.replace('"a"', "[1]")), r"line 1: text is \[1\]; it must be"),
    "a table's file name of two lines": (
        lambda r: lines(r, LINE.replace("10.png", "1\\u001b\\n0.png")),
        r"line 1: 1\\x1b\\n0.png is not an image",
    ),
    "a label in some lines": (
        lambda r: lines(r, LINE, '{"file_name": "11.png", "label": 1}'),
        "line 2: some images have",
    ),
    "an empty table": (lambda r: lines(r, ""), "metadata.jsonl names no image"),
    "a CSV without columns": (
        lambda r: lines(r, "10.png,a", name="metadata.csv"),
        "metadata.csv has no column file_name",
    ),
    "a CSV with an open quotation": (
        lambda r: lines(r, "file_name,text", '10.png,"a', name="captions.csv"),
        "captions.csv, line 2: unexpected end",
    ),
    "two tables": (
        lambda r: put(lines(r, LINE) / "captions.csv", "").parent,
        "metadata.jsonl and captions.csv; keep one",
    ),
    "a table's label out of range": (
        lambda r: put(table(folder(r, ALL, ""), "metadata.csv", rows(ALL, label=3)) / "labels.txt", "a\nb").parent,
        "metadata.csv, line 2: its label is 3",
    ),
    "a name that no line of the table has": (
        lambda r: (
            put(table(folder(r, ALL, ""), "metadata.csv", rows(ALL, "label")) / "labels.txt", "a\nb\nc\nd").parent
        ),
        "no training image has the class 'd'",
    ),
    "a caption not UTF-8": (
        lambda r: put(folder(r, ALL, captions=True) / "1" / "10.txt", b"\xff").parents[1],
        r"1/10.png \(its caption 1/10.txt is not UTF-8\)",
    ),
    "a manifest of a folder that is gone": (lost, "m.arrow is the manifest of .*x, which does not exist"),
    "an Arrow file of something else": (
        lambda r: put(r / "m.arrow", b"ARROW1\0\0" + bytes(50)),
        "cannot be read as an Arrow",
    ),
    "a file of no known kind": (lambda r: put(r / "a.mp4", b"x" * 600), "a.mp4 is a file of no known kind"),
}


@pytest.mark.filterwarnings("error")  # among them, what is raised where nothing catches it
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(tmp_path: Path, name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(BigrError, match=message) as error:
        packed(make(tmp_path / "source"), tmp_path / "shards")
    said = str(error.value)
    assert "\n" not in said and len(said) < 600
    assert str(tmp_path) in said and not (tmp_path / "shards").exists()
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet"])
def test_a_broken_image_is_left_out_and_reported(tmp_path: Path, kind: str) -> None:
    source, broken = tmp_path / "source", png(TRAIN[0])[:60]
    if kind == "folder":
        put(folder(source, ALL) / "0" / "x.png", broken)
    elif kind == "tar":
        two(source, png=broken)
    else:
        parquet(
            parquet(source / "train.parquet", ALL).with_name("val.parquet"), VAL, images=[broken, *map(png, VAL[1:])]
        )
    counts = packed(source, tmp_path / "shards", max_bad_fraction=0.1)
    report = json.loads((tmp_path / "shards" / "report.json").read_text())
    (bad,) = report["bad"]
    assert bad["file"] == {"folder": "0/x.png", "tar": "train.tar: a/008", "parquet": "val.parquet[0]"}[kind]
    assert bad["reason"] and report["bad_count"] == counts["bad_files"] == 1
    assert counts["train_images"] + counts["val_images"] == report["files"] - 1


def test_a_broken_image_is_named_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(folder(tmp_path / "source", ALL) / "1" / "a\n\x1b[2Jb.png", b"x")
    packed(tmp_path / "source", tmp_path / "shards", max_bad_fraction=0.1)
    (bad,) = json.loads((tmp_path / "shards" / "report.json").read_text())["bad"]
    assert bad["file"] == r"1/a\n\x1b[2Jb.png" and caplog.messages[-1].count("\n") == 0


def test_a_listed_folder_holds_no_object_for_each_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source" / "a").mkdir(parents=True)

    def images(self: object, folder: str) -> storage.Images:
        found = storage.Images()
        found.add(folder, [f"{number:06d}.png" for number in range(200_000)])
        return found

    monkeypatch.setattr(storage.LocalStorage, "images", images)
    before = sys.getallocatedblocks()
    source = opened(tmp_path / "source")
    source.prepare(tmp_path / "partial")
    assert source.counts() == {"train": 150_000, "val": 50_000}
    parts = source.parts(10_000)
    assert sys.getallocatedblocks() - before < 20_000
    read = sum(1 for one in source.read(parts[3]) if one.name.startswith("a/"))
    assert read == 10_000 and sys.getallocatedblocks() - before < 20_000
