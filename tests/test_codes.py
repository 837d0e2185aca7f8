"""Codes on disk: packed, memory-mapped, tied to their tokenizer."""

import json
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from bigr.config import Settings, load
from bigr.data import codes as codes_module
from bigr.data.codes import (
    CodesDataset,
    Encoding,
    PlacedShard,
    bit_usage,
    encode_shard,
    place_shards,
    write_index,
)
from bigr.data.packed_parts import Packing
from bigr.data.packing import pack
from bigr.data.shards import ShardIndex, load_split
from bigr.data.sources.opened import open_source
from bigr.data.sources.source import Splitting
from bigr.interop.folders import load_model, model_hash, save
from bigr.models.autoencoder.tokenizer import Tokenizer, TokenizerConfig
from bigr.runtime.context import Context, Report
from bigr.runtime.errors import BigrError
from bigr.stages import encode_codes as stage

SIZE, GRID, BITS = 8, 2, 5
CPU = torch.device("cpu")


class Stand:
    """Bits of a token: five pixels of its 4×4 patch of the red channel, as probabilities."""

    def encode(self, images: Tensor) -> Tensor:
        patches = images[:, 0].unfold(1, 4, 4).unfold(2, 4, 4).flatten(3).flatten(1, 2)
        return patches[..., [0, 3, 6, 9, 12]]


def images_of(root: Path, counts: dict[str, int]) -> Path:
    """Noise pictures in class folders."""
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(root / name / f"{number}.png")
    return root


def packed(source: Path, folder: Path, images_per_shard: int) -> None:
    found = open_source(str(source), Path(), Splitting(0.5, 0))
    partial = folder.with_name("partial")
    pack(found, folder, partial, Packing(SIZE, images_per_shard, 1000), max_bad_fraction=0, workers=1)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    """Shards of 25 train and 5 val images of two classes."""
    root = tmp_path_factory.mktemp("codes")
    source = images_of(root / "images", {"train/a": 15, "train/b": 10, "val/a": 3, "val/b": 2})
    packed(source, root / "shards", 9)
    return ShardIndex.load(root / "shards")


def encoded(images: ShardIndex, folder: Path, *, batch_size: int = 4, **changes: object) -> Path:
    values = {"code_bits": BITS, "grid": GRID, "views": ["identity", "flip"], "tokenizer": "a" * 64, "draws": 0}
    encoding = Encoding(**{**values, "seed": 0, **changes})  # type: ignore[arg-type]
    for placed in place_shards(images):
        path = folder / placed.codes_name
        options = {"batch_size": batch_size, "device": CPU, "workers": 1, "advance": lambda n: None}
        encode_shard(Stand(), placed, path, encoding, **options)  # type: ignore[arg-type]
    write_index(folder, images, encoding)
    return folder


