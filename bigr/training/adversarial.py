"""The tokenizer's adversarial loss (docs/method.md, section 1): hinge losses, their adaptive weight, DiffAugment.

Functions of tensors; `bigr.training.autoencoding` applies them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

TRANSLATION = 0.125
"""DiffAugment's largest shift, as a share of the image's side."""


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator, a scalar: ½·mean(max(0, 1 − real)) + ½·mean(max(0, 1 + fake)).

    real, fake: its logits, of any shape.
    """
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """The decoder's adversarial loss, a scalar: −mean(fake), of the discriminator's logits, of any shape."""
    return -fake.mean()


def adaptive_weight(nll: Tensor, gan: Tensor, last_weight: Tensor) -> Tensor:
    """λ = ‖∇nll‖/(‖∇gan‖ + 1e-4) at the decoder's last convolution, in [0, 1]; a scalar without gradient (VQGAN).

    It keeps the adversarial gradient no larger than that of the reconstruction. nll, gan: scalars that depend on
    `last_weight`; their graphs are kept. The backward passes run outside autocast.
    """
    device = last_weight.device.type if torch.amp.is_autocast_available(last_weight.device.type) else "cpu"  # not meta
    with torch.autocast(device, enabled=False):
        nll_gradient, gan_gradient = (torch.autograd.grad(l, last_weight, retain_graph=True)[0] for l in (nll, gan))
    return (nll_gradient.norm() / (gan_gradient.norm() + 1e-4)).clamp(0, 1)


def diff_augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """DiffAugment (Zhao et al., 2020), policies color and translation, differentiable; draws of its own for each image.

    images: [B,3,H,W] in [0, 1]. Returns the same shape, zero where an image was shifted away, not bounded to [0, 1].
    """
    draws = torch.rand((3, len(images), 1, 1, 1), generator=generator, device=generator.device)
    brightness, saturation, contrast = draws.to(images)
    images = images + (brightness - 0.5)
    images = _scale_about(images, images.mean(dim=1, keepdim=True), 2 * saturation)
    images = _scale_about(images, images.mean(dim=(1, 2, 3), keepdim=True), contrast + 0.5)
    return _translate(images, generator)


def _scale_about(images: Tensor, centre: Tensor, factor: Tensor) -> Tensor:
    return (images - centre) * factor + centre


def _translate(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by a whole number of pixels, up to ⌊side·TRANSLATION + ½⌋ in each direction."""
    for dim in (2, 3):
        side = images.shape[dim]
        reach = int(side * TRANSLATION + 0.5)
        starts = torch.randint(2 * reach + 1, (len(images), 1), generator=generator, device=generator.device)
        index = starts.to(images.device) + torch.arange(side, device=images.device)
        shape = [len(images), 1, 1, 1]
        shape[dim] = side
        padded = F.pad(images, (0, 0, reach, reach) if dim == 2 else (reach, reach))
        # No index occurs twice, so that the gradient is a copy, which is deterministic on every device.
        images = padded.gather(dim, index.view(shape).expand_as(images))
    return images
