"""Blending: a painted part is joined to the image around it."""

from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from bigr.imaging.pictures import Mask
from bigr.runtime.errors import BigrError

Blend: TypeAlias = Literal["feather", "poisson", "none"]

_NEIGHBOURS = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=np.float32) / 4
_COARSEST = 32  # pixels along the longer side, where the solution starts
_SWEEPS_AT_FIRST, _SWEEPS, _SWEEPS_ON_LARGE = 600, 60, 4
_LARGE = 512  # pixels; the model paints no finer than this, so that little is left to relax


def check(blend: str) -> None:
    """Raise `BigrError` unless `blend` is a `Blend`."""
    ways = get_args(Blend)
    if blend not in ways:
        raise BigrError(f"blend must be {', '.join(ways[:-1])} or {ways[-1]}, got {blend}")


def blended(
    original: NDArray[np.uint8], painted: NDArray[np.uint8], mask: Mask, blend: Blend, feather: float
) -> NDArray[np.uint8]:
    """`painted` in place of `original` (uint8 [H, W, 3] both) where `mask` bool [H, W] is True.

    feather: `painted` fades out over `feather` pixels around the mask, the width of the seam; beyond it, and with the
    other ways everywhere outside the mask, the pixels are the original's. poisson: inside the mask the gradients of
    `painted`, continued from the known pixels around it (Pérez et al. 2003). none: pasted.
    """
    if blend == "feather" and feather > 0:
        weight = _fading(mask, feather)[..., None]
        mixed = np.rint(original + weight * (painted.astype(np.float32) - original)).astype(np.uint8)
        return np.where(weight > 0, mixed, original)
    if blend == "poisson" and not mask.all():
        painted = _poisson(original, painted, mask)
    return np.where(mask[..., None], painted, original)


def _fading(mask: Mask, feather: float) -> NDArray[np.float32]:
    """1 in the mask, falling to 0 at a distance of more than `feather` pixels from it."""
    import cv2

    distance = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.clip(1 - distance / (feather + 1), 0, 1).astype(np.float32)


def _poisson(original: NDArray[np.uint8], painted: NDArray[np.uint8], mask: Mask) -> NDArray[np.uint8]:
    """`painted` + d: d is harmonic in the mask, and the difference of `original` and `painted` around it.

    This solves Poisson's equation with the Laplacian of `painted`; at the image's border, d has no slope across it.
    OpenCV's `seamlessClone` is not used: it keeps the bounding box's edge, which is part of what the mask removes.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (slice(max(rows[0] - 1, 0), rows[-1] + 2), slice(max(columns[0] - 1, 0), columns[-1] + 2))
    new = painted[box].astype(np.float32)
    found = painted.copy()
    found[box] = np.rint(new + _harmonic(original[box] - new, mask[box])).clip(0, 255).astype(np.uint8)
    return found


def _harmonic(values: NDArray[np.float32], unknown: Mask) -> NDArray[np.float32]:
    """float32 [H, W, C]: the values where they are known, in between the mean of each pixel's four neighbours.

    From coarse to fine: the solution at half the size is where the relaxation at full size starts.
    """
    import cv2

    height, width = unknown.shape
    if max(height, width) > _COARSEST:
        size = (max(1, width // 2), max(1, height // 2))
        share = cv2.resize((~unknown).astype(np.float32), size, interpolation=cv2.INTER_AREA)[..., None]
        total = cv2.resize(np.where(unknown[..., None], 0, values), size, interpolation=cv2.INTER_AREA)
        coarse = _harmonic((total / np.maximum(share, 1e-6)).astype(np.float32), share[..., 0] < 1e-6)
        start = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
        sweeps = _SWEEPS if max(height, width) <= _LARGE else _SWEEPS_ON_LARGE
    else:
        start, sweeps = np.broadcast_to(values[~unknown].mean(axis=0), values.shape), _SWEEPS_AT_FIRST
    found = np.where(unknown[..., None], start, values).astype(np.float32)
    for _ in range(sweeps):
        mean = cv2.filter2D(found, -1, _NEIGHBOURS, borderType=cv2.BORDER_REPLICATE)
        np.copyto(found, mean, where=unknown[..., None])
    return found
