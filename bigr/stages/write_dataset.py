"""Stage `dataset`: write the embedded data set that `dataset.name` chooses to data/dataset.

digits: {train,val}/<class>/<id>.png; scenes and emoji: train.parquet and val.parquet, with captions. The folder stays
empty where the name is none, or `shards.source` names images elsewhere.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from bigr.data.embedded.digits import write_digits
from bigr.data.embedded.emoji import write_emoji
from bigr.data.embedded.scenes import write_scenes
from bigr.runtime.context import Context
from bigr.runtime.files import atomic_folder

if TYPE_CHECKING:
    from bigr.config import DatasetSettings, Settings


def run(settings: "Settings", context: Context) -> None:
    """Write the chosen data set, with a fixed split."""
    folder = context.root / "data" / "dataset"
    counts = _written(settings.dataset, folder, context.root) if settings.shards.embedded else {}
    if not counts:
        with atomic_folder(folder):
            pass
    context.report.metrics({f"{split}_images": count for split, count in counts.items()})


def _written(chosen: "DatasetSettings", folder: Path, root: Path) -> dict[str, int]:
    """The images of each split; none where nothing is chosen."""
    if chosen.name == "digits":
        return write_digits(folder, chosen.image_size, chosen.val_count)
    if chosen.name == "scenes":
        return write_scenes(folder, chosen.image_size, chosen.train_count, chosen.val_count)
    if chosen.name == "emoji":
        font, names = root / chosen.emoji_font, root / chosen.emoji_names
        return write_emoji(folder, chosen.image_size, font, names, chosen.emoji_val_share)
    return {}
