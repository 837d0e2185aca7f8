"""Peak signal-to-noise ratio: the one definition."""

from torch import Tensor


def psnr(images: Tensor, originals: Tensor, peak: float = 1.0) -> Tensor:
    """Of each image the PSNR in dB, [B], against its original: −10·log₁₀ of the mean squared error, of `peak` = 1.

    images, originals: floating-point [B, 3, H, W] in [0, peak]. An image that equals its original counts as 100 dB.
    """
    return -10 * ((images - originals) / peak).square().mean(dim=(1, 2, 3)).clamp(min=1e-10).log10()
