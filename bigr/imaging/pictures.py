"""Reading images and masks of any kind: as one upright RGB image, as one boolean array."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bigr.data.images import ImageError, check_pixels, decode, upright_rgb
from bigr.runtime.errors import BigrError

Picture: TypeAlias = Image.Image | Path | str | Tensor | NDArray[np.uint8]
"""A PIL image of any mode, a file of it, a tensor [3, H, W] or [1, H, W] (uint8, bool, or float in [0, 1]), or an array
uint8 [H, W, 3] or [H, W], or bool [H, W]."""
Mask: TypeAlias = NDArray[np.bool_]

_HALF = 128


def read_picture(source: Picture, what: str = "image") -> Image.Image:
    """The image as upright 8-bit RGB. Transparent pixels are composited on white.

    Raises `BigrError`, in one line that names the file or else `what`, for anything that is no image.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        try:
            return decode(path)
        except ImageError as error:
            there = os.path.exists(path)  # noqa: PTH110 - Path.exists raises for a name that no file can have
            reason = error if there else "no such file"
            raise BigrError(f"{what}: {path}: {reason}") from None
    image = _as_image(source, what)
    try:
        check_pixels(image.width, image.height)
    except ImageError as error:
        raise BigrError(f"{what}: {error}") from None
    try:
        return upright_rgb(image)
    except Exception as error:  # a lazily read file is decoded here, and decoders raise many kinds
        raise BigrError(f"{what}: cannot be read ({' '.join(str(error).split())})") from None


def read_mask(source: Picture, size: tuple[int, int]) -> Mask:
    """A mask as bool [H, W] for an image of `size` (width, height): True where it is to be painted.

    Pixels brighter than half are; of a mask with transparency the opaque ones. A mask of another size is scaled.
    Raises `BigrError` where it is no image, or nothing is marked.
    """
    if isinstance(source, str | Path):
        read_picture(source, "mask")  # says what is wrong with the file
        with Image.open(source) as file:
            file.load()
            source = file
    image = _as_image(source, "mask")
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    see_through = alpha is not None and np.asarray(alpha).min() < _HALF
    marked = _turned(alpha, image) if alpha is not None and see_through else upright_rgb(image).convert("L")
    if marked.size != size:
        marked = marked.resize(size, Image.Resampling.BILINEAR)
    found: Mask = np.asarray(marked) >= _HALF
    if not found.any():
        raise BigrError("mask: nothing is marked; paint what is to change white (or opaque on transparent)")
    return found


def several(source: Picture | Sequence[Picture]) -> list[Picture]:
    """One image or a sequence of them, as a list."""
    if isinstance(source, Tensor | np.ndarray):
        return list(source) if source.ndim == 4 else [source]
    return list(source) if isinstance(source, Sequence) and not isinstance(source, str) else [source]


def _turned(channel: Image.Image, image: Image.Image) -> Image.Image:
    """A channel of an image, turned upright as the image's EXIF block says."""
    sized = Image.new("RGB", channel.size)
    sized.info = dict(image.info)
    sized.paste(Image.merge("RGB", (channel,) * 3))
    sized.getexif().update(image.getexif())
    return upright_rgb(sized).getchannel("R")


def _as_image(source: Picture, what: str) -> Image.Image:
    if isinstance(source, Image.Image):
        if not source.width * source.height:
            raise BigrError(f"{what}: has no pixels")
        return source
    if isinstance(source, Tensor):
        source = _array(source, what)
    if not isinstance(source, np.ndarray):
        raise BigrError(f"{what} must be a PIL image, a path, a tensor or an array, got {type(source).__name__}")
    array = source.astype(np.uint8) * 255 if source.dtype == bool else source
    flat = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if flat.dtype != np.uint8 or flat.ndim not in (2, 3) or (flat.ndim == 3 and flat.shape[2] not in (3, 4)):
        raise BigrError(f"{what}: an array must be uint8 [H, W, 3] or [H, W], got {source.dtype} {list(source.shape)}")
    if not flat.size:
        raise BigrError(f"{what}: has no pixels")
    return Image.fromarray(np.ascontiguousarray(flat))


def _array(tensor: Tensor, what: str) -> NDArray[np.uint8]:
    tensor = tensor.detach().cpu()
    if tensor.ndim == 2:
        tensor = tensor.unsqueeze(0)
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3):
        raise BigrError(f"{what}: a tensor must be [3, H, W] or [1, H, W], got {list(tensor.shape)}")
    if tensor.dtype == torch.bool:
        tensor = tensor.to(torch.uint8) * 255
    elif tensor.is_floating_point():
        if not torch.isfinite(tensor).all():
            raise BigrError(f"{what}: a tensor must have finite values, got others")
        low, high = tensor.aminmax() if tensor.numel() else (torch.tensor(0.0), torch.tensor(1.0))
        if low < 0 or high > 1:
            raise BigrError(f"{what}: a tensor of floats must be in [0, 1], got [{low:.3g}, {high:.3g}]")
        tensor = (tensor.float() * 255).round().to(torch.uint8)
    if tensor.dtype != torch.uint8:
        raise BigrError(f"{what}: a tensor must be uint8, or floats in [0, 1], got {tensor.dtype}")
    return np.ascontiguousarray(tensor.permute(1, 2, 0).numpy())
