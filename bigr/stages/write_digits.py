"""Stage `digits`: write the embedded data set to data/digits/{train,val}/<class>/<id>.png."""

from typing import TYPE_CHECKING

from bigr.data.digits import write_digits
from bigr.runtime.context import Context

if TYPE_CHECKING:
    from bigr.config import Settings


def run(settings: "Settings", context: Context) -> None:
    """Write the embedded digits as an image folder with a fixed, stratified split."""
    counts = write_digits(context.root / "data" / "digits", settings.digits.image_size, settings.digits.val_count)
    context.report.metrics({f"{split}_images": count for split, count in counts.items()})
