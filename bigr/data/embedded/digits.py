"""The embedded data set: scikit-learn's 1,797 scans of handwritten digits, as an ordinary image folder.

Class folders are named 0 to 9, files by their index in scikit-learn's order. The split has a fixed seed, so that
pipelines with different seeds are measured on the same digits.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from bigr.runtime.extras import require
from bigr.runtime.files import atomic_folder

_SPLIT_SEED = 0
_FULL = 16.0
"""scikit-learn's pixels run from 0 to 16."""


def write_digits(folder: Path, image_size: int, val_count: int) -> dict[str, int]:
    """Write `{train,val}/<class>/<index>.png`, 8-bit grey, image_size×image_size, atomically.

    val holds exactly `val_count` digits, stratified by class. Returns the number of images of each split.
    """
    require("train", "the embedded data set")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    indices = np.arange(len(digits.target))
    train, val = train_test_split(indices, test_size=val_count, stratify=digits.target, random_state=_SPLIT_SEED)
    with atomic_folder(folder) as temporary:
        for split, members in (("train", train), ("val", val)):
            for label in range(10):
                (temporary / split / str(label)).mkdir(parents=True)
            for index in members:
                image = _upsample(digits.images[index], image_size)
                image.save(temporary / split / str(digits.target[index]) / f"{index:04d}.png")
    return {"train": len(train), "val": len(val)}


def _upsample(pixels: np.ndarray, size: int) -> Image.Image:
    """8×8 values in [0, 16] → 8-bit grey size×size: bicubic in floating point, rounded once, at the end."""
    image = Image.fromarray((pixels * (255.0 / _FULL)).astype(np.float32))
    enlarged = np.asarray(image.resize((size, size), resample=Image.Resampling.BICUBIC))
    return Image.fromarray(enlarged.clip(0, 255).round().astype(np.uint8))
