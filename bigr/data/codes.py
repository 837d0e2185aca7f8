"""Codes on disk: every image of the shards as packed bits, read through memory maps.

One safetensors file per image shard: `codes` uint8 [n, V·(1 + draws), N, ⌈K/8⌉], bits packed along K in
`numpy.packbits` order, and `labels` int64 [n]; its metadata and `index.json` name K, the grid, the views, the number of
draws and the tokenizer's hash. Entry d·V + v of an image is draw d of view v. Draw 0 is the deterministic code, bits
thresholded at ½, which evaluation reads; the others are independent draws of the bits, for training.

Shapes: B images, V views, N = g² tokens in row-major order, K bits.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from bigr.data.shards import Shard, ShardIndex, read_shard
from bigr.data.stored_files import StoredFile, check_room, fetch, stored_file
from bigr.data.texts import Texts
from bigr.models import bits
from bigr.runtime import seeds
from bigr.runtime.errors import BigrError
from bigr.runtime.files import write_json, write_tensors

_CHUNK = 4096
"""Images whose bits are unpacked at a time by `CodesDataset.chunks`."""


class CodeEncoder(Protocol):
    """A tokenizer, as far as this module needs one."""

    def encode(self, images: Tensor) -> Tensor:
        """[B,3,H,W] in [0, 1] → bit probabilities [B,N,K]."""


@dataclass(frozen=True)
class Encoding:
    """How images are encoded. code_bits: K; grid: g; draws: of each view's bits, besides the thresholded ones."""

    code_bits: int
    grid: int
    views: list[str]
    tokenizer: str
    draws: int
    seed: int

    def metadata(self) -> dict[str, Any]:
        """The values in `index.json` and in the header of every file."""
        return {name: value for name, value in asdict(self).items() if name != "seed"}


class PlacedShard(NamedTuple):
    """An image shard, its split, its number in the split, and the index of its first image there."""

    shard: Shard
    split: str
    number: int
    first: int

    @property
    def codes_name(self) -> str:
        """The name of the file that holds its codes; images' shards of two folders may have the same name."""
        return f"{self.split}-{self.number:06d}.safetensors"


def place_shards(images: ShardIndex) -> Iterator[PlacedShard]:
    """Every shard of every split, in order."""
    for split in images.splits:
        first = 0
        for number, shard in enumerate(images.shards(split)):
            yield PlacedShard(shard, split, number, first)
            first += shard.images


@torch.no_grad()
def encode_shard(
    encoder: CodeEncoder,
    placed: PlacedShard,
    path: Path,
    encoding: Encoding,
    *,
    batch_size: int,
    device: torch.device,
    workers: int,
    advance: Callable[[int], None],
) -> None:
    """Encode the images of one shard into the file `path`, atomically.

    workers: threads that decode; advance: called with the number of images of each batch. A drawn bit depends on the
    seed, the image's index in its split, the view and the number of the draw, and on nothing else.
    Raises `BigrError` for a damaged shard.
    """
    packed: list[np.ndarray] = []
    labels: list[int] = []
    stream, views = read_shard(placed.shard, workers), len(encoding.views)
    while batch := list(islice(stream, batch_size)):
        images = torch.stack([image for image, _ in batch]).to(device).float() / 255
        entries: list[np.ndarray] = [np.empty(0)] * (views * (1 + encoding.draws))
        for number, view in enumerate(encoding.views):
            probabilities = encoder.encode(images.flip(-1) if view == "flip" else images)
            entries[number] = np.packbits((probabilities > 0.5).cpu().numpy(), axis=-1)
            for draw, drawn in enumerate(_draws(probabilities, encoding, placed, len(labels), view), start=1):
                entries[draw * views + number] = np.packbits(drawn.numpy(), axis=-1)
        packed.append(np.stack(entries, axis=1))
        labels += [label for _, label in batch]
        advance(len(batch))
    tensors = {"codes": torch.from_numpy(np.concatenate(packed)), "labels": torch.tensor(labels, dtype=torch.int64)}
    metadata = {name: v if isinstance(v, str) else json.dumps(v) for name, v in encoding.metadata().items()}
    write_tensors(path, tensors, metadata)


