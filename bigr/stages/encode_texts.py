"""Stage `text`: read every caption of the shards with an encoder, once (docs/text-to-image.md).

Reads data/shards; writes data/text/{train,val}-NNNNNN.safetensors and index.json, and models/text. With `text.encoder:
none` only the note that there are no texts. The finished files of a run that was killed are in checkpoints/text, and
are not made again. With `text.store` each process puts its files to that URL, and the index names them there.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bigr.data.codes import PlacedShard, place_shards
from bigr.data.shards import ShardIndex, read_captions
from bigr.data.stored_files import StoredParts, store_of
from bigr.data.texts import text_counts, write_text_index, write_texts
from bigr.runtime.context import Context
from bigr.runtime.device import resolve_device
from bigr.runtime.distributed import barrier, by_first, is_main, rank, world
from bigr.runtime.errors import BigrError
from bigr.runtime.files import atomic_folder, write_json
from bigr.runtime.progress import Progress
from bigr.runtime.unfinished import keep_parts
from bigr.text import byte_pairs
from bigr.text.byte_pairs import BytePairs
from bigr.text.encoder import CONFIG, TextEncoder, encoder_hash
from bigr.text.encoder_folder import NO_ENCODER, load_encoder
from bigr.text.frozen import FrozenEncoder

if TYPE_CHECKING:
    from bigr.config import Settings

log = logging.getLogger(__name__)


def run(settings: "Settings", context: Context) -> None:
    """Read all captions, each process its share of the shards; the first process writes the index and reports."""
    folder, models = context.root / "data" / "text", context.root / "models" / "text"
    if settings.text.encoder == NO_ENCODER:
        if is_main():
            with atomic_folder(models) as temporary:
                write_json(temporary / CONFIG, {"kind": NO_ENCODER})
            with atomic_folder(folder) as temporary:
                write_text_index(temporary, None, {}, {})
        return
    device = resolve_device(settings.run.device)
    images = ShardIndex.load(context.root / "data" / "shards")
    _check_captions(images, settings.text.encoder)
    unfinished = context.root / "checkpoints" / "text"
    keep_parts(unfinished, context.fingerprint)
    parts = StoredParts(unfinished, store_of(context.root, settings.text.store), "text")
    by_first(partial(_prepare, settings, context, images, device, models))
    encoder = load_encoder(models, device, context.root)
    known, placed = encoder_hash(models), list(place_shards(images))
    mine = placed[rank() :: world()]
    with Progress("text", sum(p.shard.images for p in mine), unit="caption", enabled=is_main()) as progress:
        for one in mine:
            if not parts.finished(one.codes_name):
                _encode(encoder, one, parts.path(one.codes_name), known, settings.text.batch_size)
                parts.finish(one.codes_name)
            progress.advance(one.shard.images)
    barrier()
    if is_main():
        entries = {split: parts.entries(p.codes_name for p in placed if p.split == split) for split in images.splits}
        stored = [parts.file(entry) for of_split in entries.values() for entry in of_split]
        counts = sum((Counter(text_counts(file)) for file in stored), Counter[str]())
        if counts["cut"]:
            log.warning("text: %d captions are longer than text.tokens = %d: cut", counts["cut"], settings.text.tokens)
        files = {s: [e if len(e) > 1 else e["name"] for e in of_split] for s, of_split in entries.items()}
        write_text_index(unfinished, known, encoder.shape, files)
        parts.become(folder)
        context.report.metrics({name: counts[name] for name in ("captions", "cut", "without_words")})
    barrier()


def _check_captions(images: ShardIndex, encoder: str) -> None:
    for split, entry in images.splits.items():
        if not entry.get("captions"):
            raise BigrError(
                f"text.encoder is {encoder}, but the {split} images in data/shards have no captions; name a source "
                "with captions in shards.source (docs/data.md), or set text.encoder to none"
            )
        if (missing := images.images(split) - int(entry["captions"])) > 0:
            log.warning("text: %d of %d %s images have no caption: no text", missing, images.images(split), split)


def _captions(images: ShardIndex, split: str) -> Iterator[str]:
    return chain.from_iterable(map(read_captions, images.shards(split)))


def _prepare(settings: "Settings", context: Context, images: ShardIndex, device: torch.device, models: Path) -> None:
    """Make the encoder and write models/text."""
    section = settings.text
    encoder: TextEncoder
    if section.encoder == byte_pairs.KIND:
        encoder = BytePairs.learned(_captions(images, "train"), section.vocabulary, section.tokens)
    else:
        assert section.from_ is not None
        encoder = FrozenEncoder.open(
            *(section.encoder, section.from_, section.tokens, device),
            root=context.root,
            download=section.download,
        )
    with atomic_folder(models) as temporary:
        encoder.save(temporary)


def _encode(encoder: TextEncoder, placed: PlacedShard, path: Path, known: str, batch_size: int) -> None:
    """Write the texts of one shard."""
    captions, before = read_captions(placed.shard), encoder.cut
    arrays = []
    while batch := list(islice(captions, batch_size)):
        arrays += encoder.read(batch)
    write_texts(path, arrays, known, encoder.cut - before)
