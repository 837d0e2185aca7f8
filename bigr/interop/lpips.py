"""LPIPS' weights from a local file: `tokenizer.perceptual_weights`. Nothing is downloaded."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from bigr.models.autoencoder.perceptual import Lpips
from bigr.runtime.errors import BigrError


def load_lpips(path: Path) -> Lpips:
    """LPIPS with the weights of a safetensors file, named as `Lpips` says; docs/settings.md shows how to make one.

    Raises `BigrError` that names tokenizer.perceptual_weights, the file, and the tensor where one is at fault.
    """
    setting = f"tokenizer.perceptual_weights: {path}"
    try:
        return Lpips(load_file(path))
    except FileNotFoundError:
        raise BigrError(f"{setting}: no such file; docs/settings.md shows how to make it") from None
    except (OSError, SafetensorError) as error:
        raise BigrError(f"{setting}: not a readable safetensors file: {error}") from None
    except BigrError as error:
        raise BigrError(f"{setting}: {error}") from None
