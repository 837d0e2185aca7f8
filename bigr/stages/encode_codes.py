"""Stage `codes`: encode every image with the tokenizer (docs/method.md, section 1).

Reads data/shards and models/tokenizer; writes data/codes/{train,val}-NNNNNN.safetensors and index.json. The finished
files of a run that was killed are in checkpoints/codes, and are not made again. With `codes.store` each process puts
its files to that URL, and the index names them there.
"""

from typing import TYPE_CHECKING

import torch

from bigr.data.codes import CodesDataset, Encoding, bit_usage, encode_shard, place_shards, write_index
from bigr.data.shards import ShardIndex
from bigr.data.stored_files import StoredParts, store_of
from bigr.interop.folders import load_model, model_hash
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.runtime.context import Context
from bigr.runtime.device import resolve_device
from bigr.runtime.distributed import barrier, is_main, rank, world
from bigr.runtime.errors import BigrError
from bigr.runtime.progress import Progress
from bigr.runtime.unfinished import keep_parts

if TYPE_CHECKING:
    from bigr.config import Settings


def run(settings: "Settings", context: Context) -> None:
    """Encode every image, each process its share of the shards; the first process writes the index and reports.

    In float32, whatever `run.precision` is: codes are compared bit by bit, and must not depend on how networks are
    trained.
    """
    device = resolve_device(settings.run.device)
    images = ShardIndex.load(context.root / "data" / "shards")
    model_folder = context.root / "models" / "tokenizer"
    tokenizer = load_model(model_folder, Tokenizer).to(device)
    config = tokenizer.config
    if config.image_size != images.image_size:
        raise BigrError(
            f"{model_folder} is a tokenizer for {config.image_size}-pixel images, the shards hold {images.image_size}-"
            "pixel ones; run the stages shards and tokenizer with the same shards.image_size"
        )
    encoding = Encoding(
        code_bits=config.code_bits,
        grid=config.grid,
        views=list(settings.codes.views),
        tokenizer=model_hash(model_folder),
        draws=settings.codes.draws,
        seed=settings.seed,
    )
    unfinished = context.root / "checkpoints" / "codes"
    keep_parts(unfinished, context.fingerprint)
    parts = StoredParts(unfinished, store_of(context.root, settings.codes.store), "codes")
    shards = list(place_shards(images))[rank() :: world()]
    total = sum(placed.shard.images for placed in shards)
    with (
        torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
        Progress("codes", total, unit="image", enabled=is_main()) as progress,
    ):
        for placed in shards:
            if parts.finished(placed.codes_name):
                progress.advance(placed.shard.images)
                continue
            encode_shard(
                tokenizer,
                placed,
                parts.path(placed.codes_name),
                encoding,
                batch_size=settings.codes.batch_size,
                device=device,
                workers=settings.run.workers,
                advance=progress.advance,
            )
            parts.finish(placed.codes_name)
    barrier()
    if is_main():
        folder = context.root / "data" / "codes"
        names = [placed.codes_name for placed in place_shards(images)]
        write_index(unfinished, images, encoding, dict(zip(names, parts.entries(names), strict=True)))
        parts.become(folder)
        dataset = CodesDataset.open(folder, "train", encoding.tokenizer)
        context.report.metrics({"train_images": len(dataset), "val_images": images.images("val"), **bit_usage(dataset)})
    barrier()
