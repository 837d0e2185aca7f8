"""What was painted, laid into the picture that it belongs to."""

from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from bigr.errors import BigrError
from bigr.imaging.pictures import Mask

Blend: TypeAlias = Literal["feather", "poisson", "none"]


def check(blend: str) -> None:
    """Raise `BigrError` for a way to blend that there is not."""
    if blend not in get_args(Blend):
        raise BigrError(f"blend: {blend} is none of {', '.join(get_args(Blend))}")


def blended(
    original: NDArray[np.uint8], painted: NDArray[np.uint8], mask: Mask, blend: Blend, feather: float
) -> NDArray[np.uint8]:
    """`painted` in place of `original` (uint8 [H, W, 3] both) where `mask` bool [H, W] is True.

    feather: the painted picture fades out over `feather` pixels around the mask, the width of the seam; beyond it, and
    with the other ways everywhere outside the mask, the original's pixels are returned as they are. poisson: inside the
    mask the painted picture's gradients, from the original's border inwards (Pérez et al. 2003), by OpenCV. none:
    pasted.
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
    import cv2

    # A ring around the picture, since OpenCV wants a border: the original's own edge, which continues it.
    ring = ((1, 1), (1, 1), (0, 0))
    around, inside = np.pad(original, ring, mode="edge"), np.pad(painted, ring, mode="edge")
    marked = np.pad(mask, 1).astype(np.uint8) * 255
    left, top, width, height = cv2.boundingRect(marked)
    centre = (left + width // 2, top + height // 2)
    cloned = cv2.seamlessClone(inside, around, marked, centre, cv2.NORMAL_CLONE)
    return cloned[1:-1, 1:-1].astype(np.uint8)
