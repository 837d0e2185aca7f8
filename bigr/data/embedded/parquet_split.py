"""Captioned images as one parquet file, in the layout of Hugging Face's datasets."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from bigr.data.images import encode_png
from bigr.runtime.extras import require

_ROWS = 1000
"""In each row group: a part of the stage `shards`."""


class Captioned(NamedTuple):
    """An image, the number of its class, and its caption."""

    image: Image.Image
    label: int
    text: str


def write_parquet(path: Path, images: Iterable[Captioned], classes: list[str]) -> int:
    """Write `image` (bytes and name), `label` and `text`, and the classes' names; returns how many rows."""
    require("train", "writing parquet files")
    import pyarrow as pa
    import pyarrow.parquet as pq

    features = {
        "image": {"_type": "Image"},
        "label": {"names": classes, "_type": "ClassLabel"},
        "text": {"dtype": "string", "_type": "Value"},
    }
    schema = pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("label", pa.int64()),
            ("text", pa.string()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    rows: list[dict[str, object]] = []
    count = 0
    with pq.ParquetWriter(path, schema) as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema))
            rows.clear()

        for count, one in enumerate(images, start=1):
            content = {"bytes": encode_png(one.image), "path": f"{count - 1:06d}.png"}
            rows.append({"image": content, "label": one.label, "text": one.text})
            if len(rows) == _ROWS:
                flush()
        if rows:
            flush()
    return count
