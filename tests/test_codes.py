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
from bigr.context import Context, Report
from bigr.data import codes as codes_module
from bigr.data.codes import CodesDataset, Encoding, bit_usage, codes_name, encode_shard, write_index
from bigr.data.packing import pack
from bigr.data.shards import Shard, ShardIndex, load_split
from bigr.data.sources import discover
from bigr.errors import BigrError
from bigr.interop.folders import load_model, model_hash, save
from bigr.models.tokenizer import Tokenizer, TokenizerConfig
from bigr.stages import codes as stage

SIZE, GRID, BITS = 8, 2, 5
CPU = torch.device("cpu")


class Stand:
    """Bits of a token: five pixels of its 4×4 patch of the red channel, as probabilities."""

    def encode(self, images: Tensor) -> Tensor:
        patches = images[:, 0].unfold(1, 4, 4).unfold(2, 4, 4).flatten(3).flatten(1, 2)
        return patches[..., [0, 3, 6, 9, 12]]

    def codes(self, images: Tensor) -> Tensor:
        return self.encode(images) > 0.5


def images_of(root: Path, counts: dict[str, int]) -> Path:
    """Noise pictures in class folders."""
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    """Shards of 25 train and 5 val images of two classes."""
    root = tmp_path_factory.mktemp("codes")
    source = images_of(root / "images", {"train/a": 15, "train/b": 10, "val/a": 3, "val/b": 2})
    found = discover(source, val_fraction=0.5, seed=0)
    pack(found, root / "shards", image_size=SIZE, images_per_shard=9, max_bad_fraction=0, max_pixels=1000, workers=1)
    return ShardIndex.load(root / "shards")


def encoded(images: ShardIndex, folder: Path, *, batch_size: int = 4, **changes: object) -> Path:
    values = {"code_bits": BITS, "grid": GRID, "views": ["identity", "flip"], "tokenizer": "a" * 64, "drawn": False}
    encoding = Encoding(**{**values, "seed": 0, **changes})  # type: ignore[arg-type]
    for split in images.splits:
        for shard in images.shards(split):
            path = folder / codes_name(shard)
            options = {"batch_size": batch_size, "device": CPU, "workers": 1, "advance": lambda n: None}
            encode_shard(Stand(), shard, path, encoding, **options)  # type: ignore[arg-type]
    write_index(folder, images, encoding)
    return folder


