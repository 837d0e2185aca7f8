"""What an encoder of texts is, and the folder that it is kept in.

An encoder turns a text into an array of at most P rows, and one more where it has a vector of the whole text: what
`bigr.models.masked.text_conditions` takes, without the zeros behind it. A text without any word is an array of no rows,
which is no text: the model's unconditional case.
"""

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bigr.models.text_shape import text_shape
from bigr.runtime.errors import BigrError
from bigr.runtime.files import sha256_file

CONFIG = "config.json"


class TextEncoder(Protocol):
    """Reads texts.

    cut: how many texts so far were longer than P, and were cut.
    """

    cut: int

    @property
    def shape(self) -> dict[str, Any]:
        """The fields of `BackboneConfig` that follow from the encoder: text_tokens = P and so on."""

    def read(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The array of each text: int32 [l] numbers of byte pairs, or float16 [l, C] features; l = 0 without words."""

    def save(self, folder: Path) -> None:
        """Write to `folder` what `bigr.text.encoder_folder.load_encoder` reads."""


def cleaned(text: str) -> str:
    """Without control characters, with single spaces, and in Unicode's composed form."""
    kept = (" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)
    plain = "".join(kept).encode("utf-8", "replace").decode("utf-8")
    return " ".join(unicodedata.normalize("NFC", plain).split())


def as_given(encoder: TextEncoder, texts: Sequence[str]) -> Tensor:
    """Texts as the model takes them: [n, P] or [n, (1 +) P, C]."""
    return padded(encoder.read(texts), text_shape(encoder.shape))


def padded(arrays: Sequence[np.ndarray], shape: Sequence[int]) -> Tensor:
    """Arrays of texts as one tensor [n, *shape], int64 or float32, zeros behind their ends."""
    dtype = np.float32 if len(shape) == 2 else np.int64
    found = np.zeros((len(arrays), *shape), dtype=dtype)
    for row, array in zip(found, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(found)


def encoder_hash(folder: Path) -> str:
    """The identity of the encoder in `folder`, which the models that were trained on its texts name."""
    return sha256_file(folder / CONFIG)


def read_config(folder: Path) -> dict[str, Any]:
    """The encoder's config.json. Raises `BigrError` where it is missing or damaged."""
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(values["kind"], str)
    except FileNotFoundError:
        raise BigrError(f"{path} is missing; run the stage text first") from None
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise BigrError(f"{path} does not describe an encoder of texts ({error!r}); run the stage text again") from None
    return dict(values)
