"""The tokenizer's discriminator: a PatchGAN of three layers (pix2pix, as in VQGAN; docs/method.md, section 1).

Every output judges one 70×70 patch of the image; patches overlap. The losses are in `training/adversarial.py`.
"""

from torch import Tensor, nn

MIN_SIDE = 24
"""The least image side, in pixels, that leaves one output: a side of s leaves ⌊s/8⌋ − 2."""


class PatchDiscriminator(nn.Module):
    """Images [B,3,H,W] -> logits [B,1,⌊H/8⌋−2,⌊W/8⌋−2]: above 0 where a patch looks real.

    Convolutions 4×4 of strides 2, 2, 2, 1, 1 and widths C, 2C, 4C, 8C, 1, where C is `base_channels` (64 as published).
    BatchNorm, whose scale and shift replace a bias, follows all but the first and last; LeakyReLU all but the last.
    """

    def __init__(self, base_channels: int) -> None:
        super().__init__()
        c = base_channels
        self.main = nn.Sequential(
            nn.Conv2d(3, c, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            *_block(c, 2 * c, stride=2),
            *_block(2 * c, 4 * c, stride=2),
            *_block(4 * c, 8 * c, stride=1),
            nn.Conv2d(8 * c, 1, 4, stride=1, padding=1),
        )
        self.apply(_init_weights)

    def forward(self, images: Tensor) -> Tensor:
        """Logits are float32 also under autocast. Raises ValueError for an image of a side below `MIN_SIDE`."""
        if min(images.shape[-2:]) < MIN_SIDE:
            raise ValueError(f"images of {tuple(images.shape[-2:])} pixels; the discriminator needs {MIN_SIDE} or more")
        logits: Tensor = self.main(images).float()
        return logits


def _block(width_in: int, width_out: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(width_in, width_out, 4, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(width_out), nn.LeakyReLU(0.2)]


def _init_weights(module: nn.Module) -> None:
    """DCGAN's: convolutions N(0, 0.02), BatchNorm's scales N(1, 0.02); biases as torch sets them."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