def _draws(probabilities: Tensor, encoding: Encoding, placed: PlacedShard, first: int, view: str) -> Iterator[Tensor]:
    """Bernoulli draws, bool [B,N,K] each, of images from index `first` of a shard on, each by its own generator."""
    if not encoding.draws:
        return
    probabilities, numbers = probabilities.cpu(), range(placed.first + first, placed.first + first + len(probabilities))
    generators = [seeds.generator(encoding.seed, "codes", placed.split, number, view) for number in numbers]
    for _ in range(encoding.draws):
        uniform = [torch.rand(probabilities.shape[1:], generator=own) for own in generators]
        yield torch.stack(uniform) < probabilities


def write_index(
    folder: Path, images: ShardIndex, encoding: Encoding, stored: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Write `index.json`. To be called last, since its presence means that all files are there.

    stored: the entry of each file at a URL, by its name here.
    """
    splits = {
        split: {
            "images": images.images(split),
            "class_counts": images.class_counts(split),
            "shards": [
                {"name": placed.codes_name, **(stored or {}).get(placed.codes_name, {}), "images": placed.shard.images}
                for placed in place_shards(images)
                if placed.split == split
            ],
        }
        for split in images.splits
    }
    write_json(folder / "index.json", {**encoding.metadata(), "classes": images.classes, "splits": splits})


class CodesDataset:
    """The codes of one split, memory-mapped. Made by `open`.

    code_bits: K; grid: g; views: their names; draws: of each view's bits, besides the thresholded ones; tokenizer: the
    hash of the tokenizer that made them; num_classes: C; class_counts: images of each class; texts: the images' texts,
    where these take the classes' place (`with_texts`).
    """

    def __init__(self, index: dict[str, Any], split: str, codes: list[np.ndarray], labels: list[np.ndarray]) -> None:
        self.code_bits: int = index["code_bits"]
        self.grid: int = index["grid"]
        self.views: list[str] = index["views"]
        self.draws: int = index["draws"]
        self.tokenizer: str = index["tokenizer"]
        self.classes: list[str] = index["classes"]
        self.texts: Texts | None = None
        self.class_counts: list[int] = index["splits"][split]["class_counts"]
        self._codes, self._labels = codes, labels
        self._starts = np.cumsum([0, *map(len, codes)])

    @property
    def num_classes(self) -> int:
        """C, the unconditional class not counted."""
        return len(self.classes)

    @classmethod
    def open(cls, folder: Path, split: str, tokenizer_hash: str | None) -> "CodesDataset":
        """Map the files of a split. Those at URLs are copied here first, and stay while they are mapped.

        Raises `BigrError` for missing, damaged or mixed files, and for codes of a tokenizer with another hash than
        `tokenizer_hash` (None: any tokenizer).
        """
        path = folder / "index.json"
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            found, shards = index["tokenizer"], index["splits"][split]["shards"]
            entries = len(index["views"]) * (1 + index.setdefault("draws", 0))  # codes of an earlier format have none
            files = {
                name: [stored_file(folder, shard, "codes") for shard in of_split["shards"]]
                for name, of_split in index["splits"].items()
            }
        except FileNotFoundError:
            raise BigrError(f"{path} is missing; run the stage codes first") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BigrError(f"{path} is not an index of codes ({error!r}); run the stage codes again") from None
        if index.get("drawn"):
            raise BigrError(f"{folder} holds drawn bits alone, in an earlier format; run the stage codes again")
        if tokenizer_hash is not None and found != tokenizer_hash:
            raise BigrError(
                f"{folder} holds codes of another tokenizer ({found[:12]}…) than the present one "
                f"({tokenizer_hash[:12]}…); run the stage codes again"
            )
        check_room([file for of_split in files.values() for file in of_split], f"the codes of {path}")
        fetch(files[split])
        mapped = [_map(file, found, shard["images"], entries) for file, shard in zip(files[split], shards, strict=True)]
        return cls(index, split, [codes for codes, _ in mapped], [labels for _, labels in mapped])

    def with_texts(self, folder: Path, split: str) -> "CodesDataset":
        """The same, with the texts of the images in `folder` (data/text), if there are any."""
        self.texts = Texts.open(folder, split, len(self))
        return self

    @property
    def shape(self) -> dict[str, Any]:
        """The arguments of `BiGRConfig.of` that follow from the codes and the texts."""
        text = None if self.texts is None else self.texts.shape
        return {"code_bits": self.code_bits, "grid": self.grid, "num_classes": self.num_classes, "text": text}

    @property
    def text_encoder(self) -> str | None:
        """The hash of the encoder of the texts, where there are any."""
        return None if self.texts is None else self.texts.encoder

    @property
    def unconditional(self) -> int:
        """What stands for no class, in the place of a label; or for no text, in all places of one."""
        return self.num_classes if self.texts is None else 0

    def conditions(self, indices: Tensor, labels: Tensor) -> Tensor:
        """What a model is told about images: their texts, where there are any, else their labels."""
        return labels if self.texts is None else self.texts.batch(indices)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def batch(self, indices: Tensor, views: Tensor | int = 0, draws: Tensor | int = 0) -> tuple[Tensor, Tensor]:
        """Codes bool [B,N,K] and labels int64 [B] of images.

        indices: int64 [B], in any order; views, draws: one number for all images, or one of each, int64 [B]; draw 0 is
        the thresholded bits. Raises `IndexError` for an image, view or draw that does not exist.
        """
        rows = indices.cpu().numpy()
        for name, numbers, count in (
            ("image", rows, len(self)),
            ("view", views, len(self.views)),
            ("draw", draws, 1 + self.draws),
        ):
            if not np.all((np.asarray(numbers) >= 0) & (np.asarray(numbers) < count)):
                raise IndexError(f"{name} must be in [0, {count}), got {numbers}")
        entry = np.broadcast_to(np.asarray(draws) * len(self.views) + np.asarray(views), rows.shape)
        packed = np.empty((len(rows), *self._codes[0].shape[2:]), dtype=np.uint8)
        labels = np.empty(len(rows), dtype=np.int64)
        shards = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shards):
            here = np.flatnonzero(shards == shard)
            places = rows[here] - self._starts[shard]
            packed[here] = self._codes[shard][places, entry[here]]
            labels[here] = self._labels[shard][places]
        bits = np.unpackbits(packed, axis=-1, count=self.code_bits).view(np.bool_)
        return torch.from_numpy(bits), torch.from_numpy(labels)

    def chunks(self, count: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The first `count` images once (None: all), in order, first view, in batches of bounded size; see `batch`."""
        for indices in torch.arange(len(self) if count is None else count).split(_CHUNK):
            yield self.batch(indices)


def _map(file: StoredFile, tokenizer: str, images: int, entries: int) -> tuple[np.ndarray, np.ndarray]:
    """Memory maps of a file's codes and labels. safetensors itself has no maps that can be indexed."""
    try:
        with file.open(held=True) as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if length < os.fstat(stream.fileno()).st_size else {}
            maps = []
            for name, dtype in (("codes", np.dtype("u1")), ("labels", np.dtype("<i8"))):
                entry = header[name]
                offset = 8 + length + entry["data_offsets"][0]
                maps.append(np.memmap(stream, dtype, mode="r", offset=offset, shape=tuple(entry["shape"])))
        found = header["__metadata__"]["tokenizer"]
    except FileNotFoundError:
        raise BigrError(f"{file} is missing; run the stage codes again") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BigrError(f"{file} is not a file of codes ({error!r}); run the stage codes again") from None
    if found != tokenizer or maps[0].shape[:2] != (images, entries):
        raise BigrError(f"{file} does not belong to its index.json; run the stage codes again")
    return maps[0], maps[1]


def bit_frequency(dataset: CodesDataset, count: int | None = None) -> Tensor:
    """The share of tokens with each bit on, float64 [K]: first view, the first `count` images (None: all)."""
    ones = sum(codes.sum(dim=(0, 1)) for codes, _ in dataset.chunks(count))
    return torch.as_tensor(ones).double() / ((len(dataset) if count is None else count) * dataset.grid**2)


def bit_usage(dataset: CodesDataset) -> dict[str, float]:
    """`bit_entropy` and `dead_bits` of `bit_frequency`; see `bigr.models.bits`. An entropy of 1 is best."""
    frequency = bit_frequency(dataset)
    return {"bit_entropy": float(bits.entropy(frequency).mean()), "dead_bits": bits.dead(frequency)}
