"""Stage `samples`: draw images, the same number of each class (docs/method.md, section 4).

Reads models/tokenizer and models/bigr; writes outputs/samples.npz in the layout that ADM's evaluator reads (`arr_0`
uint8 [n, H, W, 3], `arr_1` int64 labels [n]) and outputs/samples.png, one column a class.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from bigr.data.picture_grid import save_grid
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
from bigr.sampling.inputs import balanced_labels, check_finite
from bigr.sampling.unmask import Sampling, sample_codes

if TYPE_CHECKING:
    from bigr.config import Settings

PICTURED_CLASSES = 16
GATHERED_TOGETHER = 256
"""Images that each process sends to the first at a time: all of them may not fit on a GPU."""


def run(settings: "Settings", context: Context) -> None:
    """Sample, decode, and write."""
    section, device = settings.samples, resolve_device(settings.run.device)
    tokenizer = load_model(context.root / "models" / "tokenizer", Tokenizer).to(device)
    model = load_model(context.root / "models" / "bigr", BiGR).to(device)
    check_pair(tokenizer, model, (context.root / "models" / "tokenizer", context.root / "models" / "bigr"))
    check_finite(model)
    labels = balanced_labels(section.count, model.config.num_classes)
    # A model trained without labels has learned the unconditional row alone.
    conditions = labels if settings.generator.use_labels else torch.full_like(labels, model.config.num_classes)
    seeds = [derive_seed(settings.seed, "samples", index) for index in range(section.count)]
    mine = range(rank(), section.count, world())
    accelerate(model, settings.run.compile, device, len(mine))

    images = torch.empty(len(mine), tokenizer.config.image_size, tokenizer.config.image_size, 3, dtype=torch.uint8)

    def draw(places: slice) -> None:
        chosen = list(mine[places])
        with autocast(device, settings.run.precision, model.config.dim):
            codes = sample_codes(model, conditions[chosen].to(device), Sampling.of(section), [seeds[i] for i in chosen])
        images[places] = decoded(tokenizer, codes, settings.run.decode_precision)

    with Progress("samples", section.count, unit="image", enabled=is_main()) as bar:
        for places in batched(len(mine), section.batch_size):
            in_parts(draw, places, model.config.grid**2, device)
            bar.advance(len(places) * world())
    log_compile_time()

    images = gathered(images, section.count, device)
    if is_main():
        outputs = context.root / "outputs"
        write_npz(outputs / "samples.npz", arr_0=images.numpy(), arr_1=labels.numpy())
        picture = outputs / "samples.png"
        save_class_columns(picture, images.permute(0, 3, 1, 2), labels, section.grid_rows)
        context.report.picture("samples", picture)
        context.report.metrics({"images": float(section.count)})


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