@pytest.fixture(scope="module")
def codes(images: ShardIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoded(images, tmp_path_factory.mktemp("encoded"))


def everything(folder: Path, split: str = "train", view: int = 0, draw: int = 0) -> Tensor:
    dataset = CodesDataset.open(folder, split, None)
    return dataset.batch(torch.arange(len(dataset)), view, draw)[0]


def test_packed_codes_are_the_tokenizers_codes(images: ShardIndex, codes: Path) -> None:
    pixels, labels = load_split(images.folder, "train")
    dataset = CodesDataset.open(codes, "train", "a" * 64)
    found, found_labels = dataset.batch(torch.arange(25))
    assert found.dtype == torch.bool and found.shape == (25, GRID**2, BITS)
    assert torch.equal(found, Stand().encode(pixels.float() / 255) > 0.5)
    assert torch.equal(found_labels, labels) and found_labels.dtype == torch.int64
    assert (len(dataset), dataset.code_bits, dataset.grid, dataset.num_classes) == (25, BITS, GRID, 2)
    assert dataset.views == ["identity", "flip"] and dataset.class_counts == [15, 10]
    assert len(CodesDataset.open(codes, "val", None)) == 5


def test_flip_is_the_code_of_the_mirrored_image(images: ShardIndex, codes: Path) -> None:
    pixels, _ = load_split(images.folder, "train")
    assert torch.equal(everything(codes, view=1), Stand().encode(pixels.flip(-1).float() / 255) > 0.5)


def test_a_batch_takes_any_images_in_any_order_and_a_view_of_each(codes: Path) -> None:
    dataset = CodesDataset.open(codes, "train", None)
    indices, views = torch.tensor([24, 0, 9, 8, 24, 17, 18]), torch.tensor([0, 1, 1, 0, 1, 0, 1])
    found, labels = dataset.batch(indices, views)
    both = torch.stack([everything(codes, view=0), everything(codes, view=1)], dim=1)
    assert torch.equal(found, both[indices, views])
    assert torch.equal(labels, dataset.batch(torch.arange(25))[1][indices])
    assert dataset.batch(torch.tensor([], dtype=torch.int64))[0].shape == (0, GRID**2, BITS)
    for outside in (25, -1):
        with pytest.raises(IndexError):
            dataset.batch(torch.tensor([0, outside]))


def test_files_hold_what_the_contract_says(codes: Path) -> None:
    with safe_open(codes / "train-000002.safetensors", framework="np") as file:
        packed, metadata = file.get_tensor("codes"), file.metadata()
        assert packed.shape == (7, 2, GRID**2, 1) and packed.dtype == np.uint8
        assert file.get_tensor("labels").dtype == np.int64
    assert np.array_equal(np.unpackbits(packed, axis=-1, count=BITS)[:, 0].astype(bool), everything(codes)[18:].numpy())
    assert metadata["tokenizer"] == "a" * 64 and json.loads(metadata["views"]) == ["identity", "flip"]
    assert (metadata["code_bits"], metadata["grid"], metadata["draws"]) == ("5", "2", "0")
    index = json.loads((codes / "index.json").read_text())
    assert index["classes"] == ["a", "b"] and index["tokenizer"] == "a" * 64
    assert index["splits"]["train"]["shards"] == [
        {"name": f"train-{n:06d}.safetensors", "images": count} for n, count in enumerate((9, 9, 7))
    ]


def test_same_input_gives_identical_files(images: ShardIndex, codes: Path, tmp_path: Path) -> None:
    again = encoded(images, tmp_path / "again")
    for path in codes.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_first_entries_are_the_thresholded_codes_whatever_is_drawn(
    images: ShardIndex, codes: Path, tmp_path: Path
) -> None:
    """What evaluation, probe and reconstructions read does not change with the bits that training sees."""
    drawn = encoded(images, tmp_path, draws=3)
    assert all(torch.equal(everything(drawn, view=view), everything(codes, view=view)) for view in (0, 1))
    of_drawn, of_thresholded = (CodesDataset.open(folder, "train", None) for folder in (drawn, codes))
    assert bit_usage(of_drawn) == bit_usage(of_thresholded)
    assert (of_drawn.draws, of_thresholded.draws) == (3, 0)
    with safe_open(drawn / "train-000002.safetensors", framework="np") as file:
        packed, metadata = file.get_tensor("codes"), file.metadata()
    assert packed.shape == (7, 2 * (1 + 3), GRID**2, 1) and metadata["draws"] == "3"
    entry = np.unpackbits(packed[:, 2 * 2 + 1], axis=-1, count=BITS).astype(bool)  # the second draw of the flip
    assert np.array_equal(entry, everything(drawn, view=1, draw=2)[18:].numpy())


def test_a_batch_takes_a_view_and_a_draw_of_each_image(images: ShardIndex, tmp_path: Path) -> None:
    folder = encoded(images, tmp_path, draws=2)
    dataset = CodesDataset.open(folder, "train", None)
    indices, views, draws = torch.tensor([24, 0, 9, 8]), torch.tensor([0, 1, 1, 0]), torch.tensor([2, 1, 0, 1])
    every = torch.stack([torch.stack([everything(folder, view=v, draw=d) for d in range(3)], 1) for v in (0, 1)], 1)
    assert torch.equal(dataset.batch(indices, views, draws)[0], every[indices, views, draws])
    for view, draw in ((2, 0), (0, 3), (-1, 0), (0, -1)):
        with pytest.raises(IndexError):
            dataset.batch(indices, view, draw)


def test_drawn_bits_follow_the_probabilities(images: ShardIndex, tmp_path: Path) -> None:
    folder = encoded(images, tmp_path, draws=64)
    pixels, _ = load_split(images.folder, "train")
    for view, seen in enumerate((pixels, pixels.flip(-1))):
        probabilities = Stand().encode(seen.float() / 255)
        drawn = torch.stack([everything(folder, view=view, draw=draw) for draw in range(1, 65)]).double()
        deviation = (probabilities * (1 - probabilities) / 64).sqrt()
        assert ((drawn.mean(0) - probabilities).abs() <= 5 * deviation + 1e-9).all()
        # Between two draws nothing but the probabilities is shared.
        centred = drawn - probabilities
        assert abs(float((centred[1:] * centred[:-1]).mean())) < 0.01


def test_every_view_and_draw_of_an_image_has_bits_of_its_own(images: ShardIndex, tmp_path: Path) -> None:
    class Coin(Stand):
        def encode(self, images: Tensor) -> Tensor:
            return torch.full((len(images), GRID**2, BITS), 0.5)

    path = tmp_path / "coin.safetensors"
    encoding = Encoding(BITS, GRID, ["identity", "flip"], "a" * 64, draws=2, seed=0)
    placed = next(iter(place_shards(images)))
    encode_shard(Coin(), placed, path, encoding, batch_size=4, device=CPU, workers=1, advance=lambda n: None)
    with safe_open(path, framework="np") as file:
        packed = file.get_tensor("codes")
    assert not packed[:, :2].any()  # probability ½ is not above it
    assert len(np.unique(packed[:, 2:].reshape(9 * 4, -1), axis=0)) == 36


def test_draws_follow_from_the_seed_not_from_batches_or_shards(images: ShardIndex, tmp_path: Path) -> None:
    first = encoded(images, tmp_path / "first", draws=2)
    packed(images.folder.parent / "images", tmp_path / "small", 4)
    resharded = encoded(ShardIndex.load(tmp_path / "small"), tmp_path / "resharded", draws=2)
    again = encoded(images, tmp_path / "again", draws=2, batch_size=7)
    more = encoded(images, tmp_path / "more", draws=3)
    other = encoded(images, tmp_path / "other", draws=2, seed=1)
    for split in images.splits:
        for view, draw in ((0, 1), (0, 2), (1, 1), (1, 2)):
            expected = everything(first, split, view, draw)
            for folder in (resharded, again, more):
                assert torch.equal(everything(folder, split, view, draw), expected), folder.name
            assert not torch.equal(everything(other, split, view, draw), expected)
    assert not torch.equal(everything(first, "train", 0, 1)[:5], everything(first, "val", 0, 1))


def test_codes_of_an_earlier_format_are_read_or_refused_in_one_line(
    images: ShardIndex, codes: Path, tmp_path: Path
) -> None:
    folder = encoded(images, tmp_path)
    index = json.loads((folder / "index.json").read_text())
    del index["draws"]
    (folder / "index.json").write_text(json.dumps({**index, "drawn": False}))
    assert torch.equal(everything(folder), everything(codes))
    (folder / "index.json").write_text(json.dumps({**index, "drawn": True}))
    with pytest.raises(BigrError, match=r"drawn.*run the stage codes again") as error:
        CodesDataset.open(folder, "train", None)
    assert "\n" not in str(error.value)
    (folder / "index.json").write_text(json.dumps({**index, "draws": 1}))  # more than the files hold
    with pytest.raises(BigrError, match=r"does not belong to its index.json; run the stage codes again"):
        CodesDataset.open(folder, "train", None)


def test_codes_of_another_tokenizer_are_refused(codes: Path) -> None:
    with pytest.raises(BigrError, match=r"codes of another tokenizer .*run the stage codes again") as error:
        CodesDataset.open(codes, "train", "b" * 64)
    assert "\n" not in str(error.value)


def test_missing_damaged_and_mixed_files_are_one_clear_line(images: ShardIndex, tmp_path: Path) -> None:
    with pytest.raises(BigrError, match=r"index.json is missing; run the stage codes first"):
        CodesDataset.open(tmp_path, "train", None)
    folder, other = encoded(images, tmp_path / "a"), encoded(images, tmp_path / "b", tokenizer="b" * 64)
    file = folder / "train-000001.safetensors"
    data = file.read_bytes()
    for damage in (data[:100], data[:-10], b"", b"x" * 300, (other / file.name).read_bytes()):
        file.write_bytes(damage)
        with pytest.raises(BigrError, match=r"train-000001.safetensors .*run the stage codes again") as error:
            CodesDataset.open(folder, "train", None)
        assert "\n" not in str(error.value)
    file.unlink()
    with pytest.raises(BigrError, match=r"train-000001.safetensors is missing"):
        CodesDataset.open(folder, "train", None)


def test_codes_are_mapped_not_read(tmp_path: Path) -> None:
    """Two gigabytes are opened, and their last image read, in a few megabytes: the file is a hole but for its end."""
    count, tokens = 1 << 20, 683
    size = count * tokens * 3
    header = {
        "__metadata__": {"tokenizer": "t"},
        "labels": {"dtype": "I64", "shape": [count], "data_offsets": [0, count * 8]},
        "codes": {"dtype": "U8", "shape": [count, 1, tokens, 3], "data_offsets": [count * 8, count * 8 + size]},
    }
    text = json.dumps(header).encode()
    with (tmp_path / "train-000000.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.seek(8 + len(text) + count * 8 + size - 1)
        file.write(b"\x01")
    shards = [{"name": "train-000000.safetensors", "images": count}]
    split = {"images": count, "class_counts": [count], "shards": shards}
    index = {"code_bits": 24, "grid": 26, "views": ["identity"], "tokenizer": "t", "classes": ["a"]}
    (tmp_path / "index.json").write_text(json.dumps({**index, "splits": {"train": split}}))
    before = psutil.Process().memory_info().rss
    dataset = CodesDataset.open(tmp_path, "train", "t")
    found, _ = dataset.batch(torch.tensor([count - 1, 5]))
    assert psutil.Process().memory_info().rss - before < 100e6
    assert found.sum() == 1 and found[0, -1, -1]
    (tmp_path / "train-000000.safetensors").unlink()  # whatever copies holes as zeros would fill the disk


def test_bit_usage_counts_dead_bits_and_entropy(codes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes_module, "_CHUNK", 4)
    dataset = CodesDataset.open(codes, "train", None)
    frequency = everything(codes).float().mean(dim=(0, 1))
    entropy = -(frequency * frequency.log2() + (1 - frequency) * (1 - frequency).log2()).mean()
    assert bit_usage(dataset) == {"bit_entropy": pytest.approx(float(entropy), abs=1e-6), "dead_bits": 0}
    constant = torch.zeros(4, GRID**2, BITS, dtype=torch.bool)
    constant[..., 0] = True
    constant[:2, :, 1] = True
    monkeypatch.setattr(CodesDataset, "chunks", lambda self, count: iter([(constant, None)]))
    monkeypatch.setattr(CodesDataset, "__len__", lambda self: 4)
    assert bit_usage(dataset) == {"bit_entropy": pytest.approx(1 / BITS), "dead_bits": BITS - 1}


# The stage


class Recorded(Report):
    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def metrics(self, values: object, step: int | None = None) -> None:
        self.values.update(values)  # type: ignore[call-overload]


def project(root: Path, images: ShardIndex, image_size: int = SIZE) -> Path:
    """A project folder with the shards and an untrained tokenizer."""
    (root / "data").mkdir(parents=True)
    (root / "data" / "shards").symlink_to(images.folder)
    torch.manual_seed(0)
    config = TokenizerConfig(image_size, BITS, 32, 32, (1, 1, 1), 1, (), norm_first=True)
    save(root / "models" / "tokenizer", Tokenizer(config))
    return root


def settings_with(**changes: object) -> Settings:
    settings = load(Path(__file__).parents[1] / "params.yaml")
    return settings.model_copy(update={"codes": settings.codes.model_copy(update=changes)})


def test_stage_encodes_both_splits_and_reports(images: ShardIndex, tmp_path: Path) -> None:
    root, report = project(tmp_path, images), Recorded()
    (root / "data" / "codes").mkdir()
    (root / "data" / "codes" / "stale.safetensors").touch()
    stage.run(settings_with(views=["identity", "flip"], batch_size=3), Context(root, report=report))
    tokenizer, name = load_model(root / "models" / "tokenizer", Tokenizer), model_hash(root / "models" / "tokenizer")
    for split in ("train", "val"):
        dataset = CodesDataset.open(root / "data" / "codes", split, name)
        pixels, labels = load_split(images.folder, split)
        found, found_labels = dataset.batch(torch.arange(len(dataset)))
        with torch.no_grad():
            right = tokenizer.codes(pixels.float() / 255)
        assert float((found == right).float().mean()) > 0.999 and torch.equal(found_labels, labels)
    assert report.values["train_images"] == 25 and report.values["val_images"] == 5
    assert 0 <= report.values["bit_entropy"] <= 1 and 0 <= report.values["dead_bits"] <= BITS
    assert sorted(path.name for path in (root / "data").iterdir()) == ["codes", "shards"]
    written = {path.name for path in (root / "data" / "codes").iterdir()}
    assert written == {*(placed.codes_name for placed in place_shards(images)), "index.json"}


def test_several_processes_write_what_one_writes(
    images: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_with(views=["identity"], draws=2)
    alone, shared = project(tmp_path / "alone", images), project(tmp_path / "shared", images)
    stage.run(settings, Context(alone))
    report = Recorded()

    shares: list[list[str]]
    encode = stage.encode_shard

    def watched(encoder: Tokenizer, placed: PlacedShard, *args: object, **options: object) -> None:
        shares[-1].append(placed.shard.file.path.name)
        encode(encoder, placed, *args, **options)  # type: ignore[arg-type]

    # Process 1 works while process 0 waits at the barrier after its own share.
    met, shares = 0, [[]]

    def barrier() -> None:
        nonlocal met
        met += 1
        shares.append([])
        if met == 1:
            with monkeypatch.context() as other:
                other.setattr(stage, "rank", lambda: 1)
                other.setattr(stage, "keep_parts", lambda *_: None)  # the first process's
                other.setattr(stage, "is_main", lambda: False)
                other.setattr(stage, "barrier", lambda: None)
                stage.run(settings, Context(shared, report=report))

    monkeypatch.setattr(stage, "encode_shard", watched)
    monkeypatch.setattr(stage, "world", lambda: 2)
    monkeypatch.setattr(stage, "barrier", barrier)
    stage.run(settings, Context(shared))
    one, two = ({p.name: p.read_bytes() for p in (root / "data" / "codes").iterdir()} for root in (alone, shared))
    assert met == 2 and one == two and report.values == {}
    assert shares[0] == ["train-000000.tar", "train-000002.tar"] and shares[1] == ["train-000001.tar", "val-000000.tar"]


def test_a_run_that_was_killed_keeps_its_finished_files_under_the_same_fingerprint(
    images: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, encode, done = settings_with(draws=1), stage.encode_shard, list[str]()

    def killed(encoder: Tokenizer, placed: PlacedShard, *args: object, **options: object) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(placed.codes_name)
        encode(encoder, placed, *args, **options)  # type: ignore[arg-type]

    whole, continued = project(tmp_path / "whole", images), project(tmp_path / "continued", images)
    stage.run(settings, Context(whole, "one"))
    monkeypatch.setattr(stage, "encode_shard", killed)
    for fingerprint in ("another", "one"):  # what was made under another fingerprint is made again
        done.clear()
        with pytest.raises(KeyboardInterrupt):
            stage.run(settings, Context(continued, fingerprint))
        assert len(done) == 2
    monkeypatch.setattr(stage, "encode_shard", lambda *args, **options: done.append("") or encode(*args, **options))
    stage.run(settings, Context(continued, "one"))
    one, two = ({p.name: p.read_bytes() for p in (root / "data" / "codes").iterdir()} for root in (whole, continued))
    assert one == two and len(done) == len(one) - 1  # the index is no part
    assert not (continued / "checkpoints").exists()


def test_a_tokenizer_for_other_images_is_refused(images: ShardIndex, tmp_path: Path) -> None:
    root = project(tmp_path, images, image_size=16)
    with pytest.raises(BigrError, match=r"tokenizer for 16-pixel images, the shards hold 8-pixel ones"):
        stage.run(settings_with(), Context(root))
    assert not (root / "data" / "codes").exists()


def test_precision_does_not_change_the_codes(images: ShardIndex, tmp_path: Path) -> None:
    written = []
    for precision in ("float32", "bfloat16"):
        root = project(tmp_path / precision, images)
        settings = settings_with()
        run = settings.run.model_copy(update={"precision": precision})
        stage.run(settings.model_copy(update={"run": run}), Context(root))
        written.append({p.name: p.read_bytes() for p in (root / "data" / "codes").iterdir()})
    assert written[0] == written[1]
