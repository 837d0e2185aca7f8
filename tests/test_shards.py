"""From an image folder to shards, and from shards to batches."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import weakref
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from webdataset import tariterators

from bigr.config import Settings, load
from bigr.data import image_batches, packed_parts, packing
from bigr.data.image_batches import ImageBatches
from bigr.data.packed_parts import Packing
from bigr.data.packing import pack
from bigr.data.shards import ShardIndex, load_split, read_split
from bigr.data.sources.image_folder import ImageFolder
from bigr.data.sources.opened import open_source
from bigr.data.sources.source import Splitting
from bigr.runtime.context import Context, Report
from bigr.runtime.errors import BigrError
from bigr.runtime.files import sha256_file
from bigr.stages import pack_shards as stage
from tests.worlds import bomb, memory_grows_by_less_than

SIZE = 8


def picture(path: Path, value: int) -> None:
    """A picture whose pixels are all `value`, so that it can be told from every other; its left half is darker."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((SIZE, SIZE, 3), value, dtype=np.uint8)
    pixels[:, : SIZE // 2, 0] = 0
    Image.fromarray(pixels).save(path)


def value_of(image: Tensor) -> int:
    return int(image[1, 0, 0])


def folder_of(root: Path, counts: dict[str, int]) -> Path:
    """Pictures 1, 2, … spread over class folders, as in {"train/cat": 3}."""
    value = 0
    for name, count in counts.items():
        for number in range(count):
            value += 1
            picture(root / name / f"{number:03d}.png", value)
    return root


def packed(source: Path, folder: Path, **options: float) -> dict[str, int]:
    """Pack a folder of images; what is not finished is kept in a folder beside the tests'."""
    values = {"image_size": SIZE, "images_per_shard": 7, "max_bad_fraction": 0.0, "max_pixels": 1000, "workers": 1}
    values |= options
    packing = Packing(*(int(values.pop(name)) for name in ("image_size", "images_per_shard", "max_pixels")))
    partial = folder.parent.with_name(f"{folder.parent.name}-partial")
    found = open_source(str(source), Path(), Splitting(0.25, 3))
    found.prepare(partial)
    return pack(found, folder, partial, packing, **values)  # type: ignore[arg-type]


def listed(source: Path, val_fraction: float, seed: int = 0) -> tuple[ImageFolder, dict[str, list[tuple[str, int]]]]:
    """A folder, and the images of each split with their labels, in their order."""
    found = open_source(str(source), Path(), Splitting(val_fraction, seed))
    assert isinstance(found, ImageFolder)
    rows = [(row.file, row.label) for row in found.listing.rows(0, len(found.listing))]
    train = found.counts()["train"]
    return found, {"train": rows[:train], "val": rows[train:]}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def cats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 40 train and 9 val images of three classes."""
    root = tmp_path_factory.mktemp("cats")
    counts = {"train/a": 20, "train/b": 12, "train/c": 8, "val/a": 5, "val/c": 4}
    packed(folder_of(root / "images", counts), root / "shards")
    return root / "shards"


# Layouts


def test_train_and_val_folders_are_the_split(cats: Path) -> None:
    index = ShardIndex.load(cats)
    assert index.classes == ["a", "b", "c"] and index.image_size == SIZE
    assert (index.images("train"), index.images("val")) == (40, 9)
    assert index.class_counts("train") == [20, 12, 8] and index.class_counts("val") == [5, 0, 4]
    found = sorted((value_of(image), label) for image, label in read_split(cats, "train"))
    assert found == [(value, 0 if value <= 20 else 1 if value <= 32 else 2) for value in range(1, 41)]


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_without_val_a_fraction_of_every_class_is_held_out(tmp_path: Path, prefix: str) -> None:
    source = folder_of(tmp_path / "images", {f"{prefix}a": 20, f"{prefix}b": 8, f"{prefix}c": 2, f"{prefix}d": 1})
    _, found = listed(source, 0.25)
    count = {split: [sum(label == c for _, label in items) for c in range(4)] for split, items in found.items()}
    assert count == {"train": [15, 6, 1, 1], "val": [5, 2, 1, 0]}
    assert not set(found["train"]) & set(found["val"])


def test_split_and_order_follow_from_the_seed_not_from_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder_of(tmp_path / "images", {"a/x": 9, "a/y": 9, "b": 12})
    _, first = listed(source, 0.3)
    scandir, calls = os.scandir, list[Path]()

    class Reversed(list["os.DirEntry[str]"]):
        """The entries of a folder from the last to the first, as `os.walk` and a `with` block take them."""

        def __init__(self, folder: Path) -> None:
            with scandir(folder) as found:
                super().__init__(reversed(list(found)))
            calls.append(folder)

        def __enter__(self) -> Iterator["os.DirEntry[str]"]:
            return iter(self)

        def __exit__(self, *error: object) -> None: ...

        def __next__(self) -> "os.DirEntry[str]":
            if not self:
                raise StopIteration
            return self.pop(0)

    monkeypatch.setattr(os, "scandir", Reversed)
    assert listed(source, 0.3)[1] == first and calls
    assert listed(source, 0.3, seed=1)[1]["val"] != first["val"]


def test_a_new_picture_moves_at_most_one_other(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "images", {"a": 20, "b": 20})
    _, before = listed(source, 0.25)
    picture(source / "b" / "new.png", 99)
    _, after = listed(source, 0.25)
    assert len(set(before["val"]) - set(after["val"])) <= 1
    stayed = set(before["train"]) & set(after["train"])
    assert [i for i in after["train"] if i in stayed] == [i for i in before["train"] if i in stayed]


def test_classes_are_in_natural_order_and_found_at_any_depth(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "images", {"10/deep/er": 2, "9": 1, "9/deep": 1, "class2": 2, "class10": 2})
    (tmp_path / "elsewhere").mkdir()
    picture(tmp_path / "elsewhere" / "a.png", 50)
    (source / "9" / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "9" / "loop").symlink_to(source / "9")
    found, items = listed(source, 0.5)
    assert found.classes == ["9", "10", "class2", "class10"]
    assert sorted(path for path, label in items["train"] + items["val"] if label == 0) == [
        "9/000.png",
        "9/deep/000.png",
        "9/linked/a.png",
    ]


def test_hidden_names_are_passed_over_and_other_files_counted(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "images", {"a": 2, "b": 2, ".hidden": 1, "a/.thumbnails": 1})
    picture(source / "a" / ".000.png", 9)
    for name in ("README.md", "a/Thumbs.db", "b/labels.txt", ".DS_Store"):
        (source / name).write_text("x")
    found, items = listed(source, 0.5)
    assert found.classes == ["a", "b"] and sum(map(len, items.values())) == 4 and found.ignored == 3


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "has no class folders"),
        ({".": 3}, "has 3 images but no class folders"),
        ({"train": 3, "val/a": 1}, "has 3 images but no class folders"),
        ({"a": 2, "b": 0}, r"class folder b of .* has no image"),
        ({"train/a": 2, "train/b": 0, "val/a": 1}, r"class folder train/b of .* has no image"),
        ({"train/a": 2, "val/a": 1, "val/b": 1}, "class 'b' is not in train/"),
        ({"val/a": 2}, "has val/ but no train/"),
        ({"train/a": 2, "validation/a": 1}, "rename validation/ to val/"),
        ({"a": 1, "b": 1}, "leaves none for val"),
    ],
)
def test_a_folder_that_is_no_data_set_is_one_clear_line(tmp_path: Path, counts: dict[str, int], message: str) -> None:
    for name in counts:
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / "images").mkdir(exist_ok=True)
    folder_of(tmp_path / "images", counts)
    with pytest.raises(BigrError, match=message) as error:
        listed(tmp_path / "images", 0.25)
    assert "\n" not in str(error.value)


def test_a_missing_path_and_a_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BigrError, match=r"shards.source: .*nowhere does not exist"):
        listed(tmp_path / "nowhere", 0.25)
    (tmp_path / "file").touch()
    with pytest.raises(BigrError, match=r"shards.source: .*file is a file of no known kind"):
        listed(tmp_path / "file", 0.25)


# Packing


def test_same_input_gives_identical_shards_whatever_the_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_IMAGES_PER_PROCESS", 1)
    source = folder_of(tmp_path / "images", {"a": 20, "b": 12, "c": 8})
    (source / "a" / "bad.png").write_bytes(b"no picture")
    started: list[int] = []
    in_processes = packing._in_processes
    monkeypatch.setattr(packing, "_in_processes", lambda *job: started.append(job[-1]) or in_processes(*job))
    one = packed(source, tmp_path / "one", workers=1, max_bad_fraction=0.1)
    os.utime(source / "a" / "000.png", (0, 0))
    two = packed(source, tmp_path / "two", workers=2, max_bad_fraction=0.1)
    assert started == [2] and one == two
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_shards_are_bounded_mixed_and_as_their_index_says(cats: Path) -> None:
    index = json.loads((cats / "index.json").read_text())
    names = [shard["name"] for split in ("train", "val") for shard in index["splits"][split]["shards"]]
    assert names == [f"train-{n:06d}.tar" for n in range(6)] + ["val-000000.tar", "val-000001.tar"]
    assert {path.name for path in cats.iterdir()} == {*names, "index.json", "report.json"}
    for split in ("train", "val"):
        for shard in index["splits"][split]["shards"]:
            assert shard["sha256"] == sha256_file(cats / shard["name"])
            with tarfile.open(cats / shard["name"]) as tar:
                members = tar.getmembers()
            assert len(members) == 2 * shard["images"] <= 14
            assert {(m.mtime, m.uid, m.gid, m.mode) for m in members} == {(0, 0, 0, 0o444)}
            assert all(re.fullmatch(r"\d{9}\.(png|cls)", m.name) for m in members)
    first = [label for _, label in islice(read_split(cats, "train"), 7)]
    assert len(set(first)) > 1


def test_webdataset_itself_reads_the_shards(cats: Path) -> None:
    import webdataset

    data = webdataset.WebDataset(str(cats / "val-{000000..000001}.tar"), shardshuffle=False).decode("torchrgb8")
    found = sorted((value_of(sample["png"]), sample["cls"]) for sample in data.to_tuple("png", "cls").map(to_dict))
    assert found == [(value, 0 if value <= 45 else 2) for value in range(41, 50)]


def to_dict(sample: tuple[Tensor, int]) -> dict[str, Tensor | int]:
    return {"png": sample[0], "cls": sample[1]}


def test_a_bad_file_fails_the_stage_and_is_named_with_its_reason(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "images", {"a": 12, "b": 12})
    for number in range(6):
        (source / "a" / f"bad{number}.jpg").write_bytes(b"")
    with pytest.raises(BigrError) as error:
        packed(source, tmp_path / "shards", max_bad_fraction=0.1)
    text = str(error.value)
    assert re.search(r"6 of 30 images .* shards.max_bad_fraction = 0.1 .*a/bad\d.jpg \(not a JPEG, PNG or WebP", text)
    assert text.count("not a JPEG") == 5 and "and 1 more" in text and "\n" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "shards-report.json"]


def test_the_report_of_a_failure_outlives_it_and_goes_with_the_next_success(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "images", {"a": 12, "b": 12})
    for number in range(6):
        (source / "a" / f"bad{number}.jpg").write_bytes(b"")
    failed = tmp_path / "shards-report.json"
    with pytest.raises(BigrError, match=rf"all are in the log and in {re.escape(str(failed))}$"):
        packed(source, tmp_path / "shards")
    report = json.loads(failed.read_text())
    assert sorted(entry["file"] for entry in report["bad"]) == [f"a/bad{number}.jpg" for number in range(6)]
    assert (report["files"], report["bad_count"]) == (30, 6)
    packed(source, tmp_path / "shards", max_bad_fraction=0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "shards"]
    assert json.loads((tmp_path / "shards" / "report.json").read_text()) == report


def test_bad_files_below_the_limit_are_absent_and_reported(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "images", {"train/a": 12, "train/b": 12, "val/a": 3})
    data = (source / "train" / "b" / "003.png").read_bytes()
    (source / "train" / "b" / "003.png").write_bytes(data[:60])
    (source / "train" / "notes.txt").touch()
    counts = packed(source, tmp_path / "shards", max_bad_fraction=0.05)
    assert counts["bad_files"] == 1 and counts["train_images"] == 23 and counts["ignored_files"] == 1
    report = json.loads((tmp_path / "shards" / "report.json").read_text())
    assert [entry["file"] for entry in report["bad"]] == ["train/b/003.png"] and report["bad"][0]["reason"]
    assert (report["files"], report["bad_count"], report["ignored_count"]) == (27, 1, 1)
    assert sorted(value_of(image) for image, _ in read_split(tmp_path / "shards", "train")) == [
        value for value in range(1, 25) if value != 16
    ]
    assert ShardIndex.load(tmp_path / "shards").class_counts("train") == [12, 11]


def test_a_shard_or_class_of_bad_files_alone(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "images", {"train/a": 6, "val/a": 2, "val/b": 1, "train/b": 1})
    (source / "val" / "b" / "000.png").write_bytes(b"")
    packed(source, tmp_path / "shards", max_bad_fraction=0.5, images_per_shard=1)
    assert len(list(read_split(tmp_path / "shards", "val"))) == 2
    assert len(ShardIndex.load(tmp_path / "shards").tars("val")) == 2
    (source / "train" / "b" / "000.png").write_bytes(b"")
    with pytest.raises(BigrError, match=r"class 'b' of .* has no readable train image"):
        packed(source, tmp_path / "shards", max_bad_fraction=0.5)


def test_processes_that_pack_never_see_ctrl_c(capfd: pytest.CaptureFixture[str]) -> None:
    held = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with packing._interrupts_held():
        subprocess.run([sys.executable, "-c", held], check=True)
    subprocess.run([sys.executable, "-c", held], check=True)
    assert capfd.readouterr().out.split() == ["True", "False"]


def test_pixels_are_never_together_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Image.Image]] = []
    most = 0
    crop = packed_parts.center_crop

    def watched(image: Image.Image, size: int) -> Image.Image:
        nonlocal most
        result = crop(image, size)
        made.append(weakref.ref(result))
        most = max(most, sum(reference() is not None for reference in made))
        return result

    monkeypatch.setattr(packed_parts, "center_crop", watched)
    packed(folder_of(tmp_path / "images", {"a": 30, "b": 30}), tmp_path / "shards")
    assert len(made) == 60 and most <= 2


@pytest.mark.parametrize("allowed", [0.0, 0.5])
def test_a_picture_of_400_megapixels_is_a_bad_file_in_bounded_memory(tmp_path: Path, allowed: float) -> None:
    source = folder_of(tmp_path / "mine", {"train/a": 3, "val/a": 2})
    (source / "train" / "a" / "huge.png").write_bytes(bomb())
    settings, context = settings_with(source="mine", image_size=4, max_bad_fraction=allowed), Context(tmp_path)
    reason = r"20000×20000 pixels; at most 100,000,000 are read \(shards.max_pixels\)"
    with memory_grows_by_less_than(150e6):
        if allowed:
            stage.run(settings, context)
        else:
            with pytest.raises(BigrError, match=rf"train/a/huge.png \({reason}\)") as error:
                stage.run(settings, context)
            assert "\n" not in str(error.value)
    name = "data/shards/report.json" if allowed else "data/shards-report.json"
    (bad,) = json.loads((tmp_path / name).read_text())["bad"]
    assert bad["file"] == "train/a/huge.png" and re.fullmatch(reason, bad["reason"])


def test_the_limit_of_pixels_is_a_setting(tmp_path: Path) -> None:
    folder_of(tmp_path / "mine", {"a": 4})
    packed(tmp_path / "mine", tmp_path / "shards", max_pixels=SIZE**2)
    with pytest.raises(BigrError, match=r"4 of 4 images .* at most 63 are read \(shards.max_pixels\)"):
        packed(tmp_path / "mine", tmp_path / "shards", max_pixels=SIZE**2 - 1)


class Recorded(Report):
    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def metrics(self, values: object, step: int | None = None) -> None:
        self.values.update(values)  # type: ignore[call-overload]


def settings_with(**changes: object) -> Settings:
    settings = load(Path(__file__).parents[1] / "params.yaml")
    return settings.model_copy(update={"shards": settings.shards.model_copy(update=changes)})


def test_stage_reads_its_source_and_reports(tmp_path: Path) -> None:
    folder_of(tmp_path / "mine", {"a": 10, "b": 10})
    (tmp_path / "data" / ".shards.0123abcd").mkdir(parents=True)  # of a run that was killed
    report = Recorded()
    stage.run(settings_with(source="mine", image_size=4), Context(tmp_path, report=report))
    assert report.values == {
        "train_images": 18,
        "val_images": 2,
        "classes": 2,
        "shards": 2,
        "bad_files": 0,
        "ignored_files": 0,
    }
    assert load_split(tmp_path / "data" / "shards", "train")[0].shape == (18, 3, 4, 4)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["shards"]


def test_stage_does_not_eat_its_source(tmp_path: Path) -> None:
    folder_of(tmp_path / "data" / "shards" / "images", {"a": 3})
    for source in ("data/shards", "data/shards/images"):
        with pytest.raises(BigrError, match="where this stage writes"):
            stage.run(settings_with(source=source), Context(tmp_path))
    assert (tmp_path / "data" / "shards" / "images" / "a" / "000.png").exists()


# Reading


def test_load_split_gives_what_read_split_gives(cats: Path) -> None:
    images, labels = load_split(cats, "train", workers=2)
    read = list(read_split(cats, "train"))
    assert images.dtype == torch.uint8 and images.shape == (40, 3, SIZE, SIZE) and labels.dtype == torch.int64
    assert torch.equal(images, torch.stack([image for image, _ in read]))
    assert labels.tolist() == [label for _, label in read]
    some, their_labels = load_split(cats, "train", limit=5)
    assert torch.equal(some, images[:5]) and torch.equal(their_labels, labels[:5])
    assert len(load_split(cats, "val", limit=100)[0]) == 9


def test_missing_and_damaged_shards_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(BigrError, match=r"index.json is missing; run the stage shards first"):
        ShardIndex.load(tmp_path)
    packed(folder_of(tmp_path / "images", {"a": 20}), tmp_path / "shards")
    tar = ShardIndex.load(tmp_path / "shards").tars("train")[1].path
    data = tar.read_bytes()
    for damage in (data[:1500], data[:2048], b"x" * 2000, data.replace(b"IDAT", b"IDAX"), b""):
        tar.write_bytes(damage)
        with pytest.raises(BigrError, match=f"{tar.name} .*run the stage shards again") as error:
            load_split(tmp_path / "shards", "train")
        assert "\n" not in str(error.value)
    tar.unlink()
    with pytest.raises(BigrError, match=f"{tar.name} .*run the stage shards again"):
        load_split(tmp_path / "shards", "train")
    (tmp_path / "shards" / "index.json").write_text("{")
    with pytest.raises(BigrError, match="is not an index of shards"):
        ShardIndex.load(tmp_path / "shards")


def shard_of(folder: Path, picture: bytes, label: bytes = b"0") -> Path:
    """A folder of shards that somebody else made: one image, which its index says is SIZE pixels wide."""
    folder.mkdir(parents=True)
    with tarfile.open(folder / "train-000000.tar", "w") as tar:
        for name, data in (("0.png", picture), ("0.cls", label)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    split = {"images": 1, "class_counts": [1], "shards": [{"name": "train-000000.tar", "images": 1}]}
    index = {"image_size": SIZE, "classes": ["a"], "splits": {"train": split, "val": split}}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def png(image: Image.Image) -> bytes:
    with io.BytesIO() as stream:
        image.save(stream, format="PNG")
        return stream.getvalue()


def test_an_image_of_a_shard_that_unfolds_to_a_huge_one_is_one_line_in_bounded_memory(tmp_path: Path, way: str) -> None:
    folder = shard_of(tmp_path / "shards", bomb())
    reads = (lambda: load_split(folder, "train"), lambda: take(stream(folder, batch_size=1), 0, 1))
    for read in reads:
        with memory_grows_by_less_than(150e6), pytest.raises(BigrError) as error:
            read()
        said = str(error.value)
        assert "train-000000.tar" in said and "20000×20000" in said and f"{SIZE}×{SIZE}" in said and "\n" not in said


@pytest.mark.parametrize(
    "picture",
    [
        png(Image.new("RGB", (SIZE, SIZE + 1))),
        png(Image.new("P", (SIZE, SIZE))),
        png(Image.new("RGBA", (SIZE, SIZE))),
        png(Image.new("RGB", (SIZE, SIZE)))[:45],
        b"no picture",
        b"",
    ],
    ids=["other size", "palette", "transparent", "cut off", "no picture", "empty"],
)
def test_an_image_that_the_stage_would_not_have_written_is_one_line(tmp_path: Path, picture: bytes) -> None:
    with pytest.raises(BigrError, match=r"train-000000.tar .*run the stage shards again") as error:
        load_split(shard_of(tmp_path / "shards", picture), "train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("error", [ValueError(), OSError(), KeyError(), tarfile.ReadError(), EOFError()])
def test_an_error_that_says_nothing_is_named_by_its_kind(
    cats: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(sources: object) -> Iterator[None]:
        raise error
        yield

    monkeypatch.setattr(tariterators, "tar_file_expander", fails)
    with pytest.raises(BigrError, match=rf"train-000000.tar cannot be read .*{type(error).__name__}"):
        load_split(cats, "train")


# The training stream


@pytest.fixture(params=["memory", "streamed"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways in which a split is served; small blocks, so that an epoch has several."""
    if request.param == "streamed":
        monkeypatch.setattr(image_batches, "_IN_MEMORY_BYTES", 0)
        monkeypatch.setattr(image_batches, "_BLOCK_IMAGES", 10)
    return str(request.param)


def stream(folder: Path, batch_size: int = 6, **options: int | bool) -> ImageBatches:
    values = {"seed": 5, "horizontal_flip": False, "rank": 0, "world": 1, "workers": 0, **options}
    if values["workers"] == 0 and image_batches._IN_MEMORY_BYTES:
        values["workers"] = 1
    return ImageBatches(folder, "train", batch_size, **values)  # type: ignore[arg-type]


def take(batches: ImageBatches, first: int, count: int) -> list[tuple[Tensor, Tensor]]:
    return list(islice(batches.from_step(first), count))


def numbers(batch: tuple[Tensor, Tensor]) -> list[int]:
    return [round(float(value) * 255) for value in batch[0][:, 1, 0, 0]]


def same(a: list[tuple[Tensor, Tensor]], b: list[tuple[Tensor, Tensor]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) and torch.equal(l, m) for (x, l), (y, m) in zip(a, b, strict=True)
    )


def test_an_epoch_shows_each_image_at_most_once_and_the_next_differs(cats: Path, way: str) -> None:
    batches = stream(cats)
    assert batches.steps_per_epoch == 6
    steps = take(batches, 0, 12)
    assert all(x.shape == (6, 3, SIZE, SIZE) and x.dtype == torch.float32 and y.shape == (6,) for x, y in steps)
    assert all(float(x.min()) >= 0 and float(x.max()) <= 1 for x, _ in steps)
    first, second = [[n for batch in steps[i : i + 6] for n in numbers(batch)] for i in (0, 6)]
    assert len(set(first)) == len(set(second)) == 36 and first != second
    right = {value: 0 if value <= 20 else 1 if value <= 32 else 2 for value in range(1, 41)}
    assert all([right[n] for n in numbers(batch)] == batch[1].tolist() for batch in steps)


@pytest.mark.parametrize("step", [1, 5, 6, 14])
def test_stream_from_any_step_is_the_uninterrupted_stream(cats: Path, way: str, step: int) -> None:
    whole = take(stream(cats, horizontal_flip=True), 0, 20)
    assert same(take(stream(cats, horizontal_flip=True), step, 20 - step), whole[step:])


def test_stream_does_not_depend_on_the_number_of_loading_processes(cats: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_batches, "_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(image_batches, "_BLOCK_IMAGES", 10)
    state = torch.random.get_rng_state()
    alone = take(stream(cats, workers=0, horizontal_flip=True), 3, 15)
    assert same(take(stream(cats, workers=2, horizontal_flip=True), 3, 15), alone)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_processes_share_each_global_batch(cats: Path, way: str) -> None:
    whole = take(stream(cats, batch_size=8), 0, 8)
    parts = [take(stream(cats, batch_size=4, rank=rank, world=2), 0, 8) for rank in (0, 1)]
    assert same([(torch.cat([x, y]), torch.cat([l, m])) for (x, l), (y, m) in zip(*parts, strict=True)], whole)


def test_a_split_smaller_than_a_batch_fills_it(cats: Path, way: str) -> None:
    for batch in take(stream(cats, batch_size=100), 1, 2):
        shown = numbers(batch)
        assert len(shown) == 100 and set(shown) == set(range(1, 41))
        assert max(map(shown.count, shown)) - min(map(shown.count, shown)) <= 1


def test_flips_mirror_half_of_the_images_anew_each_epoch(cats: Path, way: str) -> None:
    def flipped(epoch: int) -> dict[int, bool]:
        batches = take(stream(cats, batch_size=8, horizontal_flip=True), epoch * 5, 5)
        return {n: bool(x[0, 0, 0] > 0) for batch in batches for n, x in zip(numbers(batch), batch[0], strict=True)}

    first, second = flipped(0), flipped(1)
    assert 10 < sum(first.values()) < 30 and first != second
    unflipped = take(stream(cats, batch_size=8), 0, 5)
    assert all(bool((x[:, 0, 0, 0] == 0).all()) for x, _ in unflipped)


class Watched(io.FileIO):
    """A file that counts the bytes that are read from it, by its name."""

    read_bytes: ClassVar[Counter[str]] = Counter()

    def read(self, size: int = -1) -> bytes:
        data = super().read(size)
        self.read_bytes[Path(str(self.name)).name] += len(data)
        return data

    def readinto(self, buffer: bytearray) -> int:
        count = super().readinto(buffer)
        self.read_bytes[Path(str(self.name)).name] += count
        return count


@pytest.fixture
def read_bytes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Bytes read from each tar."""
    whole = Path.open

    def watched(path: Path, mode: str = "r", buffering: int = -1, **options: str) -> io.IOBase:
        if path.suffix != ".tar" or mode != "rb":
            return whole(path, mode, buffering, **options)
        return Watched(path) if buffering == 0 else io.BufferedReader(Watched(path))

    monkeypatch.setattr(Path, "open", watched)
    monkeypatch.setattr(Watched, "read_bytes", Counter())
    return Watched.read_bytes


def test_resuming_reads_no_shard_of_earlier_blocks(
    cats: Path, monkeypatch: pytest.MonkeyPatch, read_bytes: Counter[str]
) -> None:
    monkeypatch.setattr(image_batches, "_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(image_batches, "_BLOCK_IMAGES", 7)
    take(stream(cats), 5, 1)
    assert 1 <= len(read_bytes) <= 2


def test_loading_processes_together_read_each_image_once_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_bytes: Counter[str]
) -> None:
    draw, count, size = np.random.default_rng(0), 48, 64
    for number in range(count + 1):
        path = tmp_path / "images" / ("val" if number == count else "train") / "a" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
    packed(tmp_path / "images", tmp_path / "shards", image_size=size, images_per_shard=16, max_pixels=size * size)
    monkeypatch.setattr(image_batches, "_IN_MEMORY_BYTES", 0)
    # Two training processes of two loading processes each: more than there are shards.
    streams = [(stream(tmp_path / "shards", rank=rank, world=2), worker) for rank in (0, 1) for worker in (0, 1)]
    images = 0
    for tar in ShardIndex.load(tmp_path / "shards").tars("train"):
        with tarfile.open(tar.path) as opened:
            images += sum(512 + -(-member.size // 512) * 512 for member in opened)
    headers = len(streams) * count * 2 * 512
    for epoch, most in ((0, 1.02 * (images + headers)), (1, images)):
        read_bytes.clear()
        shown = [labels for batches, worker in streams for _, labels in batches.streamed(epoch, range(worker, 4, 2))]
        assert sum(map(len, shown)) == count
        assert images <= read_bytes.total() <= most
