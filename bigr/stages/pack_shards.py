"""Stage `shards`: pack an image folder as webdataset shards.

Reads the folder `shards.source`; writes data/shards/{train,val}-NNNNNN.tar, index.json and report.json. Where too many
images cannot be read, it fails and writes data/shards-report.json alone.
"""

from typing import TYPE_CHECKING

from bigr.data.packing import pack
from bigr.data.sources import discover
from bigr.runtime.context import Context
from bigr.runtime.errors import BigrError

if TYPE_CHECKING:
    from bigr.config import Settings


def run(settings: "Settings", context: Context) -> None:
    """Crop, resize and pack the images of `shards.source`, a path relative to the project's folder, or absolute."""
    shards = settings.shards
    root, folder = context.root / shards.source, context.root / "data" / "shards"
    if root.resolve().is_relative_to(folder.resolve()):
        raise BigrError(f"shards.source is {shards.source!r}, where this stage writes; name the folder with the images")
    source = discover(root, val_fraction=shards.val_fraction, seed=settings.seed)
    counts = pack(
        source,
        folder,
        image_size=shards.image_size,
        images_per_shard=shards.images_per_shard,
        max_bad_fraction=shards.max_bad_fraction,
        max_pixels=shards.max_pixels,
        workers=settings.run.workers,
    )
    context.report.metrics(counts)
