"""The tokenizer's adversarial loss (docs/method.md, section 1): hinge losses, their adaptive weight, DiffAugment.

Functions of tensors; the networks are `models/discriminator.py` and the tokenizer, the step is the tokenizer stage's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

TRANSLATION = 0.125
"""DiffAugment's largest shift, as a share of the image's side."""


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of logits of any shape: ½·mean(max(0, 1 − real)) + ½·mean(max(0, 1 + fake)), a scalar."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """−mean(fake), a scalar: what the decoder lowers to be taken for real."""
    return -fake.mean()


def adaptive_weight(nll: Tensor, gan: Tensor, last_weight: Tensor) -> Tensor:
    """λ = ‖∇nll‖/(‖∇gan‖ + 1e-4) at the decoder's last convolution, clamped to [0, 1]; a scalar without gradient.

    It keeps the adversarial gradient no larger than the reconstruction's. `nll` and `gan` are scalars whose graphs
    reach `last_weight`; both graphs are kept. Backward passes belong outside autocast, this one too.
    """
    device = last_weight.device.type if torch.amp.is_autocast_available(last_weight.device.type) else "cpu"  # not meta
    with torch.autocast(device, enabled=False):
        nll_gradient, gan_gradient = (torch.autograd.grad(l, last_weight, retain_graph=True)[0] for l in (nll, gan))
    return (nll_gradient.norm() / (gan_gradient.norm() + 1e-4)).clamp(0, 1)


def diff_augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """DiffAugment (Zhao et al., 2020), policies color and translation: differentiable, each image its own draws.

    images: [B,3,H,W]; the result has the same shape, zeros where an image was shifted away, and may leave [0, 1].
    Draws are made on the generator's device, the same number whatever the images.
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
    """Shift each image by a whole number of pixels, up to ⌊side·TRANSLATION + ½⌋ each way."""
    for dim in (2, 3):
        side = images.shape[dim]
        reach = int(side * TRANSLATION + 0.5)
        starts = torch.randint(2 * reach + 1, (len(images), 1), generator=generator, device=generator.device)
        index = starts.to(images.device) + torch.arange(side, device=images.device)
        shape = [len(images), 1, 1, 1]
        shape[dim] = side
        padded = F.pad(images, (0, 0, reach, reach) if dim == 2 else (reach, reach))
        # No index occurs twice, so that the gradient is a plain copy and repeatable on every device.
        images = padded.gather(dim, index.view(shape).expand_as(images))
    return images
