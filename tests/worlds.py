"""Small real inputs for tests of the stages: a project folder with shards, codes or models, and settings that fit."""

import json
import struct
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor, nn

from bigr import config
from bigr.data.codes import CodesDataset
from bigr.data.texts import write_text_index, write_texts
from bigr.evaluation.representation.features import Features, write_features
from bigr.interop.folders import model_hash, save
from bigr.models.autoencoder.tokenizer import Tokenizer, TokenizerConfig
from bigr.models.masked.generator import BiGR, BiGRConfig
from bigr.runtime.context import Context
from bigr.runtime.files import write_json, write_tensors
from bigr.stages import pack_shards
from tests import tiny

ROOT = Path(__file__).parent.parent


def settings(**overrides):
    """params.yaml with the tiny values of tests/tiny.py, then `overrides` as section__key=value, or seed=value."""
    values = config.read(ROOT / "params.yaml")
    dotted = tiny.OVERRIDES | {key.replace("__", "."): value for key, value in overrides.items()}
    for key, value in dotted.items():
        *section, name = key.split(".")
        (values[section[0]] if section else values)[name] = value
    return config.validate(values)


def write_shards(root: Path, *, size=32, classes=2, images=12, prefix="") -> None:
    """Shards of smooth random pictures under root/data/shards, made by the stage `shards`; classes `prefix`0, …"""
    draws = np.random.default_rng(0)
    for split, count in (("train", images), ("val", images // 3)):
        for number in range(count):
            path = root / "pictures" / split / f"{prefix}{number % classes}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = Image.fromarray(draws.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            coarse.resize((size, size), Image.Resampling.BICUBIC).save(path)
    pack_shards.run(
        settings(shards__source="pictures", shards__image_size=size, tokenizer__attention_resolutions=[]), Context(root)
    )


def write_captioned(folder: Path, *, size: int, images: int = 60) -> None:
    """A folder of smooth random pictures of one class, each with its own caption in a file beside it."""
    folder.mkdir(parents=True)
    draws = np.random.default_rng(0)
    for number in range(images):
        coarse = Image.fromarray(draws.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        colour, shape = ("red", "blue")[number % 2], ("circle", "square", "squares")[number % 3]
        (folder / f"{number}.txt").write_text(f"a {colour} {shape} number {number}")


def write_codes(root: Path, *, grid=4, bits=24, classes=3, images=40, tokenizer="a-tokenizer", drawn=0):
    """Random codes with a pattern per class under root/data/codes, in the project's format, and `drawn` others."""
    draws = torch.Generator().manual_seed(0)
    pattern = torch.where(torch.rand(classes, grid**2, bits, generator=draws) < 0.5, 0.05, 0.95)
    folder = root / "data" / "codes"
    header = {"code_bits": bits, "grid": grid, "views": ["identity"], "tokenizer": tokenizer, "draws": drawn}
    splits = {}
    for split, count in (("train", images), ("val", images // 2)):
        labels = torch.arange(count) % classes
        codes = torch.rand(1 + drawn, count, grid**2, bits, generator=draws) < pattern[labels]
        packed = torch.from_numpy(np.packbits(codes.numpy(), axis=-1)).transpose(0, 1)
        name = f"{split}-000000.safetensors"
        text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in header.items()}
        write_tensors(folder / name, {"codes": packed, "labels": labels}, text)
        counts = torch.bincount(labels, minlength=classes).tolist()
        splits[split] = {"images": count, "class_counts": counts, "shards": [{"name": name, "images": count}]}
    write_json(folder / "index.json", {**header, "classes": [str(c) for c in range(classes)], "splits": splits})
    return CodesDataset.open(folder, "train", tokenizer)


def write_text_rows(root: Path, kind: str, *, images: int) -> None:
    """Texts of the codes of `write_codes` in data/text: numbers of byte pairs (learned), or CLIP's features."""
    draws = np.random.default_rng(0)
    learned = {"text_tokens": 6, "text_vocabulary": 260}
    shape = learned if kind == "learned" else {"text_tokens": 6, "text_width": 12, "text_pooled": True}
    splits = {"train": images, "val": images // 2}
    for split, count in splits.items():
        lengths = [number % 4 for number in range(count)]  # the first is no text
        if kind == "learned":
            arrays = [draws.integers(1, 260, length).astype(np.int32) for length in lengths]
        else:
            arrays = [draws.normal(size=(length and length + 1, 12)).astype(np.float16) for length in lengths]
        write_texts(root / "data" / "text" / f"{split}.safetensors", arrays, "an encoder", 0)
    write_text_index(root / "data" / "text", "an encoder", shape, {split: [f"{split}.safetensors"] for split in splits})


def write_models(
    root: Path,
    *,
    classes=3,
    bits=6,
    grid=4,
    model_bits=None,
    quantizer="bernoulli",
    target="flip",
    tokenizer=None,
    multipliers=(1, 1),
    channels=32,
):
    """Untrained models under root/models that answer to all they are given: codes of 4×4 tokens, images of 8×8 pixels.

    grid, multipliers, channels: others, for images of grid · 2^(levels - 1) pixels; model_bits: those of models/bigr,
    where it is not to fit; tokenizer: the hash that it names, if not the true one.
    """
    torch.manual_seed(0)
    size = grid * 2 ** (len(multipliers) - 1)
    shape = TokenizerConfig(size, bits, 32, channels, multipliers, 1, (), norm_first=False, quantizer=quantizer)
    autoencoder = Tokenizer(shape)
    last = autoencoder.decoder.blocks[-1]
    nn.init.normal_(last.weight, std=0.03)
    nn.init.constant_(last.bias, 0.5)
    save(root / "models" / "tokenizer", autoencoder)
    model = BiGR(
        BiGRConfig(
            model_bits or bits, grid, classes, 32, 2, 2, 32, 1, ffn_multiple_of=32, diffusion_steps=16, target=target
        )
    )
    for parameter in model.parameters():  # the zeros of the initialisation would hide what depends on what
        nn.init.normal_(parameter, std=0.2)
    save(root / "models" / "bigr", model, tokenizer or model_hash(root / "models" / "tokenizer"))


def features_of(features: Tensor, labels: Tensor) -> Features:
    """Features [n, L, D] and labels [n] as they are kept on disk; the file is gone with the last who reads it."""
    with tempfile.TemporaryDirectory() as folder:
        return write_features(Path(folder) / "features.npy", [(features, labels)], len(labels))


def lpips_weights() -> dict[str, Tensor]:
    """LPIPS' tensors under their published names, VGG-16 made narrow, and one tensor that LPIPS does not use."""
    draws, width = torch.Generator().manual_seed(0), 3
    tensors = {"classifier.0.weight": torch.zeros(2, 2)}
    stages = [[0, 2], [5, 7], [10, 12, 14], [17, 19, 21], [24, 26, 28]]
    for stage, (numbers, out) in enumerate(zip(stages, (4, 6, 8, 8, 8), strict=True)):
        for number in numbers:
            tensors[f"features.{number}.weight"] = torch.randn(out, width, 3, 3, generator=draws) / (3 * width**0.5)
            tensors[f"features.{number}.bias"] = torch.randn(out, generator=draws) / 10
            width = out
        tensors[f"lin{stage}.model.1.weight"] = torch.rand(1, out, 1, 1, generator=draws)
    return tensors


def bomb(side: int = 20_000) -> bytes:
    """A PNG of side×side black pixels: a few kilobytes that unfold to 4·side² bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)  # one bit a pixel, grey
    pixels = zlib.compress(bytes(side * (1 + -(-side // 8))))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@contextmanager
def memory_grows_by_less_than(size: float) -> Iterator[None]:
    """Fails where this process's resident memory grows by `size` bytes or more meanwhile, looked at every 2 ms."""
    process, ended = psutil.Process(), threading.Event()
    before = most = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.002):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    assert most - before < size, f"{(most - before) / 1e6:.0f} MB"