@pytest.fixture(scope="module")
def codes(images: ShardIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoded(images, tmp_path_factory.mktemp("encoded"))


def everything(folder: Path, split: str = "train", view: int = 0) -> Tensor:
    dataset = CodesDataset.open(folder, split, None)
    return dataset.batch(torch.arange(len(dataset)), view)[0]


def test_packed_codes_are_the_tokenizers_codes(images: ShardIndex, codes: Path) -> None:
    pixels, labels = load_split(images.folder, "train")
    dataset = CodesDataset.open(codes, "train", "a" * 64)
    found, found_labels = dataset.batch(torch.arange(25))
    assert found.dtype == torch.bool and found.shape == (25, GRID**2, BITS)
    assert torch.equal(found, Stand().codes(pixels.float() / 255))
    assert torch.equal(found_labels, labels) and found_labels.dtype == torch.int64
    assert (len(dataset), dataset.code_bits, dataset.grid, dataset.num_classes) == (25, BITS, GRID, 2)
    assert dataset.views == ["identity", "flip"] and dataset.class_counts == [15, 10]
    assert len(CodesDataset.open(codes, "val", None)) == 5


def test_flip_is_the_code_of_the_mirrored_image(images: ShardIndex, codes: Path) -> None:
    pixels, _ = load_split(images.folder, "train")
    assert torch.equal(everything(codes, view=1), Stand().codes(pixels.flip(-1).float() / 255))


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
    assert (metadata["code_bits"], metadata["grid"]) == ("5", "2")
    index = json.loads((codes / "index.json").read_text())
    assert index["classes"] == ["a", "b"] and index["tokenizer"] == "a" * 64
    assert index["splits"]["train"]["shards"] == [
        {"name": f"train-{n:06d}.safetensors", "images": count} for n, count in enumerate((9, 9, 7))
    ]


def test_same_input_gives_identical_files(images: ShardIndex, codes: Path, tmp_path: Path) -> None:
    again = encoded(images, tmp_path / "again")
    for path in codes.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_drawn_bits_follow_the_probabilities_and_the_seed_alone(images: ShardIndex, tmp_path: Path) -> None:
    first = everything(encoded(images, tmp_path / "first", drawn=True))
    assert torch.equal(everything(encoded(images, tmp_path / "again", drawn=True, batch_size=7)), first)
    assert not torch.equal(everything(encoded(images, tmp_path / "other", drawn=True, seed=1)), first)
    pixels, _ = load_split(images.folder, "train")
    probabilities = Stand().encode(pixels.float() / 255)
    likely = probabilities > 0.5
    assert not torch.equal(first, likely)
    assert 0.6 < float((first == likely).float().mean()) < 0.9  # ¾ in expectation, for uniform probabilities
    assert abs(float(first.float().mean() - probabilities.mean())) < 0.1


def test_views_are_drawn_apart(images: ShardIndex, tmp_path: Path) -> None:
    class Coin(Stand):
        def encode(self, images: Tensor) -> Tensor:
            return torch.full((len(images), GRID**2, BITS), 0.5)

    shard, path = images.shards("train")[0], tmp_path / "coin.safetensors"
    encoding = Encoding(BITS, GRID, ["identity", "flip"], "a" * 64, drawn=True, seed=0)
    encode_shard(Coin(), shard, path, encoding, batch_size=4, device=CPU, workers=1, advance=lambda n: None)
    with safe_open(path, framework="np") as file:
        packed = file.get_tensor("codes")
    flat = packed.reshape(9 * 2, -1)
    assert len(np.unique(flat, axis=0)) == 18


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
    monkeypatch.setattr(CodesDataset, "chunks", lambda self: iter([(constant, None)]))
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
    (root / "data" / ".codes.partial").mkdir()  # of a run that was killed
    (root / "data" / ".codes.partial" / "killed.safetensors").touch()
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
    assert written == {*(codes_name(s) for split in images.splits for s in images.shards(split)), "index.json"}


def test_several_processes_write_what_one_writes(
    images: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_with(views=["identity"])
    alone, shared = project(tmp_path / "alone", images), project(tmp_path / "shared", images)
    stage.run(settings, Context(alone))
    report = Recorded()

    shares: list[list[str]] = []
    encode = stage.encode_shard

    def watched(encoder: Tokenizer, shard: Shard, *args: object, **options: object) -> None:
        shares[-1].append(shard.path.name)
        encode(encoder, shard, *args, **options)  # type: ignore[arg-type]

    # Process 1 works while process 0 waits at the barrier after its own share.
    met = 0

    def barrier() -> None:
        nonlocal met
        met += 1
        shares.append([])
        if met == 2:
            with monkeypatch.context() as other:
                other.setattr(stage, "rank", lambda: 1)
                other.setattr(stage, "is_main", lambda: False)
                other.setattr(stage, "barrier", lambda: None)
                stage.run(settings, Context(shared, report=report))

    monkeypatch.setattr(stage, "encode_shard", watched)
    monkeypatch.setattr(stage, "world", lambda: 2)
    monkeypatch.setattr(stage, "barrier", barrier)
    stage.run(settings, Context(shared))
    one, two = ({p.name: p.read_bytes() for p in (root / "data" / "codes").iterdir()} for root in (alone, shared))
    assert met == 3 and one == two and report.values == {}
    assert shares[0] == ["train-000000.tar", "train-000002.tar"] and shares[1] == ["train-000001.tar", "val-000000.tar"]


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
