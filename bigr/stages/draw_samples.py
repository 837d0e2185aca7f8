"""Stage `samples`: draw images, the same number of each class, or one of each text (docs/method.md, section 4).

Reads models/tokenizer and models/bigr; writes outputs/samples.npz in the layout that ADM's evaluator reads (`arr_0`
uint8 [n, H, W, 3], `arr_1` int64 labels [n]) and outputs/samples.png, one column a class. A model that takes texts gets
those of `samples.prompts`, or the captions of the validation split, from the first on: the file then has them as
`texts`, and labels are the captioned images', −1 of prompts. Samples of `samples.train_captions` training captions are
apart, as `train_images` and `train_texts`.

Each process draws its share and writes it to checkpoints/samples, batch by batch; the first then puts the file
together. No process holds all images. A run that was killed continues with the batches that are there, and the images
do not depend on the number of processes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bigr.data.codes import CodesDataset
from bigr.data.drawn_images import DrawnImages, divided
from bigr.data.picture_grid import save_captioned_grid, save_grid
from bigr.data.shards import ShardIndex, first_captions, read_captions
from bigr.interop.belonging import check_pair
from bigr.interop.folders import load_model
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.models.masked.compiled import log_compile_time
from bigr.models.masked.generator import BiGR
from bigr.runtime.context import Context
from bigr.runtime.cpu_parts import in_parts
from bigr.runtime.device import resolve_device
from bigr.runtime.distributed import barrier, by_first, is_main, rank, world
from bigr.runtime.errors import BigrError
from bigr.runtime.files import Blocks, write_npz
from bigr.runtime.precision import autocast
from bigr.runtime.progress import Progress
from bigr.runtime.seeds import derive_seed
from bigr.runtime.unfinished import keep_parts, remove_parts
from bigr.sampling.acceleration import accelerate
from bigr.sampling.decode import decoded
from bigr.sampling.inputs import NO_LABEL, balanced_labels, check_finite
from bigr.sampling.unmask import Sampling, sample_codes
from bigr.text.encoder import as_given
from bigr.text.encoder_folder import encoder_of
from bigr.text.prompts import read_prompts

if TYPE_CHECKING:
    from bigr.config import SamplesSettings, Settings

PICTURED_CLASSES = 16
PICTURED_TEXTS = 10  # in a row of the picture


def run(settings: "Settings", context: Context) -> None:
    """Sample, decode, and write, each process its share; the first puts the file together and reports."""
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
    unfinished = context.root / "checkpoints" / "samples"
    keep_parts(unfinished, context.fingerprint)
    drawn = DrawnImages(unfinished, count)
    missing = by_first(drawn.missing)
    mine = list(divided(missing, rank(), world(), section.batch_size))
    accelerate(model, settings.run.compile, device, sum(map(len, mine)))

    def draw(numbers: range) -> Tensor:
        chosen = list(numbers)
        with autocast(device, settings.run.precision, model.config.dim):
            # A model trained without labels has learned the unconditional case alone.
            told = settings.generator.use_labels
            given = asked.conditions(chosen).to(device) if told else model.backbone.unconditional(len(chosen), device)
            codes = sample_codes(model, given, Sampling.of(section), [seeds[i] for i in chosen])
        return decoded(tokenizer, codes, settings.run.decode_precision)

    with Progress("samples", sum(map(len, missing)), unit="image", enabled=is_main()) as bar:
        for numbers in mine:

            def draw_some(places: slice, numbers: range = numbers) -> Tensor:
                return draw(numbers[places])

            drawn.write(numbers, torch.cat(in_parts(draw_some, range(len(numbers)), model.config.grid**2, device)))
            bar.advance(len(numbers) * world())
    log_compile_time()

    barrier()
    if is_main():
        if lost := drawn.missing():
            raise BigrError(
                f"{len(lost)} images are missing, which other processes drew: all machines must share {unfinished}"
            )
        outputs, side = context.root / "outputs", tokenizer.config.image_size

        def images(numbers: range) -> Blocks:
            return Blocks((len(numbers), side, side, 3), np.dtype(np.uint8), drawn.blocks(numbers))

        others: dict[str, np.ndarray | Blocks] = {}
        if asked.texts is not None:
            others["texts"] = np.array(asked.texts)
        if asked.train_texts:
            others["train_images"] = images(range(section.count, count))
            others["train_texts"] = np.array(asked.train_texts)
        own = images(range(section.count))
        write_npz(outputs / "samples.npz", arr_0=own, arr_1=asked.labels.numpy(), **others)
        picture = outputs / "samples.png"
        if asked.texts is None:
            shown, columns = class_columns(asked.labels, section.grid_rows)
            save_grid(picture, drawn.images(shown).permute(0, 3, 1, 2), columns)
        else:
            shown = list(range(min(section.count, PICTURED_TEXTS * section.grid_rows)))
            pictured = drawn.images(shown).permute(0, 3, 1, 2)
            save_captioned_grid(picture, pictured, asked.texts[: len(shown)], columns=PICTURED_TEXTS)
        remove_parts(unfinished)
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
    """The prompts, or the captions of the validation split, and captions of the training split, spread over it: sources
    may be sorted. Each from the first again where the images are more.
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
        few = spread_captions(ShardIndex.load(root / "data" / "shards"), "train", section.train_captions)
        train = list(islice(cycle(few), section.train_captions))
    every = texts + train
    return Asked(labels[places], lambda chosen: as_given(encoder, [every[number] for number in chosen]), texts, train)


def spread_captions(index: ShardIndex, split: str, count: int, fewest_shards: int = 4) -> list[str]:
    """The captions of `count` images that are spread over a split, of all where there are fewer.

    Whole shards are read, in a bucket copied: `fewest_shards` that are spread likewise, or as many as hold `count`.
    Raises as `read_captions` does.
    """
    shards, read = index.shards(split), fewest_shards
    while True:
        read = min(read, len(shards))
        chosen = [shards[place * len(shards) // read] for place in range(read)]
        if read == len(shards) or sum(shard.images for shard in chosen) >= count:
            break
        read *= 2
    captions = [caption for shard in chosen for caption in read_captions(shard)]
    few = min(count, len(captions))
    return [captions[place * len(captions) // few] for place in range(few)]


def class_columns(labels: Tensor, rows: int) -> tuple[list[int], int]:
    """The images to show, row by row, and how many columns: one for each of the first classes, `rows` images each."""
    classes = labels.unique()[:PICTURED_CLASSES]
    columns = [(labels == label).nonzero().flatten()[:rows] for label in classes]
    shortest = min(len(column) for column in columns)
    return torch.stack([column[:shortest] for column in columns], dim=1).flatten().tolist(), len(columns)
