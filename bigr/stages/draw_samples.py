"""Stage `samples`: draw images, the same number of each class, or one of each text (docs/method.md, section 4).

Reads models/tokenizer and models/bigr; writes outputs/samples.npz in the layout that ADM's evaluator reads (`arr_0`
uint8 [n, H, W, 3], `arr_1` int64 labels [n]) and outputs/samples.png, one column a class. A model that takes texts gets
those of `samples.prompts`, or the captions of the validation split, from the first on: the file then has them as
`texts`, and labels are the captioned images', −1 of prompts. Samples of `samples.train_captions` training captions are
apart, as `train_images` and `train_texts`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from bigr.data.codes import CodesDataset
from bigr.data.picture_grid import save_captioned_grid, save_grid
from bigr.data.shards import ShardIndex, first_captions
from bigr.interop.belonging import check_pair
from bigr.interop.folders import load_model
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.models.masked.compiled import log_compile_time
from bigr.models.masked.generator import BiGR
from bigr.runtime.context import Context
from bigr.runtime.cpu_parts import in_parts
from bigr.runtime.device import resolve_device
from bigr.runtime.distributed import is_main, rank, world
from bigr.runtime.files import write_npz
from bigr.runtime.precision import autocast
from bigr.runtime.progress import Progress
from bigr.runtime.seeds import derive_seed
from bigr.sampling.acceleration import accelerate
from bigr.sampling.decode import batched, decoded
from bigr.sampling.inputs import NO_LABEL, balanced_labels, check_finite
from bigr.sampling.unmask import Sampling, sample_codes
from bigr.text.encoder import as_given
from bigr.text.encoder_folder import encoder_of
from bigr.text.prompts import read_prompts

if TYPE_CHECKING:
    from bigr.config import SamplesSettings, Settings

PICTURED_CLASSES = 16
PICTURED_TEXTS = 10  # in a row of the picture
GATHERED_TOGETHER = 256
"""Images that each process sends to the first at a time: all of them may not fit on a GPU."""


def run(settings: "Settings", context: Context) -> None:
    """Sample, decode, and write."""
    section, device = settings.samples, resolve_device(settings.run.device)
    tokenizer = load_model(context.root / "models" / "tokenizer", Tokenizer).to(device)
    model = load_model(context.root / "models" / "bigr", BiGR).to(device)
    check_pair(tokenizer, model, (context.root / "models" / "tokenizer", context.root / "models" / "bigr"))
    check_finite(model)
    if model.config.text_tokens:
        asked = asked_of_texts(settings, context.root, device)
    else:
        asked = asked_of_classes(model, section)
    count = section.count + len(asked.train_texts)
    seeds = [derive_seed(settings.seed, "samples", index) for index in range(count)]
    mine = range(rank(), count, world())
    accelerate(model, settings.run.compile, device, len(mine))

    images = torch.empty(len(mine), tokenizer.config.image_size, tokenizer.config.image_size, 3, dtype=torch.uint8)

    def draw(places: slice) -> None:
        chosen = list(mine[places])
        with autocast(device, settings.run.precision, model.config.dim):
            # A model trained without labels has learned the unconditional case alone.
            told = settings.generator.use_labels
            given = asked.conditions(chosen).to(device) if told else model.backbone.unconditional(len(chosen), device)
            codes = sample_codes(model, given, Sampling.of(section), [seeds[i] for i in chosen])
        images[places] = decoded(tokenizer, codes, settings.run.decode_precision)

    with Progress("samples", count, unit="image", enabled=is_main()) as bar:
        for places in batched(len(mine), section.batch_size):
            in_parts(draw, places, model.config.grid**2, device)
            bar.advance(len(places) * world())
    log_compile_time()

    images = gathered(images, count, device)
    if is_main():
        outputs = context.root / "outputs"
        own, train = images[: section.count], images[section.count :]
        texts = {}
        if asked.texts is not None:
            texts["texts"] = np.array(asked.texts)
        if asked.train_texts:
            texts |= {"train_images": train.numpy(), "train_texts": np.array(asked.train_texts)}
        write_npz(outputs / "samples.npz", arr_0=own.numpy(), arr_1=asked.labels.numpy(), **texts)
        picture = outputs / "samples.png"
        drawn = own.permute(0, 3, 1, 2)
        if asked.texts is None:
            save_class_columns(picture, drawn, asked.labels, section.grid_rows)
        else:
            most = PICTURED_TEXTS * section.grid_rows
            save_captioned_grid(picture, drawn[:most], asked.texts[:most], columns=PICTURED_TEXTS)
        context.report.picture("samples", picture)
        context.report.metrics({"images": float(count)})


@dataclass(frozen=True)
class Asked:
    """What each image is to show.

    labels: of the images by which the model is measured, int64 [n]; texts: theirs; train_texts: captions of the
    training split, of the images after these; conditions: of some images, by their numbers.
    """

    labels: Tensor
    conditions: Callable[[list[int]], Tensor]
    texts: list[str] | None = None
    train_texts: list[str] = field(default_factory=list)


def asked_of_classes(model: BiGR, section: "SamplesSettings") -> Asked:
    """As many images of each class."""
    labels = balanced_labels(section.count, model.config.num_classes)
    return Asked(labels, lambda chosen: labels[chosen])


def asked_of_texts(settings: "Settings", root: Path, device: torch.device) -> Asked:
    """The prompts, or the captions of the validation split, and captions of the training split.

    Each from the first again where the images are more.
    """
    section, models = settings.samples, root / "models"
    encoder = encoder_of(models / "bigr", models / "text", device, root)
    if section.prompts is not None:
        known = read_prompts(root / section.prompts, "samples.prompts")
        labels = torch.full((len(known),), NO_LABEL)
    else:
        known = first_captions(ShardIndex.load(root / "data" / "shards"), "val", section.count)
        labels = CodesDataset.open(root / "data" / "codes", "val", None).batch(torch.arange(len(known)))[1]
    places = torch.arange(section.count) % len(known)
    texts, train = [known[place] for place in places], list[str]()
    if section.train_captions:
        few = first_captions(ShardIndex.load(root / "data" / "shards"), "train", section.train_captions)
        train = list(islice(cycle(few), section.train_captions))
    every = texts + train
    return Asked(labels[places], lambda chosen: as_given(encoder, [every[number] for number in chosen]), texts, train)


def gathered(images: Tensor, count: int, device: torch.device) -> Tensor:
    """The images of all processes, uint8 [count, H, W, 3] in the order of their indices; empty but in the first."""
    if world() == 1:
        return images
    whole = torch.empty(count if is_main() else 0, *images.shape[1:], dtype=torch.uint8)
    for places in batched(math.ceil(count / world()), GATHERED_TOGETHER):
        mine = images[places.start : places.stop].to(device)
        padded = torch.zeros(len(places), *images.shape[1:], dtype=torch.uint8, device=device)
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in range(world())] if is_main() else None
        dist.gather(padded, parts)
        if parts is not None:
            here = whole[places.start * world() : places.stop * world()]
            here.copy_(torch.stack(parts, dim=1).flatten(0, 1)[: len(here)])
    return whole


def save_class_columns(path: Path, images: Tensor, labels: Tensor, rows: int) -> None:
    """Write uint8 images [n, 3, H, W] as a PNG: a column for each of the first classes, `rows` images each."""
    classes = labels.unique()[:PICTURED_CLASSES]
    columns = [images[labels == label][:rows] for label in classes]
    shortest = min(len(column) for column in columns)
    grid = torch.stack([column[:shortest] for column in columns], dim=1).flatten(0, 1)
    save_grid(path, grid, columns=len(columns))
