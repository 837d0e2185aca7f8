"""Stage `shards`: pack images as webdataset shards.

Reads what `shards.source` names; writes data/shards/{train,val}-NNNNNN.tar, index.json and report.json. With
`shards.store` the shards go to that URL, and the index names them there. Where too many images cannot be read, it fails
and writes data/shards-report.json alone. The finished shards of a run that was killed are in checkpoints/shards, and
are not packed again.
"""

import contextlib
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from bigr.data.packed_parts import Packing
from bigr.data.packing import pack
from bigr.data.shards import ShardIndex
from bigr.data.sources.opened import open_source
from bigr.data.sources.source import Source, Splitting
from bigr.data.stored_files import store_of
from bigr.runtime.context import Context
from bigr.runtime.distributed import by_first, is_main
from bigr.runtime.errors import BigrError
from bigr.runtime.paths import is_url

if TYPE_CHECKING:
    from bigr.config import Settings

log = logging.getLogger(__name__)


def run(settings: "Settings", context: Context) -> None:
    """Crop, resize and pack the images of `shards.source`: a URL, or a path, absolute or below the project's folder.

    The first process lists the source; the parts are shared by all that torchrun started.
    """
    shards = settings.shards
    folder, partial = context.root / "data" / "shards", context.root / "checkpoints" / "shards"
    if not is_url(shards.source) and (context.root / shards.source).resolve().is_relative_to(folder.resolve()):
        raise BigrError(f"shards.source is {shards.source!r}, where this stage writes; name the folder with the images")

    def listed() -> Source:
        source = open_source(
            shards.source,
            context.root,
            Splitting(shards.val_fraction, settings.seed),
            names=shards.class_names,
        )
        if is_url(source.where):  # also where a manifest here lists what is there
            _start_over_unless_unchanged(partial, context.fingerprint)
        source.prepare(partial)
        return source

    counts = pack(
        by_first(listed),
        folder,
        partial,
        Packing(
            shards.image_size,
            shards.images_per_shard,
            shards.max_pixels,
            store=store_of(context.root, shards.store_url),
            used_as_is=shards.used_as_is,
        ),
        max_bad_fraction=shards.max_bad_fraction,
        workers=settings.run.workers,
    )
    if is_main():
        _tell_of_remote(ShardIndex.load(folder), settings.run.cache_gb)
        with contextlib.suppress(OSError):  # other stages have checkpoints there
            partial.parent.rmdir()
    context.report.metrics(counts)


def _tell_of_remote(index: ShardIndex, cache_gb: float) -> None:
    """Say which files stay at their URL, since each epoch may copy them again."""
    remote = [shard.file for split in index.splits for shard in index.shards(split) if shard.file.remote]
    if remote:
        log.info(
            "%d files stay at their URL, %.3g GB; copies of at most %.3g GB are kept here (run.cache_gb); "
            "shards.store: local packs their images here",
            *(len(remote), sum(file.size for file in remote) / 1e9, cache_gb),
        )


def _start_over_unless_unchanged(partial: Path, fingerprint: str) -> None:
    """Remove what is finished where it was made under another fingerprint.

    Local files tell by themselves what has changed. Remote images are not asked for one by one.
    """
    note = partial / "fingerprint"
    if not note.is_file() or note.read_text() != fingerprint:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        note.write_text(fingerprint)
