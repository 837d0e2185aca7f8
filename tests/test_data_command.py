"""`bigr data`: what a source holds, before anything is packed; what is wrong with it is one line."""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigr import config
from bigr.cli import program
from bigr.runtime.context import Context
from bigr.stages import pack_shards
from tests import scratch
from tests.source_files import ALL, NAMES, TRAIN, VAL, folder, idx_set, npz, parquet, png, put, sample, stack, tar, tars

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`bigr data WORDS…` in a folder with params.yaml → its exit status, and what it prints, errors included."""
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "params.yaml", (scratch.ROOT / "params.yaml").read_text())

    def bigr_data(*words: str) -> tuple[int, str]:
        handler = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(sys, "argv", ["bigr", "data", *words])
        with pytest.raises(SystemExit) as ended:
            program.main()
        signal.signal(signal.SIGTERM, handler)
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + (said.err if ended.value.code else "")

    return bigr_data


def told(text: str) -> dict[str, str]:
    """What is said of each thing."""
    first, *others = text.splitlines()
    found = {"kind": first}
    for line in others:
        name, said = line[:10].strip(), line[10:]
        found[name] = f"{found[name]}; {said}" if name in found else said
    return found


MADE: dict[str, tuple[Callable[[Path], Path], dict[str, str]]] = {
    "an image folder": (
        lambda r: folder(folder(r, TRAIN, "train/{label}/"), VAL, "val/{label}/"),
        {"kind": "image folder", "images": "train 8, val 4", "classes": "3 (0, 1, 2); 2 to 3 training images each"},
    ),
    "captions": (
        lambda r: put(folder(r, ALL, captions=True) / "0" / "note.doc", "x").parents[1],
        {"kind": "image folder", "captions": "12 of 12", "ignored": "1 file: no image, or in no class"},
    ),
    "IDX": (idx_set, {"kind": "IDX files", "images": "train 8, val 4", "sizes": "8×8 pixels; 12 grey (of all)"}),
    "npz": (
        lambda r: npz(r / "a.npz", x_train=stack(TRAIN), y_train=[5] * 8, x_test=stack(VAL), y_test=[5] * 4),
        {"kind": "npz file", "images": "train 8, val 4", "classes": "1 (image)"},
    ),
    "tars that number their classes from 1": (
        lambda r: tars(r, train=[sample(v, cls=str(v % 3 + 1)) for v in TRAIN], val=[sample(v) for v in VAL]),
        {"images": "train 8, val 4", "classes": "4 (0, 1, 2, 3); 2 to 3 training images each, none of 0"},
    ),
    "a tar with a huge label": (
        lambda r: tar(r / "train-val.tar", [sample(10), sample(11, cls="9999999999999")]),
        {"images": "train 2, val 0", "classes": "10,000,000,000,000 (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …); 1 training"},
    ),
    "parquet": (
        lambda r: parquet(parquet(r / "train.parquet", TRAIN, names=NAMES).with_name("test.parquet"), VAL).parent,
        {"kind": "parquet files", "images": "train 8, val 4", "classes": "3 (zebra, ant, bee); 2 to 3 training"},
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_a_source_is_told_before_anything_is_packed(tmp_path: Path, run: Run, name: str) -> None:
    make, expected = MADE[name]
    source = make(tmp_path / "source")
    status, text = run(str(source))
    found = told(text)
    assert status == 0 and found["kind"].endswith(f": {source}") and found["broken"].startswith("0 of ")
    assert {key: found[key][: len(said)] for key, said in expected.items()} == expected
    with Image.open(tmp_path / "outputs" / "data.png") as picture:
        assert picture.format == "PNG" and len(set(np.asarray(picture).flatten().tolist())) > 3
    assert {path.name for path in tmp_path.iterdir()} == {"source", "params.yaml", "outputs"}


def test_as_many_images_are_read_as_asked_and_all_with_all(tmp_path: Path, run: Run) -> None:
    source = npz(tmp_path / "a.npz", arr_0=np.repeat(stack(ALL), 10, 0))  # 12 are held out, and 108 are not
    for words, read, of in (
        (("--images", "60"), 60, "60 that were read; --all reads every one"),
        (("--images", "500"), 120, "all"),
        (("--images", "5", "--all"), 120, "all"),
    ):
        status, text = run(str(source), *words)
        found = told(text)
        assert status == 0 and found["broken"] == f"0 of {read}" and found["sizes"].endswith(f"(of {of})")
        assert found["images"] == "train 108, val 12"


def test_images_of_a_tar_are_counted_only_when_all_are_read(tmp_path: Path, run: Run) -> None:
    source = tar(tmp_path / "a.tar", [sample(v) for v in ALL])
    _, few = run(str(source), "--images", "5")
    _, every = run(str(source), "--all")
    assert told(few)["images"].startswith("not counted") and "or more (" in told(few)["classes"]
    train, val = (int(part.split()[1]) for part in told(every)["images"].split(", "))
    assert train + val == 12 and "or more" not in told(every)["classes"]


def test_broken_files_are_named_with_the_reason(tmp_path: Path, run: Run) -> None:
    source = folder(tmp_path / "source", ALL)
    for number in range(11):
        put(source / "1" / f"broken {number:02}.png", png(1)[:60] if number else "text")
    status, text = run(str(source), "--all")
    assert status == 0 and "11 of 23; " in told(text)["broken"] + "; "
    assert "not a JPEG, PNG or WebP image" in text and text.count("1/broken ") == 10 and "and 1 more" in text


def test_the_stage_packs_what_a_manifest_lists(tmp_path: Path, run: Run) -> None:
    folder(tmp_path / "source", ALL)
    status, text = run("source", "--manifest", "data/source.arrow", "--out", "there/sheet.png")
    assert status == 0 and "12 files" in text and (tmp_path / "there" / "sheet.png").is_file()
    assert told(run("data/source.arrow")[1])["images"] == "train 9, val 3"
    values = config.read(tmp_path / "params.yaml")
    values["shards"] |= {"source": "data/source.arrow"}
    pack_shards.run(config.validate(values, "params.yaml"), Context(tmp_path, "fingerprint"))
    splits = json.loads((tmp_path / "data" / "shards" / "index.json").read_text())["splits"]
    assert (splits["train"]["images"], splits["val"]["images"]) == (9, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("missing",), "SOURCE: missing does not exist"),
        ((), "shards.source: data/dataset does not exist"),
        (("source", "--out", "a.jpg"), "--out a.jpg: must end in .png"),
        (("source", "--manifest", "a.txt"), "--manifest a.txt: must end in .arrow"),
        (("a.arrow", "--manifest", "b.arrow"), "--manifest b.arrow: a.arrow is itself a manifest"),
        (("a.npz", "--manifest", "a.arrow"), "--manifest a.arrow: a.npz needs none (npz file)"),
        (("source", "--params", "other.yaml"), "other.yaml"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    tmp_path: Path, run: Run, words: tuple[str, ...], message: str
) -> None:
    folder(tmp_path / "source", ALL)
    npz(tmp_path / "a.npz", arr_0=stack(ALL))
    before = sorted(tmp_path.rglob("*"))
    status, text = run(*words)
    assert status == 2 and message in text and len(text.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
